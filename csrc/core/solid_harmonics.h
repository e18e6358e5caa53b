#pragma once
// Real solid harmonics r^l Y_lm in e3nn's basis (m = -l..l, polar axis y, azimuth from z to x, no Condon-Shortley
// phase) and their gradient, as polynomials in x, y, z: no trigonometry, no division, so exact on the axes and at zero.
//
// Component normalisation: sum_m Y_lm^2 = (2 l + 1) r^(2l). With C_m + i S_m for the components m and -m:
//
//   Y_l,+-m = a_lm y Y_(l-1),+-m - b_lm r^2 Y_(l-2),+-m                                     m < l
//   C_ll + i S_ll = d_l (z + i x) (C + i S)_(l-1),(l-1)
//
// the recursion of the normalised associated Legendre functions (Holmes & Featherstone, J. Geodesy 76, 279 (2002),
// eq. 11) made homogeneous. A derivative of Y_l is a combination of the components m - 1, m, m + 1 of Y_(l-1):
// Varshalovich, Moskalev & Khersonskii, Quantum Theory of Angular Momentum, 5.8.3, in the real basis.
#include <cmath>

#include "core/macros.h"
#include "core/scalar.h"
#include "core/wigner_3j.h"

namespace eqk {

EQK_HD constexpr int solid_index(int l, int m) { return l * l + l + m; }
inline constexpr int kSolidSize = solid_index(kMaxDegree, kMaxDegree) + 1;

// Coefficients of the recursions at (l, m >= 0), l >= 1, at solid_index(l, m).
template <class T>
struct SolidCoefficients {
  T diagonal[kMaxDegree + 1] = {};
  T a[kSolidSize] = {}, minus_b[kSolidSize] = {};
  // d/dy takes m of degree l - 1; d/dz and d/dx take m - 1 with `lower` and m + 1 with `upper`.
  T same[kSolidSize] = {}, lower[kSolidSize] = {}, upper[kSolidSize] = {};

  SolidCoefficients() {
    for (int l = 1; l <= kMaxDegree; ++l) {
      diagonal[l] = static_cast<T>(std::sqrt(l == 1 ? 3.0 : (2 * l + 1) / (2.0 * l)));
      const double ratio = (2 * l + 1) / (2.0 * l - 1);
      for (int m = 0; m <= l; ++m) {
        const int at = solid_index(l, m);
        const auto root = [](double v) { return static_cast<T>(std::sqrt(v)); };
        if (m < l) a[at] = root((2 * l + 1) * (2.0 * l - 1) / ((l - m) * (l + m)));
        if (m < l - 1)
          minus_b[at] = -root(ratio * (2.0 * l - 1) * (l - 1 - m) * (l - 1 + m) / ((2.0 * l - 3) * (l - m) * (l + m)));
        same[at] = root(ratio * (l - m) * (l + m));
        lower[at] = root(ratio * (m == 1 ? 0.5 : 0.25) * (l + m) * (l + m - 1));
        upper[at] = root(ratio * (m == 0 ? 0.5 : 0.25) * (l - m) * (l - m - 1));
      }
    }
  }
};

namespace detail {
template <int N>
EQK_HD constexpr constant<N + 1> successor(constant<N>) {
  return {};
}
EQK_HD constexpr int successor(int n) { return n + 1; }

// f(0), ..., f(n - 1): unrolled where n is a compile-time value.
template <int N, class F>
EQK_HD void repeat(constant<N>, F&& f) {
  unroll<N>(f);
}
template <class F>
EQK_HD void repeat(int n, F&& f) {
  for (int i = 0; i < n; ++i) f(i);
}
}  // namespace detail

// out[solid_index(l, m)] = Y_lm for l <= lmax, which is an int or a constant<>. S is T, a vector of T, or Dual of
// either.
template <class T, class S, class Degree>
EQK_HD void solid_harmonics(Degree lmax, const S& one, const S& x, const S& y, const S& z,
                            const SolidCoefficients<T>& c, S* out) {
  out[0] = one;
  S r2 = mul(x, x);
  fma(r2, y, y);
  fma(r2, z, z);
  detail::repeat(lmax, [&](auto below) EQK_LAMBDA {
    const int l = below + 1;
    detail::repeat(detail::successor(below), [&](auto m) EQK_LAMBDA {
      const S ay = mul(c.a[solid_index(l, m)], y), br2 = mul(c.minus_b[solid_index(l, m)], r2);
      for (int sign = m ? -1 : 1; sign <= 1; sign += 2) {
        S value = mul(ay, out[solid_index(l - 1, sign * m)]);
        if (m < l - 1) fma(value, br2, out[solid_index(l - 2, sign * m)]);
        out[solid_index(l, sign * m)] = value;
      }
    });
    const S dz = mul(c.diagonal[l], z), dx = mul(c.diagonal[l], x);
    const S cos = out[solid_index(l - 1, l - 1)];
    S to_cos = mul(dz, cos), to_sin = mul(dx, cos);
    if (l > 1) {
      const S sin = out[solid_index(l - 1, 1 - l)];
      fma(to_cos, mul(static_cast<T>(-1), dx), sin);
      fma(to_sin, dz, sin);
    }
    out[solid_index(l, l)] = to_cos;
    out[solid_index(l, -l)] = to_sin;
  });
}

// gx[a] += sum_lm g_lm dY_lm/dx_a for l <= lmax, given the values of degrees below lmax in `values`.
template <class T, class S, class Degree>
EQK_HD void solid_harmonics_backward(Degree lmax, const S* values, const S* g, const SolidCoefficients<T>& c, S* gx) {
  detail::repeat(lmax, [&](auto below) EQK_LAMBDA {
    const int l = below + 1;
    const S* const v = values + solid_index(l - 1, 0);
    detail::repeat(detail::successor(detail::successor(below)), [&](auto m) EQK_LAMBDA {
      const int at = solid_index(l, m);
      const S& gc = g[at];
      const S& gs = g[solid_index(l, -m)];  // at m = 0 the same as gc, and unused
      if (m < l) {
        S s = mul(gc, v[m]);
        if (m > 0) fma(s, gs, v[-m]);
        fma(gx[1], c.same[at], s);
      }
      if (m > 0) {
        const S gc_lower = mul(c.lower[at], gc), gs_lower = mul(c.lower[at], gs);
        fma(gx[2], gc_lower, v[m - 1]);
        fma(gx[0], gs_lower, v[m - 1]);
        if (m > 1) {
          fma(gx[2], gs_lower, v[1 - m]);
          fma(gx[0], mul(static_cast<T>(-1), gc_lower), v[1 - m]);
        }
      }
      if (m < l - 1) {
        const S minus_gc = mul(-c.upper[at], gc);
        fma(gx[2], minus_gc, v[m + 1]);
        fma(gx[0], minus_gc, v[-m - 1]);
        if (m > 0) {
          const S gs_upper = mul(c.upper[at], gs);
          fma(gx[2], mul(static_cast<T>(-1), gs_upper), v[-m - 1]);
          fma(gx[0], gs_upper, v[m + 1]);
        }
      }
    });
  });
}

}  // namespace eqk
