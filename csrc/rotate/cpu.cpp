#include <algorithm>
#include <vector>

#include "core/cpu_dispatch.h"
#include "core/node_order.h"
#include "rotate/op.h"

namespace eqk::rotate {
namespace {

constexpr std::int64_t kGrain = 16, kMaxTasks = 256;  // edges that are worth a thread; tasks of sums over edges

Tensor rotate(const OptionalTensor& x, const OptionalTensor& d, const OptionalTensor& weights, const OptionalTensor& z,
              const OptionalTensor& index, std::int64_t num_nodes, std::int64_t groups, std::int64_t columns,
              std::int64_t lmax, std::int64_t mmax, bool rescale, std::int64_t missing) {
  const Kernel kernel = EQK_CHOOSE_KERNEL();
  const std::array<OptionalTensor, kSlots> operands{x, d, weights, z};
  Call call(operands, index, {num_nodes, groups, columns}, lmax, mmax, rescale, missing);
  Problem& problem = call.problem();
  std::vector<std::int64_t> nodes;
  if (index) {
    nodes = read_index("rotate", *index, 0, index->size(0), problem.nodes);
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
