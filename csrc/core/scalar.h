#pragma once
// The scalar types of every inner loop: T, a SIMD vector of T, Dual of either, and Dual of such a dual.
#include "core/macros.h"

namespace eqk {

// a + eps b with eps^2 = 0. Running a polynomial on duals yields its directional derivative as the eps part; on duals
// of duals, each with an eps of its own, one derivative along each.
template <class T>
struct Dual {
  T v, t;
};

template <class S>
inline constexpr bool is_dual = false;
template <class T>
inline constexpr bool is_dual<Dual<T>> = true;

// r += a b
template <class R, class A, class B>
EQK_HD void fma(R& r, const A& a, const B& b) {
  if constexpr (is_dual<A> && is_dual<B>) {
    fma(r.v, a.v, b.v);
    fma(r.t, a.v, b.t);
    fma(r.t, a.t, b.v);
  } else if constexpr (is_dual<A>) {
    fma(r.v, a.v, b);
    fma(r.t, a.t, b);
  } else if constexpr (is_dual<B>) {
    fma(r.v, a, b.v);
    fma(r.t, a, b.t);
  } else {
    r += a * b;
  }
}

template <class A, class B>
EQK_HD auto mul(const A& a, const B& b) {
  if constexpr (is_dual<A> && is_dual<B>) {
    auto t = mul(a.v, b.t);
    fma(t, a.t, b.v);
    return Dual<decltype(t)>{mul(a.v, b.v), t};
  } else if constexpr (is_dual<A>) {
    return Dual<decltype(mul(a.v, b))>{mul(a.v, b), mul(a.t, b)};
  } else if constexpr (is_dual<B>) {
    return Dual<decltype(mul(a, b.v))>{mul(a, b.v), mul(a, b.t)};
  } else {
    return a * b;
  }
}

// r += the wanted part of a b: all of it for plain scalars, the eps part for duals, of nested duals the part of every
// eps.
template <class R, class A, class B>
EQK_HD void fma_part(R& r, const A& a, const B& b) {
  if constexpr (is_dual<A> && is_dual<B>) {
    fma_part(r, a.v, b.t);
    fma_part(r, a.t, b.v);
  } else if constexpr (is_dual<A>) {
    fma_part(r, a.t, b);
  } else if constexpr (is_dual<B>) {
    fma_part(r, a, b.t);
  } else {
    r += a * b;
  }
}

template <class S>
EQK_HD auto part(const S& s) {
  if constexpr (is_dual<S>)
    return part(s.t);
  else
    return s;
}

}  // namespace eqk
