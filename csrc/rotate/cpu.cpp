#include <algorithm>
#include <string>
#include <vector>

#include "core/cpu_dispatch.h"
#include "rotate/op.h"
#include "tensor_product_conv/edge_order.h"

namespace eqk::rotate {
namespace {

constexpr std::int64_t kGrain = 16, kMaxTasks = 256;  // edges that are worth a thread; tasks of sums over edges

std::vector<std::int64_t> read_index(const Tensor& index, std::int64_t nodes) {
  std::vector<std::int64_t> result;
  result.reserve(index.size(0) * index.size(1));
  for (std::int64_t k = 0; k < index.size(0); ++k) {
    const std::string name = "index[" + std::to_string(k) + "]";
    const auto ends =
        tensor_product_conv::detail::read_indices("rotate", name.c_str(), torch::stable::select(index, 0, k), nodes);
    result.insert(result.end(), ends.begin(), ends.end());
  }
  return result;
}

// Stable: the sum of a node has the order of its edges.
Edges by_node(const std::vector<std::int64_t>& index, std::int64_t nodes) {
  Edges e;
  e.count = static_cast<std::int64_t>(index.size());
  e.num_dst = nodes;
  e.row.assign(static_cast<std::size_t>(nodes) + 1, 0);
  for (const std::int64_t node : index) ++e.row[node + 1];
  for (std::int64_t n = 0; n < nodes; ++n) e.row[n + 1] += e.row[n];
  std::vector<std::int64_t> next(e.row.begin(), e.row.end() - 1);
  e.edge.resize(index.size());
  for (std::int64_t n = 0; n < e.count; ++n) e.edge[next[index[n]]++] = n;
  return e;
}

Tensor rotate(const OptionalTensor& x, const OptionalTensor& d, const OptionalTensor& weights, const OptionalTensor& z,
              const OptionalTensor& index, std::int64_t num_nodes, std::int64_t groups, std::int64_t columns,
              std::int64_t lmax, std::int64_t mmax, bool rescale, std::int64_t missing) {
  static const Kernel kernel = EQK_CHOOSE_KERNEL();
  const std::array<OptionalTensor, kSlots> operands{x, d, weights, z};
  Call call(operands, index, {num_nodes, groups, columns}, lmax, mmax, rescale, missing);
  Problem& problem = call.problem();
  std::vector<std::int64_t> nodes;
  if (index) {
    nodes = read_index(*index, problem.nodes);
    problem.index = nodes.data();
  }
  Tensor out = call.result();
  if (out.numel() == 0) return out;
  problem.out = out.mutable_data_ptr();
  if (missing == kX && index) {
    const Edges ends = by_node(nodes, problem.nodes);
    problem.ends = &ends;
    const std::int64_t tasks = std::clamp<std::int64_t>((ends.count + problem.nodes) / kGrain, 1, kMaxTasks);
    parallel_for(tasks, 1, [&](std::int64_t begin, std::int64_t end) {
      kernel(problem, ends.cut(begin, tasks), ends.cut(end, tasks));
    });
  } else {
    parallel_for(problem.edges, kGrain, [&](std::int64_t begin, std::int64_t end) { kernel(problem, begin, end); });
  }
  return out;
}

}  // namespace
}  // namespace eqk::rotate

STABLE_TORCH_LIBRARY_IMPL(eqk, CPU, m) { m.impl("rotate", TORCH_BOX(&eqk::rotate::rotate)); }
