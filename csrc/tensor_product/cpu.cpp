#include <algorithm>

#include "tensor_product/cpu_kernels.h"
#include "tensor_product/cpu_matmul.h"

#define EQK_ISA host
#include "core/cpu_dispatch.h"
#include "core/lanes.h"
#include "tensor_product/cpu_weight_parts.h"
#include "tensor_product/op.h"

namespace eqk::tensor_product {

RowsKernel rows_kernel() {
  static const RowsKernel kernel = EQK_CHOOSE_KERNEL();
  return kernel;
}

namespace {

struct CpuPlan {
  Lowered lowered;
  std::unique_ptr<const MatmulPlan> matmul;
};

// Plans are never freed: their addresses tell them apart.
std::shared_ptr<const CpuPlan> cached_lowering(const Plan& plan) {
  return cached(&plan, [&] { return CpuPlan{lower(plan, EQK_LMAX), MatmulPlan::of(plan, EQK_LMAX)}; });
}

constexpr std::int64_t kBlock = 32;  // rows; a multiple of every kernel's own block, so threads split where kernels do

void launch(const Problem& problem, const Tensor& like) {
  const RowsKernel kernel = rows_kernel();
  // Rows without columns take no memory: there may be more of them than anyone can wait for.
  if (std::none_of(problem.out.begin(), problem.out.end(), [](const Result& r) { return r.data; })) return;
  const auto lowering = cached_lowering(*problem.plan);
  const CpuPlan& plan = *lowering;
  // The library would round what lies between in 16 bits.
  const bool matmul = plan.matmul && (problem.dtype == Dtype::float32 || problem.dtype == Dtype::float64);
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

}  // namespace
}  // namespace eqk::tensor_product

STABLE_TORCH_LIBRARY_IMPL(eqk, CPU, m) { eqk::tensor_product::register_impls<&eqk::tensor_product::launch>(m); }
