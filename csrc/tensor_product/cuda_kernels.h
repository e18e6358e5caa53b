#pragma once
// What the host and the kernels agree on, free of torch and of CUDA headers: the arguments of each kernel, and the
// launches that solve a problem.
#include <algorithm>
#include <bit>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

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

// Where the pieces of a block's shared memory begin, in bytes; the words of ChannelView begin at 0.
struct ChannelSharedMemory {
  std::int32_t rows;  // of a block, rounded up to a multiple of kRowsAtOnce
  // The shared operand lies [column][row], so that a thread reads as vectors the rows for which it forms a number of M.
  std::int32_t s_stride;
  std::int32_t sums_of_warp, stage_of_lane, x_of_lane;  // elements
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
  std::int32_t block_rows, m_stride;
  std::int32_t channel_mul_ir, out_mul_ir;
  std::int32_t add;        // to what the gradients hold already
  std::int32_t lane_sums;  // the gradient of the shared operand is summed over lanes last
  // Bit s: every row of in[s] begins at a multiple of 16 bytes; bits kTangents + s and kResults + s: likewise
  // its tangent and out[s].
  std::int32_t vectors;
  ChannelSharedMemory shared_memory;
};

// A lane holds packs of adjacent channels: 16 bytes, or half where all operands and results of a path would not fit
// the registers. Of small degrees it holds several: in the backward as many as do not spill, elsewhere as many as do
// not double the time of the compiler.
constexpr int channels_of_pack(int size, bool dual) { return 16 / size / (dual ? 2 : 1); }

constexpr int packs_of_lane(int size, bool dual, bool backward, int degree, int l1) {
  if (size != 4 || dual || degree > 3) return 1;
  return l1 == 0 ? 4 : l1 == 1 && !backward ? 2 : 1;
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

enum class Kernel { general, reduce, forward, backward };

struct Launch {
  Kernel kernel;
  Slot slot;  // general
  Dtype dtype;
  bool dual;
  bool partial;  // general: writes partial sums over rows
  int degree;    // forward, backward: largest degree of the kernel
  std::int64_t grid;
  int block, shared;
  SlotArguments slot_arguments;
  ReduceArguments reduce;
  ChannelArguments channel_arguments;

  std::string name() const {
    static constexpr const char* kSlot[] = {"x", "y", "w", "g"};
    static constexpr const char* kDtype[] = {"f32", "f64", "f16", "bf16"};
    const std::string dtype_name = kDtype[static_cast<int>(dtype)], prefix = "eqk_tensor_product_";
    switch (kernel) {
      case Kernel::reduce:
        return prefix + "reduce_" + dtype_name;
      case Kernel::general:
        return prefix + "general_" + kSlot[slot] + (partial ? "_partial" : "") + (dual ? "_dual_" : "_") + dtype_name;
      default:
        return prefix + (kernel == Kernel::forward ? "forward" : "backward") + (dual ? "_dual_" : "_") + dtype_name +
               "_l" + std::to_string(degree);
    }
  }

  const void* argument() const {
    switch (kernel) {
      case Kernel::reduce:
        return &reduce;
      case Kernel::general:
        return &slot_arguments;
      default:
        return &channel_arguments;
    }
  }
  std::size_t argument_size() const {
    switch (kernel) {
      case Kernel::reduce:
        return sizeof(reduce);
      case Kernel::general:
        return sizeof(slot_arguments);
      default:
        return sizeof(channel_arguments);
    }
  }
};

inline constexpr std::int64_t kMaxGrid = (std::int64_t{1} << 31) - 1;

inline std::int64_t accumulator_size(Dtype dtype) { return dtype == Dtype::float64 ? 8 : 4; }

// How many partial sums the gradient of shared weights takes: a function of the problem alone, so that results do not
// depend on the device.
inline std::int64_t weight_parts(const Problem& problem) {
  if (!problem.out[kW].data || problem.plan->weights != Weights::shared) return 0;
  constexpr std::int64_t kPartialBytes = 32 << 20, kRowsPerPart = 16, kMaxParts = 1024;
  const std::int64_t bytes = std::max<std::int64_t>(1, problem.plan->weight_numel * accumulator_size(problem.dtype));
  return std::clamp<std::int64_t>(std::min(problem.rows / kRowsPerPart, kPartialBytes / bytes), 1, kMaxParts);
}

// Of the scratch memory that the launches of a problem share.
inline std::int64_t scratch_bytes(const Problem& problem) {
  return weight_parts(problem) * problem.plan->weight_numel * accumulator_size(problem.dtype);
}

// Chooses the launches of a problem.
class Launches {
 public:
  // `base`: where the bytes of the tables lie; `partial` holds scratch_bytes(problem).
  Launches(const Problem& problem, const Tables& tables, const void* base, void* partial)
      : problem_(problem), tables_(tables), base_(base), partial_(partial) {}

  // In stream order.
  std::vector<Launch> all() {
    bool by_channels[kSlots] = {};
    if (problem_.rows > 0) {
      // The gradient of shared weights sums over rows; no row of a channel kernel owns it.
      const bool gradients[] = {problem_.out[kX].data != nullptr, problem_.out[kY].data != nullptr,
                                problem_.out[kW].data && problem_.plan->weights != Weights::shared};
      const bool any = gradients[kX] || gradients[kY] || gradients[kW], out = problem_.out[kG].data;
      if (any && channels(Kernel::backward, problem_.dual, problem_.in[kG].value, false)) {
        std::copy(std::begin(gradients), std::end(gradients), by_channels);
        by_channels[kG] = out && problem_.dual;
        // The gradients are linear in g: its tangent contributes as g itself does without tangents.
        if (problem_.dual && problem_.in[kG].tangent) channels(Kernel::backward, false, problem_.in[kG].tangent, true);
      }
      if (out && !by_channels[kG]) by_channels[kG] = channels(Kernel::forward, problem_.dual, nullptr, false);
    }
    for (const Slot slot : {kX, kY, kW, kG})
      if (problem_.out[slot].data && !by_channels[slot]) general(slot);
    return std::move(result_);
  }

 private:
  const Problem& problem_;
  const Tables& tables_;
  const void* base_;
  void* partial_;
  std::vector<Launch> result_;

  static constexpr int kThreads = 128;

  static std::int64_t blocks(std::int64_t threads) { return std::min(kMaxGrid, (threads + kThreads - 1) / kThreads); }

  Launch& add(Kernel kernel) {
    Launch& launch = result_.emplace_back();
    launch.kernel = kernel;
    launch.dtype = problem_.dtype;
    launch.block = kThreads;
    return launch;
  }

  void general(Slot slot) {
    const std::int64_t columns[kSlots] = {problem_.plan->dim[0], problem_.plan->dim[1], problem_.plan->weight_numel,
                                          problem_.plan->dim[2]};
    const std::int64_t parts = slot == kW ? weight_parts(problem_) : 0;
    const std::int64_t threads = (parts ? parts : problem_.rows) * columns[slot];
    if (threads == 0) return;
    Launch& launch = add(Kernel::general);
    launch.slot = slot;
    launch.dual = problem_.dual;
    launch.partial = parts > 0;
    launch.grid = blocks(threads);
    SlotArguments& a = launch.slot_arguments;
    a.table = tables_.general_at(base_);
    std::copy(problem_.in.begin(), problem_.in.end(), a.in);
    a.out = parts ? partial_ : problem_.out[slot].data;
    a.out_stride = problem_.out[slot].stride;
    a.columns = Divisor(columns[slot]);
    a.rows = problem_.rows;
    a.parts = parts;
    if (!parts) return;
    a.rows_of_part = a.rows / parts;
    a.longer_parts = a.rows % parts;
    Launch& reduce = add(Kernel::reduce);
    reduce.grid = blocks(columns[slot]);
    reduce.reduce = {partial_, problem_.out[kW].data, parts, columns[slot]};
  }

  // Adds the launch of a channel kernel, if one runs the problem. `g`: the cotangent, for backward.
  bool channels(Kernel kernel, bool dual, const void* g, bool add_to_results) {
    const Tables::Channels& plan = tables_.channels();
    if (!plan.covered || !has_channel_kernel(problem_.dtype, plan.degree, dual)) return false;
    const bool backward = kernel == Kernel::backward;
    const int size = static_cast<int>(accumulator_size(problem_.dtype));
    Launch launch{};
    launch.kernel = kernel;
    launch.dtype = problem_.dtype;
    launch.dual = dual;
    launch.degree = plan.degree <= kSmallDegree ? kSmallDegree : EQK_LMAX;
    ChannelArguments& a = launch.channel_arguments;
    a.view = tables_.channels_at(base_);
    std::copy(problem_.in.begin(), problem_.in.end(), a.in);
    if (plan.mirrored) std::swap(a.in[kX], a.in[kY]);
    a.in[kG] = {g, nullptr, add_to_results ? problem_.in[kG].tangent_stride : problem_.in[kG].stride, 0};
    if (backward) {
      std::copy(problem_.out.begin(), problem_.out.end(), a.out);
      if (plan.mirrored) std::swap(a.out[kX], a.out[kY]);
      if (problem_.plan->weights == Weights::shared) a.out[kW] = {};
      if (!dual) a.out[kG] = {};
    } else {
      a.out[kG] = problem_.out[kG];
    }
    a.rows = problem_.rows;
    a.channel_mul_ir = problem_.plan->layout[plan.mirrored ? 1 : 0] == Layout::mul_ir;
    a.out_mul_ir = problem_.plan->layout[2] == Layout::mul_ir;
    a.add = add_to_results;
    for (int slot = 0; slot < kSlots; ++slot) {
      const auto bit = [&](const void* base, std::int64_t stride, int n) {
        const bool aligned = reinterpret_cast<std::uintptr_t>(base) % 16 == 0 && stride * size % 16 == 0;
        a.vectors |= static_cast<int>(base && aligned) << n;
      };
      bit(a.in[slot].value, a.in[slot].stride, slot);
      bit(a.in[slot].tangent, a.in[slot].tangent_stride, kTangents + slot);
      // What is added to existing results goes by single elements.
      if (!add_to_results) bit(a.out[slot].data, a.out[slot].stride, kResults + slot);
    }
    // An odd number of 16-byte units: the rows of a warp that spans several start in different banks.
    const int unit = 16 / size;
    a.m_stride = a.view.m_size / unit % 2 ? a.view.m_size : a.view.m_size + unit;
    for (int warps = kThreads / 32; warps > 0; warps /= 2) {
      // Sums of each lane take less time, where they leave room for four blocks on sm_80.
      a.lane_sums = true;
      a.lane_sums = fit_rows(a, warps, size, launch.degree, dual, backward, plan) <= 40 << 10 || dual;
      // Every architecture has more; four such blocks fit a multiprocessor of sm_90, with the KiB that each takes
      // beside.
      constexpr std::int64_t kMost = 56 << 10;
      if (fit_rows(a, warps, size, launch.degree, dual, backward, plan) > kMost) continue;
      launch.block = 32 * warps;
      launch.shared = a.shared_memory.bytes;
      launch.grid = std::min(kMaxGrid, (a.rows + a.block_rows - 1) / a.block_rows);
      result_.push_back(launch);
      return true;
    }
    return false;
  }

  // Sets the rows of a block of so many warps and its shared memory, and returns the bytes of that.
  static std::int64_t fit_rows(ChannelArguments& a, int warps, int size, int most, bool dual, bool backward,
                               const Tables::Channels& plan) {
    const int team = lanes_of_team(dual);
    const std::int64_t rows = warps * 32 / team, parts = dual ? 2 : 1;
    const std::int64_t padded = (rows + kRowsAtOnce - 1) / kRowsAtOnce * kRowsAtOnce;
    ChannelSharedMemory& to = a.shared_memory;
    const auto narrow = [](std::int64_t n) { return static_cast<std::int32_t>(n); };
    to.rows = narrow(padded);
    to.s_stride = narrow(padded + 4);  // columns begin in different banks
    // In whole vectors.
    to.sums_of_warp = backward ? (a.view.shared_dim * (a.lane_sums ? kSumStride : 32 / team) + 3) / 4 * 4 : 0;
    to.stage_of_lane = channels_of_pack(size, dual) * (2 * plan.staged_degree + 1);
    to.x_of_lane = narrow(backward ? parts * channel_tile(size, dual, backward, most, plan.channel_degree) : 0);
    std::int64_t bytes = 0;
    const auto take = [&](std::int64_t more) {
      const auto begin = narrow(bytes);
      bytes += (more + 15) / 16 * 16;
      return begin;
    };
    take(4ll * a.view.word_count);
    to.pointers = take(rows * kRowPointers * 8);
    to.s = take(parts * a.view.shared_dim * to.s_stride * size);
    to.m = take(parts * padded * a.m_stride * size);
    to.sums = take(1ll * warps * to.sums_of_warp * size);
    to.stage = take(32ll * warps * to.stage_of_lane * size);
    to.x = take(32ll * warps * to.x_of_lane * size);
    to.bytes = narrow(bytes);
    a.block_rows = narrow(rows);
    return bytes;
  }
};

}  // namespace eqk::tensor_product
