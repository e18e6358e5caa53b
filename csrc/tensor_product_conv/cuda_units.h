#pragma once
// What the host and the kernels agree on, free of torch and of CUDA headers: the catalogue of units, the arguments of
// each kernel, and what a block holds where.
//
// A unit is a degree l1 of x with slots for paths (l2, l3), few enough that registers hold the sums of all of them. A
// warp runs one unit for one destination; the warps of a block share the rows of one segment of x. The units of the
// catalogue split all paths of a degree by the parity of l1 + l2 + l3, which is even wherever irreps have the parity of
// their degree, and by l2. So any plan runs on the same kernels, and mostly fills the units that it takes.
#include <algorithm>
#include <array>
#include <cstdint>

#include "cg_table.h"
#include "core/divisor.h"
#include "core/macros.h"
#include "tensor_product_conv/problem.h"

#if !defined(EQK_LMAX)
#error "the build defines EQK_LMAX"
#endif

namespace eqk::tensor_product_conv {

inline constexpr int kUnitDegree = std::min(3, EQK_LMAX);

struct UnitKind {
  int l1, parity, first_l2, last_l2;  // parity: of l1 + l2 + l3
};

// Sums of at most 16 components, which with four channels each leave the registers for the rest.
inline constexpr UnitKind kUnitKinds[] = {{0, 0, 0, 3}, {1, 0, 0, 1}, {1, 0, 2, 3}, {1, 1, 1, 3},
                                          {2, 0, 0, 1}, {2, 0, 2, 3}, {2, 1, 1, 2}, {2, 1, 3, 3},
                                          {3, 0, 0, 1}, {3, 0, 2, 3}, {3, 1, 1, 2}, {3, 1, 3, 3}};
inline constexpr int kUnitKindCount = static_cast<int>(std::size(kUnitKinds));
inline constexpr int kSlotsOfUnit = 4, kSegmentsOfUnit = 4;  // at most

// The slots of a unit in a library for degrees up to kUnitDegree, in the order of l2.
struct UnitSlots {
  int count = 0, l2[kSlotsOfUnit] = {}, l3[kSlotsOfUnit] = {};
};

EQK_HD constexpr UnitSlots slots_of(int kind) {
  const UnitKind unit = kUnitKinds[kind];
  UnitSlots slots;
  for (int l2 = unit.first_l2; l2 <= unit.last_l2; ++l2)
    for (int l3 = unit.l1 > l2 ? unit.l1 - l2 : l2 - unit.l1; l3 <= unit.l1 + l2; ++l3) {
      if (unit.l1 > kUnitDegree || l2 > kUnitDegree || l3 > kUnitDegree || (unit.l1 + l2 + l3) % 2 != unit.parity)
        continue;
      slots.l2[slots.count] = l2;
      slots.l3[slots.count++] = l3;
    }
  return slots;
}

// Compile-time properties of a unit.
template <int kind>
struct Unit {
  static constexpr UnitSlots kOf = slots_of(kind);
  static constexpr int l1 = kUnitKinds[kind].l1, D1 = 2 * l1 + 1, count = kOf.count;
  static constexpr int first_l2 = kUnitKinds[kind].first_l2, last_l2 = std::min(kUnitKinds[kind].last_l2, kUnitDegree);
  template <int q>
  using C = Cg<l1, kOf.l2[q], kOf.l3[q]>;

  // Components of the outputs of the slots before q.
  static constexpr int components(int q) {
    int n = 0;
    for (int s = 0; s < q; ++s) n += 2 * kOf.l3[s] + 1;
    return n;
  }
  static constexpr int largest_l3() {
    int l = 0;
    for (int s = 0; s < count; ++s) l = std::max(l, kOf.l3[s]);
    return l;
  }
  // Numbers of M of the slots before q, each slot padded to a multiple of four.
  template <int q>
  static constexpr int numbers() {
    if constexpr (q == 0)
      return 0;
    else
      return numbers<q - 1>() + (C<q - 1>::pairs + 3) / 4 * 4;
  }
  // From the M of one edge to that of the next: an odd number of fours, so that lanes store to different banks.
  static constexpr int m_stride = numbers<count>() / 4 % 2 ? numbers<count>() : numbers<count>() + 4;
  // Components of y that the unit reads, of segments before that of degree l2, and of all.
  static constexpr int y_columns(int l2) { return l2 * l2 - first_l2 * first_l2; }
  static constexpr int y_size = y_columns(last_l2 + 1), y_stride = y_size | 1;
};

// Calls f(kind), for a kind of which some slot is there, with the kind as a compile-time constant.
template <int kind = 0, class F>
EQK_HD constexpr void with_kind(int wanted, F &&f) {
  if constexpr (kind < kUnitKindCount) {
    if constexpr (slots_of(kind).count > 0)
      if (wanted == kind) return f(constant<kind>{});
    with_kind<kind + 1>(wanted, f);
  }
}

// One warp's work.
struct UnitRecord {
  std::int32_t kind;
  std::int32_t slots, weighted, w_vectors;  // bit q: slot q has a path, one with weights, which move as vectors
  std::int32_t y[kSegmentsOfUnit];          // column of the segment of y of degree first_l2 + n, or -1: no path of it
  float coefficient[kSlotsOfUnit];
  std::uint32_t weight[kSlotsOfUnit], out[kSlotsOfUnit];  // first columns
  // Where the warp's own shared memory begins, in bytes, and in the backward's rows of y those of slices of channels.
  std::int32_t own, rows_column;
};

// A segment of x, which the warps of a block share.
struct XRecord {
  std::int32_t column, mul, l;
  std::int32_t log_lanes;    // of the lanes that share an edge
  std::int32_t first_tile;   // tiles are slices of channels, counted over all segments
  std::int32_t first_unit;   // the block's warps run units from here on
  std::int32_t rows_column;  // where the block's columns of the backward's rows of x begin
};

inline constexpr int kUnitsOfLaunch = 24, kWarpsOfBlock = 4;

// An operand and its tangent; strides in bytes.
struct Rows {
  const void *value, *tangent;
  std::int32_t stride, tangent_stride;
};

// What the warps of units are handed: all of the forward or, on duals, of its derivative.
struct UnitArguments {
  Rows in[kSlots];
  void *out;  // null: not wanted
  std::int64_t out_stride;
  // By the place of an edge in the order of destinations; row[d] to row[d + 1] are the places of destination d.
  const std::int32_t *row, *edge, *src;
  Divisor32 destinations;
  std::int32_t x_mul_ir, out_mul_ir;
  // Whether memory and registers exchange vectors: of the rows of x; of weights, which every path has; of results.
  std::int32_t x_vectors, w_vectors, out_vectors;
  std::int32_t segments;
  XRecord x[kUnitsOfLaunch];
  UnitRecord unit[kUnitsOfLaunch];
};
static_assert(sizeof(UnitArguments) <= 4096, "more than a kernel's parameters may take");

// Of the backward. On duals it is the derivative along tangents of x, y and w, and `out` that of the forward. Results
// that are not wanted are null. x_rows, y_rows: what a block of units adds to the gradients of the row of x and of y of
// an edge, to be summed afterwards; strides in bytes, zero where there are no rows (a pointer takes three instructions
// to test, a number two).
struct BackwardArguments : UnitArguments {
  void *w, *x_rows, *y_rows;
  std::int32_t w_stride, x_rows_stride, y_rows_stride;
  std::int32_t g_vectors, gw_vectors;  // as x_vectors
  std::int32_t add;                    // gradients of weights to what is there, by single elements
  // Of the rows of w and of its gradient there are those of these places; pointers are as if there were all. A block
  // runs every so many (`destinations`) of the destinations, from that of the first place on, which `destination` has
  // by place; null: from 0 on.
  std::int32_t first_place, end_place, destination_count;
  const std::int32_t *destination;
};
static_assert(sizeof(BackwardArguments) <= 4096, "more than a kernel's parameters may take");

// Of the kernel that brings the edges into the order of one of their ends, for indices of either width, and refuses
// those that are out of range. place_of: null, or the places of edges in the order of destinations, which with that
// order it makes and which become the numbers of edges; end_of, with that order: the destinations by place.
struct OrderArguments {
  const void *end, *order, *other;
  std::int64_t end_stride, order_stride, other_stride, edges, num_end, num_other;
  std::int32_t end_wide, order_wide, other_wide;  // int64
  std::int32_t of_sources;                        // the ends that order the edges: sources, or destinations
  std::int32_t *row, *edge, *edge_other;          // edge_other: null where nobody needs it
  std::int32_t *place_of, *end_of;
};

// Columns of a result, channels of one degree, and which columns of the rows add up to them.
struct SumRange {
  std::int32_t column, mul, dim;  // of the result
  std::int32_t first_pack, first_term, end_term;
};
struct SumTerm {
  std::int32_t column, apart, count;  // `count` of them, so far apart
};

inline constexpr int kRangesOfSum = 48, kTermsOfSum = 192;

// Of the kernels that add up rows of edges, [channel][component] with channels padded to packs: in `order`, those of
// row[r] to row[r + 1] make row r of the result, or without an order each edge has one.
struct SumArguments {
  const void *rows;
  void *out;
  std::int64_t out_stride, count;  // count: of rows of the result
  const std::int32_t *row, *order;
  Divisor packs;                                           // of a row of the result
  std::int32_t rows_stride, mul_ir, vectors, add, ranges;  // rows_stride: in bytes; add: to what is there
  SumRange range[kRangesOfSum];
  SumTerm term[kTermsOfSum];
};
static_assert(sizeof(SumArguments) <= 4096, "more than a kernel's parameters may take");

inline constexpr int kEdgesOfM = 16;      // for which a warp holds M at a time
inline constexpr int kStepsOfTile = 2;    // steps for which a block stages rows of x at a time
inline constexpr int kLeastLogLanes = 2;  // so that at most eight edges share a warp
inline constexpr int kEdgesOfSum = 512;   // longer sums have a second level

constexpr int channels_of_lane(bool dual) { return dual ? 2 : 4; }

// Of the rows of x (and of its tangent), in elements: two tiles.
constexpr int x_stage_size(int l1, int channels, bool dual) {
  return 2 * kStepsOfTile * 32 * channels * (2 * l1 + 1) * (dual ? 2 : 1);
}

// Of the gradients of the rows of x of a tile, of which each warp has its own, in elements.
constexpr int x_gradient_size(int l1, int channels) { return kStepsOfTile * 32 * channels * (2 * l1 + 1); }

// Of a warp's own shared memory, in elements: M and the components of y that it is made of or, at the ends of the loop
// over edges, a row of outputs or of cotangents.
template <class U>
constexpr int own_size(int channels, bool dual) {
  const int m = kEdgesOfM * (U::m_stride + U::y_stride) * (dual ? 2 : 1);
  return (std::max(m, 32 * channels * (2 * U::largest_l3() + 1)) + 3) / 4 * 4;
}

// Behind it, cotangents that the backward reads for each edge, since registers lack to keep them.
template <class U>
constexpr bool kSharedCotangents = U::D1 >= 5 && U::components(U::count) >= 16;
template <class U>
constexpr int cotangents_size(int channels) {
  return kSharedCotangents<U> ? U::components(U::count) * 32 * channels : 0;
}

}  // namespace eqk::tensor_product_conv
