#pragma once
// The contraction of one path (l1, l2, l3) on register arrays, unrolled over the nonzero coefficients. g++ and nvcc
// compile the same text: T may be a number, a SIMD vector or a Dual of either.
#include "cg_table.h"
#include "core/macros.h"
#include "core/scalar.h"

namespace eqk {

// m[pair] = coefficient * sum_j C[i, j, k] y[j]: what all channels of a row share.
template <class C, class Real, class T>
EQK_HD void contract_y(const T* y, Real coefficient, T* m) {
  unroll<C::pairs>([&](auto p) EQK_LAMBDA { m[p] = T{}; });
  unroll<C::terms>([&](auto n) EQK_LAMBDA {
    constexpr int pair = C::term_pair[n], j = C::term_j[n];
    constexpr Real c = static_cast<Real>(C::term_c[n]);
    m[pair] += (c * coefficient) * y[j];
  });
}

// out[k] += sum_i m[k, i] x[i], or only the wanted part of it
template <class C, class M, class X, class R>
EQK_HD void apply(M&& m, const X* x, R* out) {
  unroll<C::pairs>([&](auto p) EQK_LAMBDA {
    constexpr int i = C::pair_i[p], k = C::pair_k[p];
    if constexpr (is_dual<X> && !is_dual<R>)
      fma_part(out[k], m(p), x[i]);
    else
      fma(out[k], m(p), x[i]);
  });
}

// h[i] += sum_k m[k, i] g[k]
template <class C, class M, class G, class R>
EQK_HD void apply_transposed(M&& m, const G* g, R* h) {
  unroll<C::pairs>([&](auto p) EQK_LAMBDA {
    constexpr int i = C::pair_i[p], k = C::pair_k[p];
    fma(h[i], m(p), g[k]);
  });
}

// gy[j] += coefficient * sum_ik C[i, j, k] s[k, i]
template <class C, int kFirst, int kLast, class Real, class T>
EQK_HD void contract_s(const T* s, Real coefficient, T* gy) {
  unroll<C::terms>([&](auto n) EQK_LAMBDA {
    constexpr int pair = C::term_pair[n], j = C::term_j[n];
    if constexpr (pair >= kFirst && pair < kLast) {
      constexpr Real c = static_cast<Real>(C::term_c[n]);
      gy[j] += (c * coefficient) * s[pair - kFirst];
    }
  });
}

}  // namespace eqk
