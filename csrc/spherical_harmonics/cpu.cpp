#include <algorithm>
#include <array>

#include "core/cpu_dispatch.h"
#include "spherical_harmonics/plan.h"

namespace eqk::spherical_harmonics {

template <class T>
const SolidCoefficients<T>& solid_coefficients() {
  return *cached(0, [] { return SolidCoefficients<T>(); });
}
template const SolidCoefficients<float>& solid_coefficients<float>();
template const SolidCoefficients<double>& solid_coefficients<double>();

namespace {

constexpr std::int64_t kGrain = 256;  // rows that are worth a thread; a multiple of every kernel's vector

Tensor launch(const char* op, const Tensor& x, const Tensor* g, const std::string& plan_text) {
  const RowsKernel kernel = EQK_CHOOSE_KERNEL();
  const auto plan = cached_plan(plan_text);
  const auto columns = static_cast<std::int64_t>(plan->index.size());
  Problem problem;
  problem.plan = plan;
  problem.dtype = kernel_dtype(op, x);
  if (x.dim() != 2 || x.size(1) != 3) fail("eqk::", op, ": x: expected shape [rows, 3], got ", shape_string(x));
  problem.rows = x.size(0);
  const Tensor kept_x = with_adjacent_columns(x);
  problem.x = kept_x.const_data_ptr();
  problem.x_stride = kept_x.stride(0);
  Tensor kept_g;
  if (g) {
    check_shape(op, "g", *g, std::array{problem.rows, columns});
    check_like(op, "g", *g, x);
    kept_g = with_adjacent_columns(*g);
    problem.g = kept_g.const_data_ptr();
    problem.g_stride = kept_g.stride(0);
  }
  Tensor out = empty(x, {problem.rows, g ? 3 : columns});
  problem.out = out.mutable_data_ptr();
  if (columns == 0) return g ? torch::stable::zero_(out) : out;
  parallel_for((problem.rows + kGrain - 1) / kGrain, 1, [&](std::int64_t begin, std::int64_t end) {
    kernel(problem, begin * kGrain, std::min(end * kGrain, problem.rows));
  });
  return out;
}

Tensor forward(const Tensor& x, StringArgument plan) { return launch("spherical_harmonics", x, nullptr, plan); }

Tensor backward(const Tensor& x, const Tensor& g, StringArgument plan) {
  return launch("spherical_harmonics_backward", x, &g, plan);
}

}  // namespace
}  // namespace eqk::spherical_harmonics

STABLE_TORCH_LIBRARY_IMPL(eqk, CPU, m) {
  m.impl("spherical_harmonics", TORCH_BOX(&eqk::spherical_harmonics::forward));
  m.impl("spherical_harmonics_backward", TORCH_BOX(&eqk::spherical_harmonics::backward));
}
