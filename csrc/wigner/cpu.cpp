#include "core/cpu_dispatch.h"
#include "core/tensor.h"
#include "wigner/problem.h"
#include "wigner/torque.h"

namespace eqk::wigner {

template <class T>
const Coefficients<T>& coefficients() {
  static const Coefficients<T> made;
  return made;
}
template const Coefficients<float>& coefficients<float>();
template const Coefficients<double>& coefficients<double>();

const Generators& generators() {
  static const Generators made;
  return made;
}

namespace {

constexpr std::int64_t kGrain = 16;  // vectors of rows that are worth a thread

Tensor wigner(const Tensor& q, std::int64_t lmax, std::int64_t mmax) {
  static const Kernels& kernels = EQK_CHOOSE_KERNEL();
  if (lmax < 0 || lmax > kMaxDegree)
    fail("eqk::wigner: lmax: expected a degree from 0 to ", kMaxDegree, ", got ", lmax);
  if (mmax < 0 || mmax > lmax) fail("eqk::wigner: mmax: expected an order from 0 to lmax = ", lmax, ", got ", mmax);
  Problem problem{
      .dtype = kernel_dtype("wigner", q, "q"), .lmax = static_cast<int>(lmax), .mmax = static_cast<int>(mmax)};
  if (q.dim() != 2 || q.size(1) != 4) fail("eqk::wigner: q: expected shape [rows, 4], got ", shape_string(q));
  const Tensor kept = with_adjacent_columns(q);
  problem.rows = q.size(0);
  problem.columns = numbers(problem.lmax, problem.mmax);
  problem.q = kept.const_data_ptr();
  problem.q_stride = kept.stride(0);
  Tensor out = empty(q, {problem.rows, problem.columns});
  problem.out = out.mutable_data_ptr();
  parallel_for(kernels.tasks(problem), kGrain,
               [&](std::int64_t begin, std::int64_t end) { kernels.run(problem, begin, end); });
  return out;
}

}  // namespace
}  // namespace eqk::wigner

STABLE_TORCH_LIBRARY_IMPL(eqk, CPU, m) { m.impl("wigner", TORCH_BOX(&eqk::wigner::wigner)); }
