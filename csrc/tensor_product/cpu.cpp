#include <algorithm>

#include "tensor_product/cpu_kernels.h"
#include "tensor_product/cpu_matmul.h"

#define EQK_ISA host
#include "core/cpu_dispatch.h"
#include "core/lanes.h"
#include "tensor_product/cpu_weight_parts.h"
#include "tensor_product/op.h"

namespace eqk::tensor_product {

RowsKernel rows_kernel() { return EQK_CHOOSE_KERNEL(); }

namespace {

struct CpuPlan {
  Lowered lowered;
  std::unique_ptr<const MatmulPlan> matmul;
};

// Plans are never freed: their addresses tell them apart.
const CpuPlan* cached_lowering(const Plan& plan) {
  return cached(&plan, [&] { return CpuPlan{lower(plan, EQK_LMAX), MatmulPlan::of(plan, EQK_LMAX)}; });
}

constexpr std::int64_t kBlock = 32;  // rows; a multiple of every kernel's own block, so threads split where kernels do

// The library would round what lies between in 16 bits.
bool by_matmul(const CpuPlan& plan, Dtype dtype) {
  return plan.matmul && (dtype == Dtype::float32 || dtype == Dtype::float64);
}

void launch(const Problem& problem, const Tensor& like) {
  const RowsKernel kernel = rows_kernel();
  // Rows without columns take no memory: there may be more of them than anyone can wait for.
  if (std::none_of(problem.out.begin(), problem.out.end(), [](const Result& r) { return r.data; })) return;
  const auto lowering = cached_lowering(*problem.plan);
  const CpuPlan& plan = *lowering;
  const bool matmul = by_matmul(plan, problem.dtype);
  const std::int64_t block = matmul ? plan.matmul->block(problem.rows) : kBlock;
  const std::int64_t blocks = problem.rows / block + (problem.rows % block != 0);
  const auto run = [&](std::int64_t first, std::int64_t last, void* weight_partial) {
    const std::int64_t begin = first * block, end = last < blocks ? last * block : problem.rows;
    if (begin >= end) return;
    if (!matmul)
      kernel(problem, plan.lowered, begin, end, weight_partial);
    else if (problem.dtype == Dtype::float64)
      MatmulRows<double>(problem, *plan.matmul, kernel, like, static_cast<double*>(weight_partial)).run(begin, end);
    else
      MatmulRows<float>(problem, *plan.matmul, kernel, like, static_cast<float*>(weight_partial)).run(begin, end);
  };
  // Outside a parallel region the library would split a product over threads, and its bits change with their number; a
  // range of one is not made a region.
  const auto tasks = [&](std::int64_t n) { return matmul ? std::max<std::int64_t>(n, 2) : n; };
  if (!(problem.out[kW].data && problem.plan->weights == Weights::shared)) {
    parallel_for(tasks(blocks), 1, [&](std::int64_t begin, std::int64_t end) { run(begin, end, nullptr); });
    return;
  }
  const std::int64_t parts = WeightParts::count(problem.dtype, problem.plan->weight_numel, blocks);
  const WeightParts sums(problem.dtype, problem.plan->weight_numel, parts, like);
  parallel_for(tasks(parts), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t p = begin; p < std::min(end, parts); ++p)
      run(blocks * p / parts, blocks * (p + 1) / parts, sums.of(p));
  });
  sums.reduce(problem.out[kW].data);
}

// What runs the value and first gradients of a plan in the dtype of x.
std::string kernel_names(const Tensor& x, StringArgument text) {
  const auto parsed = cached_plan(text);
  const auto lowering = cached_lowering(*parsed);
  Problem problem;
  problem.plan = parsed;
  problem.dtype = kernel_dtype("tensor_product_cpu_kernel", x);
  const auto lanes = [&](const Plan& plan, const Lowered& lowered) -> std::string {
    if (plan.instructions.empty()) return "none";
    return rows_kernel().in_channels(problem, lowered) ? "channels" : "rows";
  };
  if (!by_matmul(*lowering, problem.dtype)) return lanes(*parsed, lowering->lowered);
  const MatmulPlan& matmul = *lowering->matmul;
  std::string result = "matmul, outer products by";
  for (const MatmulGroup& group : matmul.groups) {
    const std::string name = lanes(group.outer, group.lowered);
    if (!result.ends_with(name)) result.append(" ").append(name);
  }
  return matmul.rest.instructions.empty() ? result
                                          : result + ", other paths by " + lanes(matmul.rest, matmul.rest_lowered);
}

}  // namespace
}  // namespace eqk::tensor_product

STABLE_TORCH_LIBRARY_IMPL(eqk, CompositeExplicitAutograd, m) {
  m.impl("tensor_product_cpu_kernel", TORCH_BOX(&eqk::tensor_product::kernel_names));
}

STABLE_TORCH_LIBRARY_IMPL(eqk, CPU, m) { eqk::tensor_product::register_impls<&eqk::tensor_product::launch>(m); }
