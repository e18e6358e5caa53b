#pragma once
// Arguments of both ops, checked and turned into a Problem, which a backend launches: launch(problem, q).
#include "core/tensor.h"
#include "core/wigner_3j.h"
#include "wigner/problem.h"

namespace eqk::wigner {

template <class Backend>
Tensor run(const char* op, const Tensor& q, const Tensor* g, std::int64_t lmax, std::int64_t mmax) {
  if (lmax < 0 || lmax > kMaxDegree)
    fail("eqk::", op, ": lmax: expected a degree from 0 to ", kMaxDegree, ", got ", lmax);
  if (mmax < 0 || mmax > lmax) fail("eqk::", op, ": mmax: expected an order from 0 to lmax = ", lmax, ", got ", mmax);
  Problem problem{.dtype = kernel_dtype(op, q, "q"), .lmax = static_cast<int>(lmax), .mmax = static_cast<int>(mmax)};
  if (q.dim() != 2 || q.size(1) != 4) fail("eqk::", op, ": q: expected shape [rows, 4], got ", shape_string(q));
  const Tensor kept_q = with_adjacent_columns(q);
  problem.rows = q.size(0);
  problem.columns = numbers(problem.lmax, problem.mmax);
  problem.q = kept_q.const_data_ptr();
  problem.q_stride = kept_q.stride(0);
  Tensor kept_g;
  if (g) {
    check_shape(op, "g", *g, std::array{problem.rows, problem.columns});
    check_like(op, "g", *g, q, "q");
    kept_g = with_adjacent_columns(*g);
    problem.g = kept_g.const_data_ptr();
    problem.g_stride = kept_g.stride(0);
  }
  Tensor out = empty(q, {problem.rows, g ? 4 : problem.columns});
  if (problem.rows == 0) return out;
  problem.out = out.mutable_data_ptr();
  Backend::launch(problem, q);
  return out;
}

template <class Backend>
Tensor forward(const Tensor& q, std::int64_t lmax, std::int64_t mmax) {
  return run<Backend>("wigner", q, nullptr, lmax, mmax);
}

template <class Backend>
Tensor backward(const Tensor& q, const Tensor& g, std::int64_t lmax, std::int64_t mmax) {
  return run<Backend>("wigner_backward", q, &g, lmax, mmax);
}

template <class Backend>
void register_impls(torch::stable::detail::StableLibrary& m) {
  m.impl("wigner", TORCH_BOX(&forward<Backend>));
  m.impl("wigner_backward", TORCH_BOX(&backward<Backend>));
}

}  // namespace eqk::wigner
