#pragma once
// The launches that solve a problem, free of torch and of CUDA headers.
#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "cuda_plans.h"
#include "tensor_product/cuda_kernels.h"

namespace eqk::tensor_product {

// The plan among those that have kernels of their own in this build, or null.
inline const ListedPlan* listed_plan(const Plan& plan) {
  for (const ListedPlan& listed : kListedPlans)
    if (*cached_plan(listed.text) == plan) return &listed;
  return nullptr;
}

enum class Kernel { general, reduce, forward, backward };

struct Launch {
  Kernel kernel;
  Slot slot;  // general
  Dtype dtype;
  bool dual;
  bool partial;              // general: writes partial sums over rows
  int degree;                // forward, backward: largest degree of the kernel
  const ListedPlan* listed;  // likewise, if the kernel is of this plan
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
               "_" + (listed ? listed->name : "l" + std::to_string(degree));
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
  // `listed`: listed_plan of the problem's plan, or null for the kernels of any plan. `base`: where the bytes of the
  // tables lie; `partial` holds scratch_bytes(problem).
  Launches(const Problem& problem, const Tables& tables, const ListedPlan* listed, const void* base, void* partial)
      : problem_(problem), tables_(tables), listed_(listed), base_(base), partial_(partial) {}

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
  const ListedPlan* const listed_;
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
    if (runs_listed(launch)) {
      launch.listed = listed_;
      a.view.word_count = 0;  // what the words say is in the code
    }
    const auto layout = channel_layout(a.view, plan, size, launch.degree, dual, backward);
    if (!layout) return false;
    a.layout = *layout;
    launch.block = layout->threads;
    launch.shared = layout->bytes;
    launch.grid = std::min(kMaxGrid, (a.rows + layout->rows - 1) / layout->rows);
    result_.push_back(launch);
    return true;
  }

  // Whether the plan's own kernel, if it has one, can run a launch: it knows no missing weight, moves vectors alone,
  // adds to nothing, and has a block for all rows.
  bool runs_listed(const Launch& launch) const {
    if (!listed_ || launch.dtype != Dtype::float32) return false;
    const ChannelArguments& a = launch.channel_arguments;
    const bool backward = launch.kernel == Kernel::backward;
    const auto vectors = [&](const void* base, int n) { return !base || a.vectors >> n & 1; };
    bool fits = listed_->kernels >> (2 * backward + launch.dual) & 1 && !a.add && a.rows <= kMaxGrid && a.in[kW].value;
    if (launch.dual) fits = fits && a.in[kW].tangent;
    for (const Slot slot : {static_cast<Slot>(kChannel), kW, kG})
      fits = fits && vectors(a.in[slot].value, slot) && vectors(a.in[slot].tangent, kTangents + slot) &&
             vectors(a.out[slot].data, kResults + slot);
    return fits;
  }
};

}  // namespace eqk::tensor_product
