#pragma once
// The launches that solve a problem on the edges of a graph, free of torch and of CUDA headers.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/cached.h"
#include "tensor_product/lowered.h"
#include "tensor_product_conv/cuda_units.h"

namespace eqk::tensor_product_conv {

// Indices on the device, int32 or int64 (`wide`).
struct DeviceIndices {
  const void* data = nullptr;
  std::int64_t stride = 0;
  bool wide = false;
};

struct DeviceEdges {
  std::int64_t count = 0, num_src = 0, num_dst = 0;
  DeviceIndices src, dst, by_dst;
};

using DeviceProblem = GraphProblem<DeviceEdges, kSlots>;

// A plan cut into units; a block a list of units of one segment of x.
struct UnitPlan {
  struct Block {
    XRecord x;
    std::vector<UnitRecord> units;
  };
  bool covered = false;
  // Whether the segments of x, those of weights and of results, and their channels are multiples of four elements.
  bool x_aligned = true, w_aligned = true, out_aligned = true;
  std::vector<Block> blocks;
  std::int64_t most_tiles = 0;  // of a launch, at most

  // Of each path: mode uvu or uvuv with one channel of y, an output of its own.
  explicit UnitPlan(const Plan& plan) {
    const tensor_product::ChannelPlan lowered = tensor_product::lower_channels(plan, kUnitDegree);
    constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
    if (lowered.paths.empty() || lowered.mirrored || !lowered.out_segments.empty() || !lowered.out_untouched.empty() ||
        std::max({plan.dim[0], plan.dim[1], plan.dim[2], plan.weight_numel}) > kMost)
      return;
    for (const tensor_product::PaddedSegment& s : lowered.c_segments) {
      std::vector<UnitRecord> units;
      for (const tensor_product::ChannelPath& p : lowered.paths) {
        if (p.c_scratch != s.scratch) continue;
        add(units, p);
        const bool channels = p.channels % 4 == 0;
        x_aligned = x_aligned && channels && s.memory.offset % 4 == 0;
        w_aligned = w_aligned && channels && p.weighted && p.weight_offset % 4 == 0;
        out_aligned = out_aligned && channels && p.out.offset % 4 == 0;
      }
      std::stable_sort(units.begin(), units.end(), [](const auto& a, const auto& b) { return a.kind < b.kind; });
      const auto offset = static_cast<std::int32_t>(s.memory.offset), mul = static_cast<std::int32_t>(s.mul);
      for (std::size_t n = 0; n < units.size(); n += kWarpsOfBlock)
        blocks.push_back({{offset, mul, s.l, 0, 0, 0},
                          {units.begin() + static_cast<std::ptrdiff_t>(n),
                           units.begin() + static_cast<std::ptrdiff_t>(std::min(n + kWarpsOfBlock, units.size()))}});
    }
    // Blocks of a launch have equally many warps; those with the longest work first.
    std::stable_sort(blocks.begin(), blocks.end(),
                     [](const Block& a, const Block& b) { return a.units.size() > b.units.size(); });
    for (const Block& block : blocks) most_tiles += (block.x.mul + 7) / 8;  // 8: the fewest channels of a warp
    covered = true;
  }

 private:
  static void add(std::vector<UnitRecord>& units, const tensor_product::ChannelPath& path) {
    int kind = 0, slot = 0;
    const auto is_of = [&](const UnitKind& k) {
      return k.l1 == path.lc && k.parity == (path.lc + path.ls + path.lo) % 2 && k.first_l2 <= path.ls &&
             path.ls <= k.last_l2;
    };
    while (!is_of(kUnitKinds[kind])) ++kind;
    const UnitSlots slots = slots_of(kind);
    while (slots.l2[slot] != path.ls || slots.l3[slot] != path.lo) ++slot;
    const int segment = path.ls - kUnitKinds[kind].first_l2;
    const auto column = static_cast<std::int32_t>(path.shared.offset);
    auto unit = std::find_if(units.begin(), units.end(), [&](const UnitRecord& u) {
      return u.kind == kind && !(u.slots >> slot & 1) && (u.y[segment] < 0 || u.y[segment] == column);
    });
    if (unit == units.end()) unit = units.insert(unit, {kind, 0, 0, {-1, -1, -1, -1}, {}, {}, {}});
    unit->slots |= 1 << slot;
    unit->weighted |= path.weighted << slot;
    unit->y[segment] = column;
    unit->coefficient[slot] = static_cast<float>(path.coefficient);
    unit->weight[slot] = static_cast<std::uint32_t>(path.weight_offset);
    unit->out[slot] = static_cast<std::uint32_t>(path.out.offset);
  }
};

// Plans are never freed: their addresses tell them apart.
inline std::shared_ptr<const UnitPlan> cached_units(const Plan& plan) {
  return cached(&plan, [&] { return UnitPlan(plan); });
}

enum class Kernel { order, forward };

struct Launch {
  Kernel kernel;
  bool dual;
  std::int64_t grid;
  int block, shared;
  OrderArguments order;
  ForwardArguments forward;

  std::string name() const {
    const std::string prefix = "eqk_tensor_product_conv_";
    if (kernel == Kernel::order) return prefix + "order";
    return prefix + "forward_" + (dual ? "dual_" : "") + "f32";
  }
  const void* argument() const { return kernel == Kernel::order ? static_cast<const void*>(&order) : &forward; }
  std::size_t argument_size() const { return kernel == Kernel::order ? sizeof(order) : sizeof(forward); }
};

// Chooses the launches of a problem.
class Launches {
 public:
  // Whether there are kernels for the forward, or on duals the jvp, of a problem.
  static bool cover(const DeviceProblem& problem) {
    constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
    const DeviceEdges& edges = *problem.edges;
    if (problem.dtype != Dtype::float32) return false;
    for (const Operand& in : problem.in)
      if (std::max(in.stride, in.tangent_stride) > kMost / 4) return false;
    const auto units = cached_units(*problem.plan);
    return units->covered && std::max(edges.count, edges.num_src) < kMost - kEdgesOfSum &&
           units->most_tiles * edges.num_dst < kMost;
  }

  // Of the scratch memory that the launches share.
  static std::int64_t scratch_bytes(const DeviceProblem& problem) {
    return 4 * (2 * problem.edges->count + problem.edges->num_dst + 1);
  }

  Launches(const DeviceProblem& problem, void* scratch)
      : problem_(problem),
        edges_(*problem.edges),
        units_(cached_units(*problem.plan)),
        edge_(static_cast<std::int32_t*>(scratch)),
        src_(edge_ + edges_.count),
        row_(src_ + edges_.count) {}

  // In stream order.
  std::vector<Launch> all() {
    order();
    if (problem_.out[kG].data && edges_.num_dst > 0) forward();
    return std::move(result_);
  }

 private:
  const DeviceProblem& problem_;
  const DeviceEdges& edges_;
  const std::shared_ptr<const UnitPlan> units_;
  std::int32_t *const edge_, *const src_, *const row_;
  std::vector<Launch> result_;

  void order() {
    constexpr int kThreads = 128;
    Launch& launch = result_.emplace_back();
    launch.kernel = Kernel::order;
    launch.block = kThreads;
    launch.grid = (std::max(edges_.count, edges_.num_dst + 1) + kThreads - 1) / kThreads;
    launch.order = {edges_.src.data,
                    edges_.dst.data,
                    edges_.by_dst.data,
                    edges_.src.stride,
                    edges_.dst.stride,
                    edges_.by_dst.stride,
                    edges_.count,
                    edges_.num_src,
                    edges_.num_dst,
                    edges_.src.wide,
                    edges_.dst.wide,
                    edges_.by_dst.wide,
                    row_,
                    edge_,
                    src_};
  }

  static bool fits(const void* base, std::int64_t stride) {
    return reinterpret_cast<std::uintptr_t>(base) % 16 == 0 && stride % 4 == 0;
  }
  static bool fits(const Operand& in) {
    return fits(in.value, in.stride) && (!in.tangent || fits(in.tangent, in.tangent_stride));
  }

  void forward() {
    const int channels = channels_of_lane(problem_.dual);
    const auto& blocks = units_->blocks;
    for (std::size_t n = 0; n < blocks.size();) {
      Launch launch{};
      launch.kernel = Kernel::forward;
      launch.dual = problem_.dual;
      ForwardArguments& a = launch.forward;
      for (const int slot : {kX, kY, kW}) {
        const Operand& in = problem_.in[slot];
        a.in[slot] = {in.value, in.tangent, static_cast<std::int32_t>(4 * in.stride),
                      static_cast<std::int32_t>(4 * in.tangent_stride)};
      }
      a.out = problem_.out[kG].data;
      a.out_stride = problem_.out[kG].stride;
      a.row = row_, a.edge = edge_, a.src = src_;
      a.destinations = Divisor(edges_.num_dst);
      a.x_mul_ir = problem_.plan->layout[0] == Layout::mul_ir;
      a.out_mul_ir = problem_.plan->layout[2] == Layout::mul_ir;
      const Operand& w = problem_.in[kW];
      a.x_vectors = a.x_mul_ir && units_->x_aligned && fits(problem_.in[kX]);
      a.w_vectors = units_->w_aligned && fits(w) && (!problem_.dual || w.tangent);
      a.out_vectors = a.out_mul_ir && units_->out_aligned && fits(a.out, a.out_stride);
      const std::size_t warps = blocks[n].units.size();
      std::int32_t tiles = 0, units = 0, x_bytes = 0;
      for (; n < blocks.size() && blocks[n].units.size() == warps && units + warps <= kUnitsOfLaunch; ++n) {
        XRecord& x = a.x[a.segments++] = blocks[n].x;
        x.log_lanes = kLeastLogLanes;
        while (x.log_lanes < 5 && channels << x.log_lanes < x.mul) ++x.log_lanes;
        x.first_tile = tiles;
        x.first_unit = units;
        const std::int32_t slice = channels << x.log_lanes;
        tiles += (x.mul + slice - 1) / slice;
        x_bytes = std::max(x_bytes, 4 * x_stage_size(x.l, channels, problem_.dual));
        for (const UnitRecord& unit : blocks[n].units) {
          a.unit[units++] = unit;
          with_kind(unit.kind, [&](auto kind) {
            a.own_bytes = std::max(a.own_bytes, 4 * own_size<Unit<decltype(kind)::value>>(channels, problem_.dual));
          });
        }
      }
      launch.grid = tiles * edges_.num_dst;
      launch.block = static_cast<int>(32 * warps);
      launch.shared = x_bytes + static_cast<int>(warps) * a.own_bytes;
      result_.push_back(launch);
    }
  }
};

}  // namespace eqk::tensor_product_conv
