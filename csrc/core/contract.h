#pragma once
// The contraction of one path (l1, l2, l3) on register arrays, unrolled over the nonzero coefficients, for the CPU's
// kernels. T may be a number, a SIMD vector or a Dual of either.
#include "cg_table.h"
#include "core/macros.h"
#include "core/scalar.h"

namespace eqk {

// m[pair] = coefficient * sum_j C[i, j, k] y[j]: what all channels of a row share.
template <class C, class Real, class T>
EQK_HD void contract_y(const T* y, Real coefficient, T* m) {
  EQK_UNROLL for (int p = 0; p < C::pairs; ++p) m[p] = T{};
  EQK_UNROLL for (int n = 0; n < C::terms; ++n) m[C::term_pair[n]] += static_cast<Real>(C::term_c[n]) * y[C::term_j[n]];
  EQK_UNROLL for (int p = 0; p < C::pairs; ++p) m[p] *= coefficient;
}

// out[k] += sum_i m[k, i] x[i], or only the wanted part of it
template <class C, class M, class X, class R>
EQK_HD void apply(M&& m, const X* x, R* out) {
  EQK_UNROLL for (int p = 0; p < C::pairs; ++p) {
    const int i = C::pair_i[p], k = C::pair_k[p];
    if constexpr (is_dual<X> && !is_dual<R>)
      fma_part(out[k], m(p), x[i]);
    else
      fma(out[k], m(p), x[i]);
  }
}

// The pairs of a path in the order of k: those of component k are pair[begin[k]] to pair[begin[k + 1]].
template <class C>
struct PairsByK {
  int begin[2 * C::l3 + 2] = {}, pair[C::pairs] = {};
  constexpr PairsByK() {
    int n = 0;
    for (int k = 0; k <= 2 * C::l3; ++k) {
      begin[k] = n;
      for (int p = 0; p < C::pairs; ++p)
        if (C::pair_k[p] == k) pair[n++] = p;
    }
    begin[2 * C::l3 + 1] = n;
  }
};
template <class C>
inline constexpr PairsByK<C> kPairsByK{};

// The same in the order of i, in which pairs are numbered: those of component i are begin[i] to begin[i + 1].
template <class C>
struct PairsByI {
  int begin[2 * C::l1 + 2] = {};
  constexpr PairsByI() {
    for (int p = 0; p < C::pairs; ++p) ++begin[C::pair_i[p] + 1];
    for (int i = 0; i <= 2 * C::l1; ++i) begin[i + 1] += begin[i];
  }
};
template <class C>
inline constexpr PairsByI<C> kPairsByI{};

// gy[j] += coefficient * sum_ik C[i, j, k] s[k, i] over the pairs that are wanted; s has a place for each pair.
template <class C, class Real, class T, class Wanted>
EQK_HD void contract_s(const T* s, Real coefficient, T* gy, Wanted) {
  T sum[2 * C::l2 + 1] = {};
  EQK_UNROLL for (int n = 0; n < C::terms; ++n) {
    const int pair = C::term_pair[n];
    if (Wanted::has(C::pair_i[pair], C::pair_k[pair])) sum[C::term_j[n]] += static_cast<Real>(C::term_c[n]) * s[pair];
  }
  EQK_UNROLL for (int j = 0; j <= 2 * C::l2; ++j) gy[j] += coefficient * sum[j];
}

}  // namespace eqk
