#pragma once
// The launches of the convolution with weights h a, free of torch and of CUDA headers.
#include "tensor_product_conv/cuda_launches.h"
#include "tensor_product_conv/cuda_radial.h"

namespace eqk::tensor_product_conv {

struct DeviceRadialProblem : GraphProblem<DeviceEdges, kRadialSlots> {
  std::int64_t hidden = 0;
};

// The convolution whose gradients are those of a problem with weights h a, but for the weights.
inline DeviceProblem with_weights(const DeviceRadialProblem& problem) {
  return {problem.plan,
          problem.dtype,
          problem.dual,
          problem.edges,
          {problem.in[kRadialX], problem.in[kRadialY], {}, problem.in[kRadialG]},
          {problem.out[kRadialX], problem.out[kRadialY], {}, problem.out[kRadialG]}};
}

// What launches depend on of a device: its multiprocessors, and the shared memory that a block may have.
struct RadialDevice {
  int multiprocessors, shared;
};

struct RadialLaunch {
  int parts;  // numbers of bfloat16 that stand for one of float32
  std::int64_t grid;
  int block, shared;
  RadialArguments radial;

  std::string name() const { return std::string("eqk_tensor_product_conv_radial_") + (parts == 3 ? "f32" : "bf16x3"); }
  const void* argument() const { return &radial; }
  std::size_t argument_size() const { return sizeof(radial); }
};

// Chooses the launches of a forward.
class RadialLaunches {
 public:
  // Those of the edges' order, whose scratch memory this reads.
  static DeviceProblem order_of(const DeviceRadialProblem& problem) {
    return {problem.plan, problem.dtype, false, problem.edges, {}, {}};
  }

  // exact: to float32, with three numbers of bfloat16 for one; else with two.
  RadialLaunches(const DeviceRadialProblem& problem, bool exact, const RadialDevice& device)
      : problem_(problem),
        device_(device),
        units_(cached_units(*problem.plan)),
        parts_(exact ? 3 : 2),
        steps_((problem.hidden + kRadialDepth - 1) / kRadialDepth) {}

  bool covered() const {
    constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
    if (problem_.dual || !Launches::cover(order_of(problem_))) return false;
    for (const Operand& in : problem_.in)
      if (in.stride > kMost / 4) return false;
    for (const UnitPlan::Block& b : units_->blocks)
      if (fitting_units(b) == 0) return false;
    return true;
  }

  // In stream order, after that of the order.
  std::vector<RadialLaunch> all(const EdgePlaces& places) const {
    std::vector<UnitPlan::Block> blocks;
    for (const UnitPlan::Block& b : units_->blocks)
      for (std::size_t n = 0, size = fitting_units(b); n < b.units.size(); n += size)
        blocks.push_back({b.x,
                          {b.units.begin() + static_cast<std::ptrdiff_t>(n),
                           b.units.begin() + static_cast<std::ptrdiff_t>(std::min(n + size, b.units.size()))}});
    std::stable_sort(blocks.begin(), blocks.end(),
                     [](const auto& a, const auto& b) { return a.units.size() > b.units.size(); });
    std::vector<RadialLaunch> result;
    if (problem_.edges->num_dst > 0)
      for (std::size_t n = 0; n < blocks.size();) result.push_back(launch(places, blocks, n));
    return result;
  }

 private:
  struct Memory {
    std::int64_t matrix = 0, team = 0, own = 0;
  };

  const DeviceRadialProblem& problem_;
  const RadialDevice device_;
  const std::shared_ptr<const UnitPlan> units_;
  const int parts_;
  const std::int64_t steps_;

  // Of shared memory, in bytes, for the first units of a block.
  Memory memory_of(const UnitPlan::Block& block, std::size_t units) const {
    Memory memory;
    for (std::size_t n = 0; n < units; ++n) {
      memory.matrix += slot_count(block.units[n].slots) * steps_ * radial_step_bytes(parts_);
      with_kind(block.units[n].kind, [&](auto kind) {
        memory.own = std::max<std::int64_t>(memory.own, kRadialOwnBytes<Unit<decltype(kind)::value>>);
      });
    }
    memory.team =
        radial_x_bytes(block.x.l) + radial_h_bytes(steps_, parts_) + static_cast<std::int64_t>(units) * memory.own;
    return memory;
  }

  // How many of a block's units may share one; all if they can.
  std::size_t fitting_units(const UnitPlan::Block& block) const {
    std::size_t units = block.units.size();
    for (; units > 0; --units) {
      const Memory memory = memory_of(block, units);
      if (memory.matrix + memory.team <= device_.shared) break;
    }
    return units;
  }

  // Of the blocks from n on that have as many units.
  RadialLaunch launch(const EdgePlaces& places, const std::vector<UnitPlan::Block>& blocks, std::size_t& n) const {
    RadialLaunch launch{};
    launch.parts = parts_;
    RadialArguments& a = launch.radial;
    const Operand &x = problem_.in[kRadialX], &h = problem_.in[kHidden], &matrix = problem_.in[kMatrix];
    const Result& out = problem_.out[kRadialG];
    a.x = rows_of(x), a.y = rows_of(problem_.in[kRadialY]), a.h = rows_of(h);
    a.matrix = static_cast<const float*>(matrix.value);
    a.matrix_stride = matrix.stride;
    a.out = static_cast<float*>(out.data);
    a.out_stride = out.stride;
    a.row = places.row, a.edge = places.edge, a.src = places.src;
    a.destinations = static_cast<std::int32_t>(problem_.edges->num_dst);
    a.hidden = static_cast<std::int32_t>(problem_.hidden);
    a.steps = static_cast<std::int32_t>(steps_);
    a.x_mul_ir = problem_.plan->layout[0] == Layout::mul_ir;
    a.out_mul_ir = problem_.plan->layout[2] == Layout::mul_ir;
    a.x_vectors = a.x_mul_ir && units_->x_aligned && fits(x);
    a.matrix_vectors = units_->w_aligned && fits(matrix);
    a.out_vectors = a.out_mul_ir && units_->out_aligned && fits(out.data, out.stride);
    a.h_vectors = problem_.hidden % 4 == 0 && fits(h);
    const std::size_t warps = blocks[n].units.size();
    std::int32_t tiles = 0, units = 0;
    Memory most;
    for (; n < blocks.size() && blocks[n].units.size() == warps && units + warps <= kUnitsOfLaunch; ++n) {
      const Memory memory = memory_of(blocks[n], warps);
      if (a.segments > 0 && std::max(most.matrix, memory.matrix) + std::max(most.team, memory.team) > device_.shared)
        break;
      most = {std::max(most.matrix, memory.matrix), std::max(most.team, memory.team), std::max(most.own, memory.own)};
      XRecord& segment = a.segment[a.segments++] = blocks[n].x;
      segment.first_tile = tiles;
      segment.first_unit = units;
      tiles += (segment.mul + kRadialChannels - 1) / kRadialChannels;
      for (const UnitRecord& unit : blocks[n].units) a.unit[units++] = unit;
    }
    a.warps = static_cast<std::int32_t>(warps);
    a.matrix_bytes = static_cast<std::int32_t>(most.matrix);
    a.team_bytes = static_cast<std::int32_t>(most.team);
    a.own_bytes = static_cast<std::int32_t>(most.own);
    // Each block makes its part of the matrix anew: no more of them than keep all multiprocessors busy to the end.
    constexpr int kWaves = 4;
    a.teams = static_cast<std::int32_t>(
        std::min<std::int64_t>({kRadialWarps / a.warps, (device_.shared - most.matrix) / most.team, a.destinations}));
    a.blocks = std::min((a.destinations + a.teams - 1) / a.teams,
                        std::max(1, (kWaves * device_.multiprocessors + tiles - 1) / tiles));
    launch.grid = static_cast<std::int64_t>(tiles) * a.blocks;
    launch.block = 32 * a.teams * a.warps;
    launch.shared = static_cast<int>(most.matrix + a.teams * most.team);
    return launch;
  }
};

}  // namespace eqk::tensor_product_conv
