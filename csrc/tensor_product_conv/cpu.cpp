#include <algorithm>
#include <bit>
#include <numeric>
#include <optional>
#include <vector>

#include "tensor_product/cpu_kernels.h"
#include "tensor_product_conv/cpu_kernels.h"

#define EQK_ISA host
#include "core/cpu_dispatch.h"
#include "core/cpu_sums.h"
#include "core/lanes.h"
#include "tensor_product/cpu_weight_parts.h"
#include "tensor_product_conv/cpu_edge_tiles.h"
#include "tensor_product_conv/cpu_node_sums.h"
#include "tensor_product_conv/cpu_radial.h"
#include "tensor_product_conv/edge_order.h"
#include "tensor_product_conv/op.h"
#include "tensor_product_conv/path_groups.h"
#include "tensor_product_conv/problem.h"

namespace eqk::tensor_product_conv {
namespace {

using tensor_product::Lowered;
using tensor_product::WeightParts;

struct CpuPlan {
  Lowered rows;       // for the kernels of tensor_product
  ChannelPlan edges;  // for kernels that sum rows
};

// Plans are never freed: their addresses tell them apart.
const CpuPlan* cached_lowering(const Plan& plan) {
  return cached(&plan, [&] {
    return CpuPlan{tensor_product::lower(plan, EQK_LMAX), tensor_product::lower_channels(plan, EQK_LMAX, true)};
  });
}

// Any plan and dtype: operands of some edges are gathered as rows of the accumulation type, the kernels of
// tensor_product make rows of results, and these are added up.
template <class T, class Storage>
class GatheredEdges {
  static constexpr std::int64_t kTile = 32;

 public:
  GatheredEdges(const Problem& problem, const Lowered& lowered, const Part& part)
      : problem_(problem),
        lowered_(lowered),
        edges_(*problem.edges),
        part_(part),
        gx_(part),
        tiles_(part.weights, problem.edges->row[part.end]) {
    tile_.plan = problem.plan;
    tile_.dtype = sizeof(T) == 8 ? Dtype::float64 : Dtype::float32;
    tile_.dual = problem.dual;
    const auto& dim = problem.plan->dim;
    columns_ = {dim[0], dim[1], problem.plan->weight_numel, dim[2]};
    const bool shared = problem.plan->weights == Weights::shared;
    for (int s = 0; s < kSlots; ++s) {
      const bool of_all_rows = s == kW && shared;
      const std::int64_t rows = of_all_rows ? 1 : kTile;
      const Operand& in = problem.in[s];
      if (in.value) tile_.in[s].value = take(values_[s], rows * columns_[s]);
      if (in.tangent) tile_.in[s].tangent = take(tangents_[s], rows * columns_[s]);
      tile_.in[s].stride = tile_.in[s].tangent_stride = of_all_rows ? 0 : columns_[s];
      if (problem.out[s].data && !of_all_rows) tile_.out[s] = {take(results_[s], kTile * columns_[s]), columns_[s]};
    }
    static_assert(EdgeWeights::kEdges % kTile == 0);
    if (shared) {
      if (problem.in[kW].value) gather(problem.in[kW].value, 0, 0, kW, values_[kW].get());
      if (problem.in[kW].tangent) gather(problem.in[kW].tangent, 0, 0, kW, tangents_[kW].get());
    }
    if (part.gw) {
      gw_.emplace(*problem.plan);
      tile_.out[kW] = {gw_->few(), 0};
    }
    if (problem.out[kG].data) out_ = {take(sums_, 3 * columns_[kG]), columns_[kG]};
  }

  void run() {
    gx_.start(edges_.num_src, columns_[kX], false);
    if (part_.begin == part_.end) return;
    std::int64_t node = part_.begin;
    const std::int64_t end = edges_.row[part_.end];
    for (std::int64_t place = edges_.row[part_.begin]; place < end; place += kTile) {
      const std::int64_t count = std::min(kTile, end - place);
      tiles_.at(place);
      gather_tile(place, count, node);
      tile_.rows = count;
      if (tiles_) use_weights(place);
      kernel_(tile_, lowered_, 0, count, gw_ ? gw_->few() : nullptr);
      for (std::int64_t e = 0; e < count; ++e) {
        while (place + e == edges_.row[node + 1]) {
          close(node++);
        }
        add_edge(place + e, e);
      }
      if (gw_) gw_->added(count);
    }
    tiles_.finish();
    while (node < part_.end) close(node++);
    if (gw_) gw_->add_to(static_cast<T*>(part_.gw));
  }

  static void collect(const Problem& problem, const std::vector<Part>& parts, std::int64_t begin, std::int64_t end) {
    const std::int64_t columns = problem.plan->dim[0];
    for (std::int64_t q = begin * columns; q < end * columns; ++q) {
      T sum = 0;
      for (const Part& part : parts) {
        for (const void* rows : part.gx)
          if (rows) sum += static_cast<const T*>(rows)[q];
      }
      static_cast<Storage*>(problem.out[kX].data)[q] = as_storage<Storage>(sum);
    }
  }

 private:
  const Problem& problem_;
  const Lowered& lowered_;
  const tensor_product::RowsKernel kernel_ = tensor_product::rows_kernel();
  const Edges& edges_;
  const Part& part_;
  tensor_product::Problem tile_;
  std::array<std::int64_t, kSlots> columns_;
  std::array<AlignedArray<T>, kSlots> values_, tangents_, results_;
  AlignedArray<T> sums_;
  Sum<T> out_;
  NodeSums<T> gx_;
  std::optional<WeightSum<T>> gw_;
  EdgeTiles<T> tiles_;

  static T* take(AlignedArray<T>& memory, std::int64_t count) {
    // One more, so that an operand without columns has an address.
    memory = aligned_array<T>(static_cast<std::size_t>(count) + 1);
    return memory.get();
  }

  void gather(const void* base, std::int64_t stride, std::int64_t row, int slot, T* to) const {
    const Storage* const from = static_cast<const Storage*>(base) + row * stride;
    for (std::int64_t q = 0; q < columns_[slot]; ++q) to[q] = from_storage<T>(from[q]);
  }

  void gather_tile(std::int64_t place, std::int64_t count, std::int64_t node) {
    for (std::int64_t e = 0; e < count; ++e) {
      while (place + e == edges_.row[node + 1]) ++node;
      const std::int64_t edge = edges_.edge_at(place + e);
      const std::array<std::int64_t, kSlots> row{edges_.src[place + e], edge, edge, node};
      for (int s = 0; s < kSlots; ++s) {
        if (s == kW && problem_.plan->weights == Weights::shared) continue;
        const Operand& in = problem_.in[s];
        if (in.value) gather(in.value, in.stride, row[s], s, values_[s].get() + e * columns_[s]);
        if (in.tangent) gather(in.tangent, in.tangent_stride, row[s], s, tangents_[s].get() + e * columns_[s]);
      }
    }
  }

  // Rows of weights and of their gradients, which are there as the kernels take them.
  void use_weights(std::int64_t place) {
    const std::int64_t pitch = part_.weights->pitch;
    tile_.in[kW] = {tiles_.w(place), tiles_.w_tangent(place), pitch, pitch};
    tile_.out[kW] = {tiles_.gw(place), pitch};
    if (!tiles_.gw_value(place)) return;
    tensor_product::Problem values = tile_;
    values.dual = false;
    values.out = {};
    values.out[kW] = {tiles_.gw_value(place), pitch};
    for (auto& in : values.in) in.tangent = nullptr;
    kernel_(values, lowered_, 0, tile_.rows, nullptr);
  }

  void add_edge(std::int64_t place, std::int64_t e) {
    const std::int64_t edge = edges_.edge_at(place), src = edges_.src[place];
    for (const Slot s : {kY, kW})
      if (const Result& out = problem_.out[s]; out.data && results_[s])
        for (std::int64_t q = 0; q < columns_[s]; ++q)
          static_cast<Storage*>(out.data)[edge * out.stride + q] =
              as_storage<Storage>(results_[s][e * columns_[s] + q]);
    if (T* const gx = gx_.row(src)) {
      add_row(results_[kX].get() + e * columns_[kX], columns_[kX], gx);
      gx_.added(src);
    }
    if (problem_.out[kG].data) {
      add_row(results_[kG].get() + e * columns_[kG], columns_[kG], out_.few());
      out_.added(1);
    }
  }

  void close(std::int64_t node) {
    if (!problem_.out[kG].data) return;
    const T* const sum = out_.total();
    Storage* const to = static_cast<Storage*>(problem_.out[kG].data) + node * problem_.out[kG].stride;
    for (std::int64_t q = 0; q < columns_[kG]; ++q) to[q] = as_storage<Storage>(sum[q]);
    out_.start();
  }
};

// The gradient of x is a sum over edges of any order of sources: parts of the destinations add to rows of their own.
// How many there are hangs on the graph alone, so that results are the same bits for any number of threads, and is a
// power of two, which threads share out evenly. Of each level of sums the rows of all parts are at most half as many as
// there are edges, or as there are nodes.
// numel: of what the gradients of weights, or of a matrix, are summed in; 0: none.
std::int64_t count_parts(const Problem& problem, bool sums_gx, std::int64_t numel) {
  constexpr std::int64_t kMaxParts = 16, kMaxTasks = 256, kEdges = 128, kNodes = 1024;
  const Edges& e = *problem.edges;
  const std::int64_t work = e.count / kEdges + e.num_dst / kNodes;
  if (!sums_gx && !numel) return std::clamp<std::int64_t>(work, 1, kMaxTasks);
  std::int64_t parts = std::min(work, kMaxParts);
  if (sums_gx) parts = std::min(parts, e.count / std::max<std::int64_t>(1, 2 * e.num_src));
  if (numel) parts = WeightParts::count(problem.dtype, numel, parts);
  return static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(std::max<std::int64_t>(1, parts))));
}

const EdgeKernels& edge_kernels() { return EQK_CHOOSE_KERNEL(); }

// What runs a plan.
struct Runner {
  const EdgeKernels& lanes = edge_kernels();
  const CpuPlan& lowering;
  bool in_lanes;  // the kernels whose lanes are channels

  explicit Runner(const Problem& problem)
      : lowering(*cached_lowering(*problem.plan)), in_lanes(lanes.can_run(problem, lowering.edges)) {}
  const ChannelPlan& channels() const { return lowering.edges; }
};

// run_part(part, f) calls f(paths) with the paths that are run for the edges of this part, once or for some after
// others.
template <class RunPart>
void run(const Problem& problem, const Tensor& like, const Runner& runner, std::int64_t parts,
         const RunPart& run_part) {
  const EdgeKernels& lanes = runner.lanes;
  const ChannelPlan& channels = runner.channels();
  const Edges& edges = *problem.edges;
  const bool in_lanes = runner.in_lanes;
  const bool sums_gx = problem.out[kX].data, sums_gw = problem.out[kW].data && problem.plan->weights == Weights::shared;
  const std::int64_t x_size = in_lanes ? channels.c_size : problem.plan->dim[0];
  const ScalarType type = problem.dtype == Dtype::float64 ? ScalarType::Double : ScalarType::Float;
  const std::int64_t type_size = problem.dtype == Dtype::float64 ? 8 : 4;
  constexpr std::int64_t kNodes = 64;

  std::vector<Tensor> scratch;
  const auto rows_of_nodes = [&](std::int64_t copies) {
    scratch.push_back(empty(like, {copies, edges.num_src, x_size}, type));
    return static_cast<char*>(scratch.back().mutable_data_ptr());
  };
  Staged staged;
  if (in_lanes) {
    void *const x = rows_of_nodes(1), *const x_tangent = problem.in[kX].tangent ? rows_of_nodes(1) : nullptr;
    parallel_for((edges.num_src + kNodes - 1) / kNodes, 1, [&](std::int64_t begin, std::int64_t end) {
      lanes.stage(problem, channels, begin * kNodes, std::min(end * kNodes, edges.num_src), x, x_tangent);
    });
    staged = {x, x_tangent};
  }
  std::vector<Part> all(parts);
  for (std::int64_t p = 0; p < parts; ++p)
    all[p].begin = edges.cut(p, parts), all[p].end = p + 1 < parts ? edges.cut(p + 1, parts) : edges.num_dst;
  const std::int64_t copy = edges.num_src * x_size * type_size;
  for (int level = 0; sums_gx && level < levels_of_sums(edges.max_out_degree); ++level) {
    char* const gx = rows_of_nodes(parts);
    for (std::int64_t p = 0; p < parts; ++p) all[p].gx[level] = gx + p * copy;
  }
  std::optional<WeightParts> gw;
  if (sums_gw) {
    gw.emplace(problem.dtype, problem.plan->weight_numel, parts, like);
    for (std::int64_t p = 0; p < parts; ++p) all[p].gw = gw->of(p);
  }

  with_types(problem.dtype, [&]<class T, class Storage>(T, Storage) {
    parallel_for(parts, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t p = begin; p < end; ++p) {
        run_part(p, [&](const ChannelPlan& paths, const EdgeWeights* weights, bool add) {
          all[p].weights = weights;
          all[p].add = add;
          if (in_lanes)
            lanes.run(problem, paths, staged, all[p]);
          else
            GatheredEdges<T, Storage>(problem, runner.lowering.rows, all[p]).run();
        });
      }
    });
    if (sums_gx)
      parallel_for((edges.num_src + kNodes - 1) / kNodes, 1, [&](std::int64_t begin, std::int64_t end) {
        begin *= kNodes, end = std::min(end * kNodes, edges.num_src);
        if (in_lanes)
          lanes.collect(problem, channels, all, begin, end);
        else
          GatheredEdges<T, Storage>::collect(problem, all, begin, end);
      });
  });
  if (gw) gw->reduce(problem.out[kW].data);
}

// Rows without columns take no memory: there may be more of them than anyone can wait for.
template <class Description>
bool wants_nothing(const Description& problem) {
  return std::none_of(problem.out.begin(), problem.out.end(), [](const Result& r) { return r.data; });
}

void launch(const Problem& problem, const Tensor& like) {
  if (wants_nothing(problem)) return;
  const bool shared = problem.out[kW].data && problem.plan->weights == Weights::shared;
  const std::int64_t parts = count_parts(problem, problem.out[kX].data, shared ? problem.plan->weight_numel : 0);
  const Runner runner(problem);
  run(problem, like, runner, parts, [&](std::int64_t, const auto& f) { f(runner.channels(), nullptr, false); });
}

// Weights of a group of paths, so that a second-level cache holds what products and kernels use of them: the matrix and
// its transpose, both split where products want it, their gradient, and weights of some edges.
std::int64_t columns_of_group(std::int64_t hidden, std::int64_t element) {
  constexpr std::int64_t kBytes = 768 << 10;
  return kBytes / (element * (4 * hidden + EdgeWeights::kEdges));
}

std::vector<PathGroup> groups_of(const Runner& runner, const RadialProblem& radial) {
  const std::int64_t element = radial.dtype == Dtype::float64 ? 8 : 4;
  if (runner.in_lanes) return path_groups(runner.channels(), columns_of_group(radial.hidden, element));
  PathGroup all{runner.channels(), std::vector<std::int64_t>(radial.plan->weight_numel)};
  std::iota(all.columns.begin(), all.columns.end(), 0);
  return {std::move(all)};
}

// The gradient of the matrix, from parts whose columns are in the order of groups.
void reduce_matrix(const WeightParts& parts, const std::vector<PathGroup>& groups, const RadialProblem& radial) {
  std::vector<WeightParts::Piece> runs;  // of a row
  std::int64_t column = 0;
  for (const PathGroup& group : groups)
    for (const std::int64_t to : group.columns) {
      if (runs.empty() || runs.back().to + runs.back().count != to) runs.push_back({column, to, 0});
      ++runs.back().count, ++column;
    }
  const auto count = static_cast<std::int64_t>(runs.size());
  parts.reduce(radial.out[kMatrix].data, radial.hidden * count, [&](std::int64_t n) {
    const std::int64_t row = n / count * radial.plan->weight_numel;
    const auto& run = runs[n % count];
    return WeightParts::Piece{row + run.from, row + run.to, run.count};
  });
}

void launch_radial(const RadialProblem& radial, const Tensor& like) {
  if (wants_nothing(radial)) return;
  Problem problem;
  problem.plan = radial.plan, problem.dtype = radial.dtype, problem.dual = radial.dual, problem.edges = radial.edges;
  problem.in = {radial.in[kRadialX], radial.in[kRadialY], {}, radial.in[kRadialG]};
  problem.out = {radial.out[kRadialX], radial.out[kRadialY], {}, radial.out[kRadialG]};
  const std::int64_t numel = radial.hidden * radial.plan->weight_numel;
  const bool sums_matrix = radial.out[kMatrix].data;
  const std::int64_t parts = count_parts(problem, problem.out[kX].data, sums_matrix ? numel : 0);
  const Runner runner(problem);
  const std::vector<PathGroup> groups = groups_of(runner, radial);
  std::optional<WeightParts> matrix;
  if (sums_matrix) matrix.emplace(radial.dtype, numel, parts, like, false);
  with_types(radial.dtype, [&]<class T, class Storage>(T, Storage) {
    using Matrix = RadialMatrix<T, Storage>;
    const auto& kernel = std::get<PanelKernel<T>>(runner.lanes.panels);
    const Operand& a = radial.in[kMatrix];
    std::vector<Matrix> values, tangents;
    for (const PathGroup& group : groups) {
      values.emplace_back(radial, a.value, a.stride, group.columns, kernel);
      tangents.emplace_back(radial, a.tangent, a.tangent_stride, group.columns, kernel);
    }
    run(problem, like, runner, parts, [&](std::int64_t part, const auto& f) {
      T* ga = matrix ? static_cast<T*>(matrix->of(part)) : nullptr;
      for (std::size_t n = 0; n < groups.size(); ++n) {
        const bool add = n > 0;
        RadialWeights<T, Storage> weights(radial, kernel, values[n], tangents[n], ga, runner.in_lanes, add);
        f(groups[n].channels, &weights.tile(), add);
        weights.finish();
        if (ga) ga += groups[n].columns.size();
      }
    });
  });
  if (matrix) reduce_matrix(*matrix, groups, radial);
}

struct Cpu {
  using Problem = tensor_product_conv::Problem;
  using RadialProblem = tensor_product_conv::RadialProblem;
  using Edges = eqk::Edges;
  static Edges edges(const char* op, const Graph& graph, std::int64_t num_src) {
    return make_edges(op, graph.src, graph.dst, num_src, graph.num_dst, graph.by_dst);
  }
  static bool covers(const Problem&) { return true; }
  static bool covers(const RadialProblem&) { return true; }
  static void launch(const Problem& problem, const Tensor& like) { tensor_product_conv::launch(problem, like); }
  static void launch_radial(const RadialProblem& problem, const Tensor& like) {
    tensor_product_conv::launch_radial(problem, like);
  }
};

// What runs the value and first gradients of a plan in the dtype of x, with weights in memory or without.
std::string kernel_names(const Tensor& x, StringArgument text) {
  const auto parsed = cached_plan(text);
  const auto lowering = cached_lowering(*parsed);
  Problem problem;
  problem.plan = parsed;
  problem.dtype = kernel_dtype("tensor_product_conv_cpu_kernel", x);
  if (edge_kernels().can_run(problem, lowering->edges)) return "channels, sums in registers";
  tensor_product::Problem tile;
  tile.plan = parsed;
  tile.dtype = problem.dtype == Dtype::float64 ? Dtype::float64 : Dtype::float32;
  const bool in_channels = tensor_product::rows_kernel().in_channels(tile, lowering->rows);
  return std::string("gathered edges by ") + (in_channels ? "channels" : "rows");
}

}  // namespace
}  // namespace eqk::tensor_product_conv

STABLE_TORCH_LIBRARY_IMPL(eqk, CompositeExplicitAutograd, m) {
  m.impl("tensor_product_conv_cpu_kernel", TORCH_BOX(&eqk::tensor_product_conv::kernel_names));
}

STABLE_TORCH_LIBRARY_IMPL(eqk, CPU, m) {
  eqk::tensor_product_conv::register_impls<eqk::tensor_product_conv::Cpu>(m);
  eqk::tensor_product_conv::register_radial_forward<eqk::tensor_product_conv::Cpu>(m);
  eqk::tensor_product_conv::register_radial_jvp<eqk::tensor_product_conv::Cpu>(m);
  eqk::tensor_product_conv::register_radial_gradients<eqk::tensor_product_conv::Cpu>(m);
}
