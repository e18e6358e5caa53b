#pragma once
// The scalar types of every inner loop: T, a SIMD vector of T, and Dual of either.
#include "core/macros.h"

namespace eqk {

// a + eps b with eps^2 = 0. Running a multilinear form on duals yields its directional derivative as the eps part.
template <class T>
struct Dual {
  T v, t;
};

template <class S>
inline constexpr bool is_dual = false;
template <class T>
inline constexpr bool is_dual<Dual<T>> = true;

template <class A, class B>
EQK_HD auto mul(const A& a, const B& b) {
  if constexpr (is_dual<A> && is_dual<B>)
    return Dual<decltype(a.v * b.v)>{a.v * b.v, a.v * b.t + a.t * b.v};
  else if constexpr (is_dual<A>)
    return Dual<decltype(a.v * b)>{a.v * b, a.t * b};
  else if constexpr (is_dual<B>)
    return Dual<decltype(a * b.v)>{a * b.v, a * b.t};
  else
    return a * b;
}

// r += a b
template <class R, class A, class B>
EQK_HD void fma(R& r, const A& a, const B& b) {
  if constexpr (is_dual<A> && is_dual<B>) {
    r.v += a.v * b.v;
    r.t += a.v * b.t;
    r.t += a.t * b.v;
  } else if constexpr (is_dual<A>) {
    r.v += a.v * b;
    r.t += a.t * b;
  } else if constexpr (is_dual<B>) {
    r.v += a * b.v;
    r.t += a * b.t;
  } else {
    r += a * b;
  }
}

// r += the wanted part of a b: all of it for plain scalars, the eps part for duals.
template <class R, class A, class B>
EQK_HD void fma_part(R& r, const A& a, const B& b) {
  if constexpr (is_dual<A> && is_dual<B>) {
    r += a.v * b.t;
    r += a.t * b.v;
  } else if constexpr (is_dual<A>) {
    r += a.t * b;
  } else if constexpr (is_dual<B>) {
    r += a * b.t;
  } else {
    r += a * b;
  }
}

template <class S>
EQK_HD auto part(const S& s) {
  if constexpr (is_dual<S>)
    return s.t;
  else
    return s;
}

}  // namespace eqk
