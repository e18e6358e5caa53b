#pragma once
// What the host and the kernels of the convolution with weights h a agree on, free of torch and of CUDA headers.
//
// Weights are products on tensor cores, of the transposed matrix with features: 16 channels of a path by 8 edges. The
// numbers are sums of two or three of bfloat16, whose products are added up in float32: all but the smallest. A warp
// runs one unit for 32 channels of one destination, on 24 edges at a time. The warps of a team do so for the units of
// one segment of x, whose rows they share. The teams of a block run destinations one after the other, so that the
// block's part of the matrix stays in shared memory.
#include "tensor_product_conv/cuda_units.h"

namespace eqk::tensor_product_conv {

inline constexpr int kRadialChannels = 32;  // of a warp: two tiles of 16
inline constexpr int kTilesOfEdges = 3;     // of 8
inline constexpr int kRadialEdges = 8 * kTilesOfEdges;
inline constexpr int kRadialDepth = 16;  // features of a step of the product
inline constexpr int kRadialWarps = 8;   // of a block, at most: 255 registers a thread

struct RadialArguments {
  Rows x, y, h;
  const float *matrix;
  std::int64_t matrix_stride;
  float *out;
  std::int64_t out_stride;
  // By the place of an edge in the order of destinations; row[d] to row[d + 1] are the places of destination d.
  const std::int32_t *row, *edge, *src;
  std::int32_t destinations, hidden, steps;  // steps: of the product
  std::int32_t x_mul_ir, out_mul_ir;
  // Whether memory and registers exchange vectors: of rows of x, of the matrix, of features, of results.
  std::int32_t x_vectors, matrix_vectors, h_vectors, out_vectors;
  std::int32_t segments;
  std::int32_t blocks;                               // for each tile of channels
  std::int32_t teams, warps;                         // of a block, of a team
  std::int32_t matrix_bytes, team_bytes, own_bytes;  // of shared memory; own_bytes: of a warp
  XRecord segment[kUnitsOfLaunch];
  UnitRecord unit[kUnitsOfLaunch];
};
static_assert(sizeof(RadialArguments) <= 4096, "more than a kernel's parameters may take");

constexpr int slot_count(std::int32_t slots) {
  int n = 0;
  for (; slots; slots &= slots - 1) ++n;
  return n;
}

// Of the matrix, in bytes: what a step of the product reads for a slot of a warp's 32 channels.
constexpr int radial_step_bytes(int parts) { return 2 * parts * 32 * 16; }

// Of an edge's row of x in shared memory, in elements: four more than its channels take, so that lanes that read
// adjacent edges at once find them in different banks.
constexpr int radial_x_row(int l1) { return kRadialChannels * (2 * l1 + 1) + 4; }

// Of an edge's features in shared memory, in pairs of words, one for each step, part and lane of four: an odd number of
// fours, for the banks.
constexpr int radial_h_row(int steps, int parts) { return 4 * (steps * parts | 1); }

constexpr int radial_x_bytes(int l1) { return 4 * kRadialEdges * radial_x_row(l1); }
constexpr int radial_h_bytes(int steps, int parts) { return 8 * kRadialEdges * radial_h_row(steps, parts); }

// Of an edge's components of y, in elements: an odd number of fours.
template <class U>
inline constexpr int kRadialYRow = 4 * ((U::y_size + 3) / 4 | 1);

// From the sums of one of four lanes that have the same channels to those of the next, of D components: eight more
// than the channels take, for the banks.
constexpr EQK_HD int radial_sums(int D) { return kRadialChannels * D + 8; }

// Of a warp's own shared memory: components of y or, afterwards, sums of a slot.
template <class U>
inline constexpr int kRadialOwnBytes =
    4 * std::max(kRadialEdges * kRadialYRow<U>, 4 * radial_sums(2 * U::largest_l3() + 1));

}  // namespace eqk::tensor_product_conv
