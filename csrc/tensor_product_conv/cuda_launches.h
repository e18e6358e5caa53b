#pragma once
// The launches that solve a problem on the edges of a graph, free of torch and of CUDA headers.
#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
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
  DeviceIndices src, dst, by_dst, by_src;  // by_src: for gradients of x
  // Null, or the rows of y, of weights and of their gradients come in the order of destinations: at these places, which
  // the launches find.
  std::int32_t* place_of = nullptr;
};

// Some of the edges, by their places in the order of destinations.
struct PlaceRange {
  std::int64_t first = 0, count = 0;
};

using DeviceProblem = GraphProblem<DeviceEdges, kSlots>;

// Whether rows of float32 can be read and written as vectors of four.
inline bool fits(const void* base, std::int64_t stride) {
  return reinterpret_cast<std::uintptr_t>(base) % 16 == 0 && stride % 4 == 0;
}
inline bool fits(const Operand& in) {
  return fits(in.value, in.stride) && (!in.tangent || fits(in.tangent, in.tangent_stride));
}

inline Rows rows_of(const Operand& in) {
  return {in.value, in.tangent, static_cast<std::int32_t>(4 * in.stride),
          static_cast<std::int32_t>(4 * in.tangent_stride)};
}

inline int log_lanes(std::int64_t mul, int channels) {
  int log = kLeastLogLanes;
  while (log < 5 && channels << log < mul) ++log;
  return log;
}

inline std::int64_t slices(std::int64_t mul, int channels) {
  const std::int64_t slice = channels << log_lanes(mul, channels);
  return (mul + slice - 1) / slice;
}

// The rows of edges that the backward writes for gradients of x and of y, and what they add up to.
struct GradientRows {
  struct Range {
    std::int64_t column, mul;
    int dim;
    std::vector<SumTerm> terms;
  };
  std::int64_t x_columns = 0, y_columns = 0;
  std::vector<std::int32_t> of_block, of_unit;  // first columns, of x and of y
  std::vector<Range> x, y;
};

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
  std::int64_t most_tiles = 0;       // of a launch, at most
  std::array<GradientRows, 2> rows;  // of the backward, on duals or not

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
        blocks.push_back({{offset, mul, s.l, 0, 0, 0, 0},
                          {units.begin() + static_cast<std::ptrdiff_t>(n),
                           units.begin() + static_cast<std::ptrdiff_t>(std::min(n + kWarpsOfBlock, units.size()))}});
    }
    // Blocks of a launch have equally many warps; those with the longest work first.
    std::stable_sort(blocks.begin(), blocks.end(),
                     [](const Block& a, const Block& b) { return a.units.size() > b.units.size(); });
    for (const Block& block : blocks) most_tiles += (block.x.mul + 7) / 8;  // 8: the fewest channels of a warp
    for (const bool dual : {false, true}) add_rows(plan, lowered, dual);
    covered = true;
  }

 private:
  void add_rows(const Plan& plan, const tensor_product::ChannelPlan& lowered, bool dual) {
    const int channels = channels_of_lane(dual);
    GradientRows& r = rows[dual];
    for (const tensor_product::PaddedSegment& s : lowered.c_segments)
      r.x.push_back({s.memory.offset, s.mul, 2 * s.l + 1, {}});
    for (const auto& [offset, size] : lowered.c_untouched) r.x.push_back({offset, size, 1, {}});
    for (const Segment& s : plan.irreps[1])
      if (s.mul > 0) r.y.push_back({s.offset, s.mul, s.dim(), {}});
    const auto range_at = [](std::vector<GradientRows::Range>& ranges, std::int64_t column) -> GradientRows::Range& {
      return *std::find_if(ranges.begin(), ranges.end(), [&](const auto& range) { return range.column == column; });
    };
    for (const Block& block : blocks) {
      const std::int64_t mul = block.x.mul;
      r.of_block.push_back(static_cast<std::int32_t>(r.x_columns));
      range_at(r.x, block.x.column).terms.push_back({r.of_block.back(), 0, 1});
      r.x_columns += (mul + 3) / 4 * 4 * (2 * block.x.l + 1);
      for (const UnitRecord& unit : block.units) {
        r.of_unit.push_back(static_cast<std::int32_t>(r.y_columns));
        with_kind(unit.kind, [&](auto kind) {
          using U = Unit<decltype(kind)::value>;
          const auto count = static_cast<std::int32_t>(slices(mul, channels));
          for (int l2 = U::first_l2; l2 <= U::last_l2; ++l2)
            if (const std::int32_t column = unit.y[l2 - U::first_l2]; column >= 0)
              range_at(r.y, column).terms.push_back({r.of_unit.back() + U::y_columns(l2), U::y_size, count});
          r.y_columns += count * U::y_size;
        });
      }
    }
  }

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
    if (unit == units.end()) unit = units.insert(unit, {kind, 0, 0, 0, {-1, -1, -1, -1}, {}, {}, {}, 0, 0});
    unit->slots |= 1 << slot;
    unit->weighted |= path.weighted << slot;
    unit->y[segment] = column;
    unit->coefficient[slot] = static_cast<float>(path.coefficient);
    unit->weight[slot] = static_cast<std::uint32_t>(path.weight_offset);
    unit->out[slot] = static_cast<std::uint32_t>(path.out.offset);
  }
};

// Plans are never freed: their addresses tell them apart.
inline const UnitPlan* cached_units(const Plan& plan) {
  return cached(&plan, [&] { return UnitPlan(plan); });
}

enum class Kernel { order, forward, forward_dual, backward, backward_dual, sum_x, sum_y };

struct Launch {
  Kernel kernel;
  std::int64_t grid;
  int block, shared;
  std::variant<OrderArguments, UnitArguments, BackwardArguments, SumArguments> arguments;

  std::string name() const {
    static constexpr const char* kNames[] = {
        "order", "forward_f32", "forward_dual_f32", "backward_f32", "backward_dual_f32", "sum_x_f32", "sum_y_f32"};
    return std::string("eqk_tensor_product_conv_") + kNames[static_cast<int>(kernel)];
  }
  const void* argument() const {
    return std::visit([](const auto& a) { return static_cast<const void*>(&a); }, arguments);
  }
  std::size_t argument_size() const {
    return std::visit([](const auto& a) { return sizeof(a); }, arguments);
  }
};

// The edges in the order of their destinations, as the kernels find them.
struct EdgePlaces {
  const std::int32_t *row, *edge, *src;
};

// Chooses the launches of a problem.
class Launches {
 public:
  // Whether there are kernels for a member of the family; of a backward, for whichever gradients are wanted.
  static bool cover(const DeviceProblem& problem) {
    constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
    const DeviceEdges& edges = *problem.edges;
    const Plan& plan = *problem.plan;
    // Without destinations there is no g, which tells a backward from a forward.
    if (problem.dtype != Dtype::float32 || edges.num_dst == 0) return false;
    for (const Operand& in : problem.in)
      if (std::max(in.stride, in.tangent_stride) > kMost / 4) return false;
    const auto units = cached_units(plan);
    if (!units->covered || std::max(edges.count, edges.num_src) >= kMost - kEdgesOfSum ||
        units->most_tiles * edges.num_dst > kMost / 2)
      return false;
    if (!problem.in[kG].value) return true;
    // Gradients of shared weights would be one more sum over all edges.
    if (plan.weights == Weights::shared) return false;
    const GradientRows& rows = units->rows[problem.dual];
    const auto too_many = [](const GradientRows::Range& range) { return range.terms.size() > kTermsOfSum; };
    return std::max({rows.x_columns, rows.y_columns, plan.weight_numel}) <= kMost / 4 &&
           (plan.dim[0] + 3 * static_cast<std::int64_t>(rows.x.size())) * edges.num_src / kThreads < kMost &&
           plan.dim[1] * edges.count / kThreads < kMost && std::none_of(rows.x.begin(), rows.x.end(), too_many) &&
           std::none_of(rows.y.begin(), rows.y.end(), too_many);
  }

  // Whether edges are to be given in the order of sources too.
  static bool need_sources(const DeviceProblem& problem) { return problem.in[kG].value && problem.out[kX].data; }

  // Of the scratch memory that the launches share.
  static std::int64_t scratch_bytes(const DeviceProblem& problem) { return Launches(problem, nullptr).bytes_; }

  Launches(const DeviceProblem& problem, void* scratch)
      : problem_(problem),
        edges_(*problem.edges),
        units_(cached_units(*problem.plan)),
        scratch_(static_cast<unsigned char*>(scratch)),
        edge_(take<std::int32_t>(edges_.count)),
        src_(take<std::int32_t>(edges_.count)),
        row_(take<std::int32_t>(edges_.num_dst + 1)) {
    if (!problem.in[kG].value) return;
    if (edges_.place_of) destination_ = take<std::int32_t>(edges_.count);
    if (problem.out[kX].data) {
      edge_by_src_ = take<std::int32_t>(edges_.count);
      row_by_src_ = take<std::int32_t>(edges_.num_src + 1);
      x_rows_ = take<float>(edges_.count * units_->rows[0].x_columns);
    }
    if (problem.out[kY].data)
      y_rows_ = take<float>(edges_.count * std::max(units_->rows[0].y_columns, units_->rows[1].y_columns));
  }

  EdgePlaces places() const { return {row_, edge_, src_}; }

  // In stream order.
  std::vector<Launch> all() {
    orders();
    if (problem_.in[kG].value) {
      gradients(problem_, {0, edges_.count}, false);
      sums(problem_, false);
      if (has_tangent_of_g(problem_)) {
        const DeviceProblem problem = along_tangent_of_g(problem_);
        gradients(problem, {0, edges_.count}, true);
        sums(problem, true);
      }
    } else if (problem_.out[kG].data) {
      forward();
    }
    return taken();
  }

  static bool has_tangent_of_g(const DeviceProblem& problem) { return problem.dual && problem.in[kG].tangent; }

  // What the tangent of g contributes to the other gradients is the backward of that.
  static DeviceProblem along_tangent_of_g(DeviceProblem problem) {
    const Operand& g = problem.in[kG];
    problem.dual = false;
    problem.in[kG] = {g.tangent, nullptr, g.tangent_stride, 0};
    problem.out[kG] = {};
    return problem;
  }

  // The steps of a backward. Gradients may be those of one part after the other, of whose edges alone `problem` then
  // has weights and their gradients; add: to what is there.
  void orders() {
    order({edges_.dst.data, edges_.by_dst.data, edges_.src.data, edges_.dst.stride, edges_.by_dst.stride,
           edges_.src.stride, edges_.count, edges_.num_dst, edges_.num_src, edges_.dst.wide, edges_.by_dst.wide,
           edges_.src.wide, 0, row_, edge_, src_, edges_.place_of, destination_});
    if (problem_.in[kG].value && problem_.out[kX].data)
      order({edges_.src.data, edges_.by_src.data, nullptr, edges_.src.stride, edges_.by_src.stride, 0, edges_.count,
             edges_.num_src, 0, edges_.src.wide, edges_.by_src.wide, 0, 1, row_by_src_, edge_by_src_, nullptr,
             edges_.place_of, nullptr});
  }

  void gradients(const DeviceProblem& problem, const PlaceRange& part, bool add) {
    if (part.count == 0 && !problem.out[kG].data) return;
    const Result& w = problem.out[kW];
    const GradientRows& rows = units_->rows[problem.dual];
    const Kernel kernel = problem.dual ? Kernel::backward_dual : Kernel::backward;
    launch_units<BackwardArguments>(problem, kernel, destinations_of(part), [&](BackwardArguments& a) {
      a.in[kW] = from_first_edge(rows_of(problem.in[kW]), part);
      if (w.data)
        a.w = from_first_edge(w.data, 4 * w.stride, part), a.w_stride = static_cast<std::int32_t>(4 * w.stride);
      if (problem.out[kX].data) a.x_rows = x_rows_, a.x_rows_stride = static_cast<std::int32_t>(4 * rows.x_columns);
      if (problem.out[kY].data) a.y_rows = y_rows_, a.y_rows_stride = static_cast<std::int32_t>(4 * rows.y_columns);
      a.g_vectors = a.out_mul_ir && units_->out_aligned && fits(problem.in[kG].value, problem.in[kG].stride);
      a.gw_vectors = w.data && units_->w_aligned && fits(w.data, w.stride) && !add;
      a.add = add;
      a.first_place = static_cast<std::int32_t>(part.first);
      a.end_place = static_cast<std::int32_t>(part.first + part.count);
      a.destination_count = static_cast<std::int32_t>(edges_.num_dst);
      a.destination = part.first > 0 ? destination_ : nullptr;
    });
  }

  void sums(const DeviceProblem& problem, bool add) {
    const Plan& plan = *problem.plan;
    const Result &x = problem.out[kX], &y = problem.out[kY];
    const GradientRows& rows = units_->rows[problem.dual];
    if (x.data) sum(Kernel::sum_x, x, rows.x, x_rows_, rows.x_columns, edges_.num_src, plan.layout[0], add);
    if (y.data) sum(Kernel::sum_y, y, rows.y, y_rows_, rows.y_columns, edges_.count, plan.layout[1], add);
  }

  // Those of the steps since the last time, in stream order.
  std::vector<Launch> taken() { return std::exchange(result_, {}); }

 private:
  static constexpr int kThreads = 128;  // of a block of kernels but those of units

  const DeviceProblem& problem_;
  const DeviceEdges& edges_;
  const UnitPlan* const units_;
  unsigned char* const scratch_;
  std::int64_t bytes_ = 0;
  std::int32_t *const edge_, *const src_, *const row_;
  std::int32_t *edge_by_src_ = nullptr, *row_by_src_ = nullptr, *destination_ = nullptr;
  float *x_rows_ = nullptr, *y_rows_ = nullptr;
  std::vector<Launch> result_;

  // The next part of scratch memory; vectors of it are aligned.
  template <class T>
  T* take(std::int64_t count) {
    T* const part = scratch_ ? reinterpret_cast<T*>(scratch_ + bytes_) : nullptr;
    bytes_ += (count * static_cast<std::int64_t>(sizeof(T)) + 15) / 16 * 16;
    return part;
  }

  template <class Arguments>
  Arguments& launch(Kernel kernel, std::int64_t threads) {
    Launch& launch = result_.emplace_back();
    launch.kernel = kernel;
    launch.block = kThreads;
    launch.grid = (threads + kThreads - 1) / kThreads;
    return launch.arguments.template emplace<Arguments>();
  }

  void order(const OrderArguments& arguments) {
    launch<OrderArguments>(Kernel::order, std::max(edges_.count, arguments.num_end + 1)) = arguments;
  }

  void forward() {
    launch_units<UnitArguments>(problem_, problem_.dual ? Kernel::forward_dual : Kernel::forward, edges_.num_dst,
                                [](UnitArguments&) {});
  }

  // For how many destinations a part has blocks: somewhat more than it has on average; blocks run as many as there are.
  std::int64_t destinations_of(const PlaceRange& part) const {
    if (part.count == edges_.count) return edges_.num_dst;
    const double expected =
        static_cast<double>(part.count) / static_cast<double>(edges_.count) * static_cast<double>(edges_.num_dst);
    return std::min(edges_.num_dst, static_cast<std::int64_t>(1.25 * expected) + 1);
  }

  // Rows of the edges of a part, from where those of all edges would begin.
  static void* from_first_edge(const void* rows, std::int64_t stride, const PlaceRange& part) {
    const auto at = reinterpret_cast<std::uintptr_t>(rows);
    return rows ? reinterpret_cast<void*>(at - static_cast<std::uintptr_t>(part.first * stride)) : nullptr;
  }
  static Rows from_first_edge(const Rows& rows, const PlaceRange& part) {
    return {from_first_edge(rows.value, rows.stride, part), from_first_edge(rows.tangent, rows.tangent_stride, part),
            rows.stride, rows.tangent_stride};
  }

  // In as few launches as hold the ranges and their terms.
  void sum(Kernel kernel, const Result& out, const std::vector<GradientRows::Range>& ranges, const float* rows,
           std::int64_t columns, std::int64_t count, Layout layout, bool add) {
    if (count == 0) return;
    const bool of_x = kernel == Kernel::sum_x;
    for (auto range = ranges.begin(); range != ranges.end();) {
      SumArguments& a = launch<SumArguments>(kernel, 0);
      a.rows = rows;
      a.out = out.data;
      a.rows_stride = static_cast<std::int32_t>(4 * columns);
      a.out_stride = out.stride;
      a.count = count;
      if (of_x) a.row = row_by_src_, a.order = edge_by_src_;
      a.mul_ir = layout == Layout::mul_ir;
      a.vectors = a.mul_ir && fits(out.data, out.stride);
      a.add = add;
      std::int32_t packs = 0;
      std::size_t terms = 0;
      for (; range != ranges.end() && a.ranges < kRangesOfSum && terms + range->terms.size() <= kTermsOfSum; ++range) {
        const auto first = static_cast<std::int32_t>(terms);
        for (const SumTerm& term : range->terms) a.term[terms++] = term;
        a.range[a.ranges++] = {
            static_cast<std::int32_t>(range->column), static_cast<std::int32_t>(range->mul), range->dim, packs, first,
            static_cast<std::int32_t>(terms)};
        a.vectors = a.vectors && range->column % 4 == 0 && range->mul % 4 == 0;
        packs += static_cast<std::int32_t>(of_x ? (range->mul + 3) / 4 * range->dim : range->mul * range->dim);
      }
      a.packs = Divisor(packs);
      result_.back().grid = (packs * count + kThreads - 1) / kThreads;
    }
  }

  // The launches of a kernel of units, a block for each tile of so many destinations; `fill` completes the arguments.
  template <class Arguments, class Fill>
  void launch_units(const DeviceProblem& problem, Kernel kernel, std::int64_t destinations, Fill&& fill) {
    constexpr bool kBackward = std::is_same_v<Arguments, BackwardArguments>;
    const int channels = channels_of_lane(problem.dual);
    const GradientRows& rows = units_->rows[problem.dual];
    const auto& blocks = units_->blocks;
    std::size_t unit_of_plan = 0;
    for (std::size_t n = 0; n < blocks.size();) {
      Arguments& a = launch<Arguments>(kernel, 0);
      for (const int slot : {kX, kY, kW, kG}) {
        const Operand& in = problem.in[slot];
        a.in[slot] = rows_of(in);
      }
      const Result& out = problem.out[kG];
      a.out = out.data;
      a.out_stride = out.stride;
      a.row = row_, a.edge = edge_, a.src = src_;
      a.destinations = Divisor32(static_cast<std::int32_t>(destinations));
      a.x_mul_ir = problem.plan->layout[0] == Layout::mul_ir;
      a.out_mul_ir = problem.plan->layout[2] == Layout::mul_ir;
      const Operand& w = problem.in[kW];
      a.x_vectors = a.x_mul_ir && units_->x_aligned && fits(problem.in[kX]);
      a.w_vectors = units_->w_aligned && fits(w) && (!problem.dual || w.tangent);
      a.out_vectors = a.out_mul_ir && units_->out_aligned && fits(out.data, out.stride);
      fill(a);
      const std::size_t warps = blocks[n].units.size();
      std::int32_t tiles = 0, units = 0, shared = 0;
      for (; n < blocks.size() && blocks[n].units.size() == warps && units + warps <= kUnitsOfLaunch; ++n) {
        XRecord& x = a.x[a.segments++] = blocks[n].x;
        x.log_lanes = log_lanes(x.mul, channels);
        x.first_tile = tiles;
        x.first_unit = units;
        x.rows_column = rows.of_block[n];
        tiles += static_cast<std::int32_t>(slices(x.mul, channels));
        std::int32_t end = 4 * x_stage_size(x.l, channels, problem.dual);
        if (kBackward) end += 4 * static_cast<std::int32_t>(warps) * x_gradient_size(x.l, channels);
        for (const UnitRecord& of_plan : blocks[n].units) {
          UnitRecord& unit = a.unit[units++] = of_plan;
          unit.rows_column = rows.of_unit[unit_of_plan++];
          unit.own = end;
          if (a.w_vectors) unit.w_vectors = unit.slots;
          with_kind(unit.kind, [&](auto kind) {
            using U = Unit<decltype(kind)::value>;
            end += 4 * own_size<U>(channels, problem.dual);
            if (kBackward) end += 4 * cotangents_size<U>(channels);
          });
        }
        shared = std::max(shared, end);
      }
      Launch& launch = result_.back();
      launch.grid = tiles * destinations;
      launch.block = static_cast<int>(32 * warps);
      launch.shared = shared;
    }
  }
};

}  // namespace eqk::tensor_product_conv
