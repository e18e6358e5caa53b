#pragma once
// What the host and the kernels agree on, free of torch and of CUDA headers: the arguments of each kernel, and what a
// block of a channel kernel holds where.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>

#include "tensor_product/cuda_tables.h"

namespace eqk::tensor_product {

// Of a general kernel, which computes one slot of the result.
struct SlotArguments {
  TableView table;
  Operand in[kSlots];
  void* out;
  std::int64_t out_stride, rows;
  Divisor columns;
  // In the gradient of shared weights rows are cut into so many parts, of so many rows, the first ones of one more.
  // Then out is T[parts, columns].
  std::int64_t parts, rows_of_part, longer_parts;
};

// out[q] = sum over p of partial[p, q]
struct ReduceArguments {
  const void* partial;
  void* out;
  std::int64_t parts, columns;
};

// Of a block of a channel kernel: its threads, its rows, and where the pieces of its shared memory begin, in bytes; the
// words of ChannelView begin at 0.
struct ChannelLayout {
  std::int32_t threads, rows, padded_rows;  // the last: a multiple of kRowsAtOnce
  std::int32_t lane_sums;                   // the gradient of the shared operand is summed over lanes last
  std::int32_t shared_dim, m_stride;        // elements of the shared operand, and from one row's M to the next
  // The shared operand lies [column][row], so that a thread reads as vectors the rows for which it forms a number of M.
  std::int32_t s_stride;
  std::int32_t sums_size, stage_of_lane, x_of_lane;  // elements
  std::int32_t pointers, s, m, sums, stage, x, bytes;
};

inline constexpr int kRowsAtOnce = 8;  // rows for which a thread of a channel kernel forms one number of M at a time

inline constexpr int kTangents = kSlots, kResults = 2 * kSlots;

// Pointers to a row of each operand, tangent and result but those of the shared operand; an odd number, so that the
// rows of a warp lie in different banks.
inline constexpr int kRowPointers = 3 * (kSlots - 1);

// Of a channel kernel, which computes what it is given results for: out, or the gradients, or on duals both.
struct ChannelArguments {
  ChannelView view;
  Operand in[kSlots];
  Result out[kSlots];
  std::int64_t rows;
  std::int32_t channel_mul_ir, out_mul_ir;
  std::int32_t add;  // to what the gradients hold already
  // Bit s: every row of in[s] begins at a multiple of 16 bytes; bits kTangents + s and kResults + s: likewise
  // its tangent and out[s].
  std::int32_t vectors;
  ChannelLayout layout;
};

// The flags of a segment or of a path, of which the table has `flags`; `vectors` as in ChannelArguments.
EQK_HD constexpr int segment_flags(int flags, int vectors, bool mul_ir) {
  const auto flag = [&](int n, int of_mul_ir, int of_planes) {
    return vectors >> n & 1 && flags & kAligned ? mul_ir ? of_mul_ir : of_planes : 0;
  };
  return flags | flag(kChannel, kVectorIn, kPlanesIn) | flag(kTangents + kChannel, kVectorTangent, kPlanesTangent) |
         flag(kResults + kChannel, kVectorOut, kPlanesOut);
}

EQK_HD constexpr std::uint32_t path_flags(std::uint32_t flags, int vectors, bool mul_ir, bool tangent_of_weights,
                                          bool want_weights) {
  const auto flag = [&](int n, std::uint32_t needed, std::uint32_t flag) {
    return vectors >> n & 1 && (flags & needed) == needed ? flag : 0;
  };
  std::uint32_t result = flags | flag(kG, kAligned, mul_ir ? kVectorIn : kPlanesIn) |
                         // What is added to goes by single elements.
                         flag(kResults + kG, kAligned | kFirst, mul_ir ? kVectorOut : kPlanesOut) |
                         flag(kW, kWeighted | kWeightAligned, kVectorW) |
                         flag(kTangents + kW, kWeighted | kWeightAligned, kVectorTangentW) |
                         flag(kResults + kW, kWeighted | kWeightAligned, kVectorResultW);
  if (flags & kWeighted) result |= (tangent_of_weights ? kTangentWeighted : 0) | (want_weights ? kWantWeight : 0);
  return result;
}

// A lane holds packs of adjacent channels: 16 bytes, or half where all operands and results of a path would not fit
// the registers. Of small degrees it holds several: in the backward as many as do not spill, elsewhere as many as do
// not double the time of the compiler.
constexpr int channels_of_pack(int size, bool dual) { return 16 / size / (dual ? 2 : 1); }

constexpr int packs_of_lane(int size, bool dual, bool backward, int degree, int l1) {
  if (size != 4 || dual || degree > 3) return 1;
  return l1 == 0 ? 4 : l1 == 1 && !backward ? 2 : 1;
}

// Of those, in a kernel for one plan, where so many fill a segment: as many as divide them. More than two do not fit
// the registers of its backward.
constexpr int packs_of_slice(int packs, int most, bool backward) {
  most = backward ? std::min(most, 2) : most;
  while (packs % most) --most;
  return most;
}

// Lanes that share a row: their packs are a cache line. Of duals, twice the lanes hold half the rows a warp, and shared
// memory half of M, which is what limits the warps.
constexpr int lanes_of_team(bool dual) { return dual ? 16 : 8; }

// Elements that a lane holds of one segment with channels of at most a degree, in a kernel for up to `most`.
constexpr int channel_tile(int size, bool dual, bool backward, int most, int degree) {
  int components = 0;
  for (int l = 0; l <= degree; ++l)
    components = std::max(components, packs_of_lane(size, dual, backward, most, l) * (2 * l + 1));
  return components * channels_of_pack(size, dual);
}

// Sums of lanes lie [column][lane], columns this far apart: an odd number, so that neither the lanes of a column nor
// the columns of a lane share a bank.
inline constexpr int kSumStride = 33;

// Channel kernels are for degrees up to this one, with fewer registers and so more warps, or up to EQK_LMAX.
inline constexpr int kSmallDegree = std::min(3, EQK_LMAX);

// Those that are compiled: the others would take the compiler many minutes more.
constexpr bool has_channel_kernel(Dtype dtype, int degree, bool dual) {
  if (dtype == Dtype::float32) return degree <= kSmallDegree || !dual;
  return dtype == Dtype::float64 && degree <= kSmallDegree && !dual;
}

// The block with so many warps. `most`: the kernel's degree.
inline ChannelLayout channel_layout(const ChannelView& view, const Tables::Channels& plan, int size, int most,
                                    bool dual, bool backward, int warps, bool lane_sums) {
  const int team = lanes_of_team(dual), parts = dual ? 2 : 1, unit = 16 / size;
  const auto narrow = [](std::int64_t n) {
    return static_cast<std::int32_t>(std::min<std::int64_t>(n, std::numeric_limits<std::int32_t>::max()));
  };
  ChannelLayout to{};
  to.threads = 32 * warps;
  to.rows = to.threads / team;
  to.padded_rows = (to.rows + kRowsAtOnce - 1) / kRowsAtOnce * kRowsAtOnce;
  to.lane_sums = lane_sums;
  to.shared_dim = view.shared_dim;
  // An odd number of 16-byte units: the rows of a warp that spans several start in different banks.
  to.m_stride = view.m_size / unit % 2 ? view.m_size : view.m_size + unit;
  to.s_stride = to.padded_rows + 4;  // columns begin in different banks
  // In whole vectors.
  to.sums_size = backward ? (view.shared_dim * (lane_sums ? kSumStride * warps : to.rows) + 3) / 4 * 4 : 0;
  to.stage_of_lane = channels_of_pack(size, dual) * (2 * plan.staged_degree + 1);
  to.x_of_lane = backward ? parts * channel_tile(size, dual, backward, most, plan.channel_degree) : 0;
  std::int64_t bytes = 0;
  const auto take = [&](std::int64_t more) {
    const std::int32_t begin = narrow(bytes);
    bytes += (more + 15) / 16 * 16;
    return begin;
  };
  take(4ll * view.word_count);
  to.pointers = take(1ll * to.rows * kRowPointers * 8);
  to.s = take(1ll * parts * view.shared_dim * to.s_stride * size);
  to.m = take(1ll * parts * to.padded_rows * to.m_stride * size);
  to.sums = take(1ll * to.sums_size * size);
  to.stage = take(1ll * to.threads * to.stage_of_lane * size);
  to.x = take(1ll * to.threads * to.x_of_lane * size);
  to.bytes = narrow(bytes);
  return to;
}

// The block with most warps; none where not even one fits.
inline std::optional<ChannelLayout> channel_layout(const ChannelView& view, const Tables::Channels& plan, int size,
                                                   int most, bool dual, bool backward) {
  // Every architecture has more; four such blocks fit a multiprocessor of sm_90, with the KiB that each takes beside.
  constexpr int kMost = 56 << 10;
  for (int warps = 4; warps > 0; warps /= 2) {
    const auto fitted = [&](bool lane_sums) {
      return channel_layout(view, plan, size, most, dual, backward, warps, lane_sums);
    };
    // Sums of each lane take less time, where they leave room for four blocks on sm_80.
    ChannelLayout layout = fitted(true);
    if (!dual && layout.bytes > 40 << 10) layout = fitted(false);
    if (layout.bytes <= kMost) return layout;
  }
  return std::nullopt;
}

// A plan with channel kernels of its own.
struct ListedPlan {
  const char *name, *text;
  int kernels;  // bit 2 * backward + dual
};

// A kernel of cuda_channels.cu. Plans: one, a type of cuda_plans.h, or those up to a degree.
template <class T, int degree>
struct AnyPlan;
template <class Plans, bool backward, bool dual>
const void* channel_kernel();

}  // namespace eqk::tensor_product
