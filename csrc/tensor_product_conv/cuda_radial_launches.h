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
  std::variant<RadialEdgesArguments, RadialArguments> arguments;

  bool of_edges() const { return arguments.index() == 0; }
  std::string name() const {
    return std::string("eqk_tensor_product_conv_radial_") + (of_edges() ? "edges_" : "") +
           (parts == 3 ? "f32" : "bf16x3");
  }
  const void* argument() const {
    return std::visit([](const auto& a) { return static_cast<const void*>(&a); }, arguments);
  }
  std::size_t argument_size() const {
    return std::visit([](const auto& a) { return sizeof(a); }, arguments);
  }
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
        steps_((problem.hidden + kRadialDepth - 1) / kRadialDepth) {
    for (const UnitPlan::Block& b : units_->blocks)
      for (const UnitRecord& unit : b.units) {
        const auto segments = segments_of(unit);
        auto set = std::find_if(sets_.begin(), sets_.end(), [&](const SetOfY& s) { return agree(segments, s, true); });
        if (set == sets_.end()) set = sets_.insert(set, {-1, -1, -1, -1});
        for (std::size_t l2 = 0; l2 < segments.size(); ++l2)
          if (segments[l2] >= 0) (*set)[l2] = segments[l2];
      }
  }

  bool covered() const {
    constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
    if (problem_.dual || !Launches::cover(order_of(problem_))) return false;
    for (const Operand& in : problem_.in)
      if (in.stride > kMost / 4) return false;
    for (const UnitPlan::Block& b : units_->blocks)
      if (fitting_units(b) == 0) return false;
    return sets_.size() <= kSetsOfY;
  }

  std::int64_t scratch_bytes() const {
    std::int64_t groups = 0;
    launches_of_units(groups);
    return scratch(nullptr, groups).bytes;
  }

  // In stream order, after that of the order.
  std::vector<RadialLaunch> all(const EdgePlaces& places, void* memory) const {
    std::int64_t groups = 0;
    std::vector<RadialLaunch> result = launches_of_units(groups);
    if (result.empty()) return result;
    const Scratch s = scratch(memory, groups);
    for (RadialLaunch& l : result) {
      auto& a = std::get<RadialArguments>(l.arguments);
      a.group = s.group, a.tile = s.tile, a.operands = s.operands;
    }
    result.insert(result.begin(), launch_of_edges(places, s, groups));
    return result;
  }

 private:
  // A block of units with so many slices of channels in a team.
  struct Block : UnitPlan::Block {
    std::int64_t slices;
    std::int64_t warps() const { return static_cast<std::int64_t>(units.size()); }  // of a slice
  };
  // In bytes: of a slice the matrix and rows of x, and what a warp has of its own.
  struct Memory {
    std::int64_t matrix = 0, x = 0, own = 0;
  };
  struct Scratch {
    std::int32_t* first_quad;
    TileRange* group;
    EdgeTile* tile;
    unsigned char* operands;
    std::int64_t bytes;
  };
  using SetOfY = std::array<std::int32_t, 4>;  // columns of y, by degree

  const DeviceRadialProblem& problem_;
  const RadialDevice device_;
  const UnitPlan* const units_;
  const int parts_;
  const std::int64_t steps_;
  std::vector<SetOfY> sets_;

  static SetOfY segments_of(const UnitRecord& unit) {
    SetOfY segments{-1, -1, -1, -1};
    for (int l2 = kUnitKinds[unit.kind].first_l2; l2 <= kUnitKinds[unit.kind].last_l2; ++l2)
      segments[l2] = unit.y[l2 - kUnitKinds[unit.kind].first_l2];
    return segments;
  }
  // Whether a set has a unit's segments or, if it may still get some, can have them.
  static bool agree(const SetOfY& segments, const SetOfY& set, bool grows) {
    for (std::size_t l2 = 0; l2 < set.size(); ++l2)
      if (segments[l2] >= 0 && set[l2] != segments[l2] && !(grows && set[l2] < 0)) return false;
    return true;
  }
  std::int32_t set_of(const UnitRecord& unit) const {
    std::int32_t set = 0;
    while (!agree(segments_of(unit), sets_[static_cast<std::size_t>(set)], false)) ++set;
    return set;
  }
  std::int32_t sets() const { return static_cast<std::int32_t>(sets_.size()); }

  Scratch scratch(void* memory, std::int64_t groups) const {
    const std::int64_t tiles = first_tile(problem_.edges->count, problem_.edges->num_dst, groups);
    Scratch s{};
    const auto take = [&]<class T>(T*& part, std::int64_t bytes) {
      part = reinterpret_cast<T*>(static_cast<unsigned char*>(memory) + s.bytes);
      s.bytes += (bytes + 15) / 16 * 16;
    };
    take(s.operands, tiles * radial_operand_bytes(static_cast<int>(steps_), parts_, sets()));
    take(s.tile, tiles * static_cast<std::int64_t>(sizeof(EdgeTile)));
    take(s.group, groups * static_cast<std::int64_t>(sizeof(TileRange)));
    take(s.first_quad, 4 * problem_.edges->num_dst);
    return s;
  }

  RadialLaunch launch_of_edges(const EdgePlaces& places, const Scratch& s, std::int64_t groups) const {
    RadialEdgesArguments a{};
    const Operand& h = problem_.in[kHidden];
    a.y = rows_of(problem_.in[kRadialY]), a.h = rows_of(h);
    a.row = places.row, a.edge = places.edge, a.src = places.src;
    a.first_quad = s.first_quad, a.group = s.group, a.tile = s.tile, a.operands = s.operands;
    const Result& out = problem_.out[kRadialG];
    a.out = static_cast<float*>(out.data);
    a.out_stride = out.stride;
    a.out_columns = static_cast<std::int32_t>(problem_.plan->dim[2]);
    a.edges = static_cast<std::int32_t>(problem_.edges->count);
    a.destinations = static_cast<std::int32_t>(problem_.edges->num_dst);
    a.groups = static_cast<std::int32_t>(groups);
    a.hidden = static_cast<std::int32_t>(problem_.hidden);
    a.steps = static_cast<std::int32_t>(steps_);
    a.h_vectors = problem_.hidden % 4 == 0 && fits(h);
    a.sets = sets();
    for (std::size_t n = 0; n < sets_.size(); ++n) std::copy(sets_[n].begin(), sets_[n].end(), a.y_column[n]);
    return {parts_, groups, kThreadsOfGroup, 0, a};
  }

  // Of the kernel of units, and how many groups there are.
  std::vector<RadialLaunch> launches_of_units(std::int64_t& groups) const {
    std::vector<Block> blocks;
    for (const UnitPlan::Block& b : units_->blocks)
      for (std::size_t n = 0, size = fitting_units(b); n < b.units.size(); n += size) {
        Block part{{b.x,
                    {b.units.begin() + static_cast<std::ptrdiff_t>(n),
                     b.units.begin() + static_cast<std::ptrdiff_t>(std::min(n + size, b.units.size()))}},
                   1};
        part.slices = slices(part);
        blocks.push_back(std::move(part));
      }
    std::stable_sort(blocks.begin(), blocks.end(), [](const Block& a, const Block& b) {
      return std::pair(a.warps(), a.slices) > std::pair(b.warps(), b.slices);
    });
    std::vector<RadialLaunch> result;
    const std::int64_t destinations = problem_.edges->num_dst;
    if (destinations > 0)
      for (std::size_t n = 0; n < blocks.size();) result.push_back(launch(blocks, n));
    // The last tile of a group is half full on average: of twenty, unless that leaves warps without work.
    groups = (problem_.edges->count + destinations) / (20 * kRadialEdges);
    for (const RadialLaunch& l : result) {
      const auto& a = std::get<RadialArguments>(l.arguments);
      const std::int64_t warps = l.grid * a.warps * a.slices;
      groups = std::max(groups, (kRadialWarps * device_.multiprocessors + warps - 1) / warps);
    }
    groups = std::min(groups, destinations);
    for (RadialLaunch& l : result) share(l, groups);
    return result;
  }

  // For the first units of a block.
  Memory memory_of(const UnitPlan::Block& block, std::int64_t units) const {
    Memory memory;
    memory.x = radial_x_bytes(block.x.l);
    for (std::int64_t n = 0; n < units; ++n) {
      const UnitRecord& unit = block.units[static_cast<std::size_t>(n)];
      memory.matrix += slot_count(unit.slots) * steps_ * radial_step_bytes(parts_);
      with_kind(unit.kind, [&](auto kind) {
        memory.own = std::max<std::int64_t>(memory.own, kRadialOwnBytes<Unit<decltype(kind)::value>>);
      });
    }
    return memory;
  }
  std::int64_t team_bytes(const Memory& memory, std::int64_t warps, std::int64_t slices) const {
    return slices * (memory.x + warps * memory.own) + radial_operand_bytes(static_cast<int>(steps_), parts_, sets());
  }
  // Of a block, none where it has no room for one.
  std::int64_t teams(const Memory& memory, std::int64_t warps, std::int64_t slices) const {
    return std::min(
        kRadialWarps / (warps * slices),
        std::max<std::int64_t>(0, device_.shared - slices * memory.matrix) / team_bytes(memory, warps, slices));
  }

  // How many of a block's units may share one; all if they can.
  std::size_t fitting_units(const UnitPlan::Block& block) const {
    std::size_t units = block.units.size();
    for (; units > 0; --units) {
      const auto warps = static_cast<std::int64_t>(units);
      if (teams(memory_of(block, warps), warps, 1) > 0) break;
    }
    return units;
  }

  // As many as divide those of the segment and cost no warps: they share the operands of a tile.
  std::int64_t slices(const Block& block) const {
    const std::int64_t of_segment = (block.x.mul + kRadialChannels - 1) / kRadialChannels;
    const Memory memory = memory_of(block, block.warps());
    std::int64_t slices = 1;
    for (std::int64_t n = 2; n * block.warps() <= kRadialWarps; n *= 2)
      if (of_segment % n == 0 && n * teams(memory, block.warps(), n) >= teams(memory, block.warps(), 1)) slices = n;
    return slices;
  }

  // Of the blocks from n on that have as many units and slices.
  RadialLaunch launch(const std::vector<Block>& blocks, std::size_t& n) const {
    RadialLaunch launch{};
    launch.parts = parts_;
    auto& a = launch.arguments.emplace<RadialArguments>();
    const Operand &x = problem_.in[kRadialX], &matrix = problem_.in[kMatrix];
    const Result& out = problem_.out[kRadialG];
    a.x = rows_of(x);
    a.matrix = static_cast<const float*>(matrix.value);
    a.matrix_stride = matrix.stride;
    a.out = static_cast<float*>(out.data);
    a.out_stride = out.stride;
    a.hidden = static_cast<std::int32_t>(problem_.hidden);
    a.steps = static_cast<std::int32_t>(steps_);
    a.sets = sets();
    a.x_mul_ir = problem_.plan->layout[0] == Layout::mul_ir;
    a.out_mul_ir = problem_.plan->layout[2] == Layout::mul_ir;
    a.x_vectors = a.x_mul_ir && units_->x_aligned && fits(x);
    a.matrix_vectors = units_->w_aligned && fits(matrix);
    a.out_vectors = a.out_mul_ir && units_->out_aligned && fits(out.data, out.stride);
    const std::int64_t warps = blocks[n].warps(), slices = blocks[n].slices;
    std::int32_t tiles = 0, units = 0;
    Memory most;
    for (; n < blocks.size() && blocks[n].warps() == warps && blocks[n].slices == slices &&
           units + warps <= kUnitsOfLaunch;
         ++n) {
      const Memory memory = memory_of(blocks[n], warps);
      const Memory both{std::max(most.matrix, memory.matrix), std::max(most.x, memory.x),
                        std::max(most.own, memory.own)};
      if (a.segments > 0 && teams(both, warps, slices) == 0) break;
      most = both;
      XRecord& segment = a.segment[a.segments++] = blocks[n].x;
      segment.first_tile = tiles;
      segment.first_unit = units;
      tiles += (segment.mul + kRadialChannels - 1) / kRadialChannels / static_cast<std::int32_t>(slices);
      for (const UnitRecord& unit : blocks[n].units) {
        a.unit[units] = unit;
        a.unit[units++].y[0] = kComponentsOfSet * set_of(unit);
      }
    }
    a.teams = static_cast<std::int32_t>(teams(most, warps, slices));
    a.slices = static_cast<std::int32_t>(slices);
    a.warps = static_cast<std::int32_t>(warps);
    a.matrix_bytes = static_cast<std::int32_t>(most.matrix);
    a.team_bytes = static_cast<std::int32_t>(team_bytes(most, warps, slices));
    a.own_bytes = static_cast<std::int32_t>(most.own);
    launch.grid = tiles;
    return launch;
  }

  // Groups among the blocks of a tile of channels, of which `launch` has one, and their teams.
  void share(RadialLaunch& launch, std::int64_t groups) const {
    auto& a = std::get<RadialArguments>(launch.arguments);
    // Each block makes its part of the matrix anew: no more of them than keep all multiprocessors busy to the end.
    constexpr std::int64_t kWaves = 4;
    const std::int64_t teams = std::min<std::int64_t>(a.teams, groups);
    const std::int64_t blocks =
        std::min((groups + teams - 1) / teams,
                 std::max<std::int64_t>(1, (kWaves * device_.multiprocessors + launch.grid - 1) / launch.grid));
    a.groups = static_cast<std::int32_t>(groups);
    a.teams = static_cast<std::int32_t>(teams);
    a.blocks = static_cast<std::int32_t>(blocks);
    launch.grid *= blocks;
    launch.block = static_cast<int>(32 * teams * a.slices * a.warps);
    launch.shared = static_cast<int>(a.slices * a.matrix_bytes + teams * a.team_bytes);
  }
};

}  // namespace eqk::tensor_product_conv
