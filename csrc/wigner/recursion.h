#pragma once
// Real Wigner D matrices in e3nn's basis (m = -l..l, polar axis y) from quaternions, as polynomials: no angle, no
// square root, nothing special about any rotation.
//
// With Z_m = (Y_m + i Y_-m) / sqrt(2) of real harmonics, Z_-m its conjugate and Z_0 = Y_0, let U^l be the matrix of a
// rotation in the basis Z, and for k >= 0 and m >= 0
//
//   P^l = U^l_(k,m),  Q^l = U^l_(k,-m)
//
// which are, of one of q = (w, x, y, z) with |q| = 1, a = w + i y and b = z + i x, at first, that is l = max(k, m),
// monomials in a, b and their conjugates, P^k_(k,k) = a^(2k) and Q^k_(k,k) = b^(2k), and then for t = cos(beta) =
// |a|^2 - |b|^2
//
//   P^l = (c t - d) P^(l-1) - e P^(l-2)         Q^l = (c t + d) Q^(l-1) - e Q^(l-2)
//
// the recursion of Jacobi polynomials (Varshalovich, Moskalev & Khersonskii, Quantum Theory of Angular Momentum, 4.8;
// Kostelec & Rockmore, J. Fourier Anal. Appl. 14, 145 (2008)). It multiplies errors of P and Q by what it multiplies P
// and Q by, which near the poles differ by orders of magnitude: so it runs on P and Q, whose sums and differences are
// the elements of the real matrix, and takes t as +-1 -+ 2 s with the smaller s of |a|^2 and |b|^2.
#include <algorithm>
#include <cmath>

#include "core/macros.h"
#include "core/wigner_3j.h"

namespace eqk::wigner {

template <class T>
struct Coefficients {
  struct Step {
    T c, d, minus_e;
  };
  // Of the first P and Q of (k, m) in terms of those of (k, m - 1) or, where m < k, (k - 1, m); then at l.
  T first[kMaxDegree + 1][kMaxDegree + 1] = {};
  Step step[kMaxDegree + 1][kMaxDegree + 1][kMaxDegree + 1] = {};

  Coefficients() {
    for (int k = 0; k <= kMaxDegree; ++k)
      for (int m = 0; m <= kMaxDegree; ++m) {
        const int high = std::max(k, m), low = std::min(k, m);
        // What has one index 0 is kept times sqrt(2).
        if (low < high)
          first[k][m] =
              static_cast<T>(high == 1 ? 1 : std::sqrt(high * (2 * high - 1) / (2.0 * (high - low) * (high + low))));
        const auto root = [&](int l) { return std::sqrt((l * l - k * k) * static_cast<double>(l * l - m * m)); };
        for (int l = high + 1; l <= kMaxDegree; ++l) {
          const double c = l * (2 * l - 1) / root(l);
          step[k][m][l] = {static_cast<T>(c), static_cast<T>(l > 1 ? c * k * m / (l * (l - 1)) : 0),
                           static_cast<T>(l > high + 1 ? -l * root(l - 1) / ((l - 1) * root(l)) : 0)};
        }
      }
  }
};

// What a row of q is to the recursion; V is T or a vector of T.
template <class T, class V>
class Rotation {
 public:
  // Any scale of q: powers of its length do not overflow. q = 0 is NaN.
  EQK_HD Rotation(const V* q, const Coefficients<T>& coefficients) : coefficients_(coefficients) {
    V largest{};
    for (int i = 0; i < 4; ++i) {
      const V size = q[i] < 0 ? -q[i] : q[i];
      largest = size > largest ? size : largest;
    }
    const V w = q[0] / largest, x = q[1] / largest, y = q[2] / largest, z = q[3] / largest;
    const V scale = T(2) / (w * w + x * x + y * y + z * z);
    const V w2 = scale * w, x2 = scale * x, y2 = scale * y, z2 = scale * z;
    a2_ = {T(0.5) * (w2 * w - y2 * y), w2 * y};
    b2_ = {T(0.5) * (z2 * z - x2 * x), z2 * x};
    row_ = {y2 * z + w2 * x, x2 * y - w2 * z};
    column_ = {y2 * z - w2 * x, x2 * y + w2 * z};
    const V twice_aa = w2 * w + y2 * y, twice_bb = x2 * x + z2 * z;
    pole_ = twice_bb < twice_aa ? V{} + T(1) : V{} - T(1);
    from_pole_ = twice_bb < twice_aa ? -twice_bb : twice_aa;
  }

  // put(l, m', m, D^l[m', m]) for l <= lmax and |m'| <= mmax <= lmax.
  template <class Put>
  EQK_HD void matrices(int lmax, int mmax, Put&& put) const {
    const V one = V{} + T(1);
    Pair above[kMaxDegree + 1];  // the first P and Q of (k - 1, m), m < k
    Complex p{one, V{}};
    climb(0, 0, lmax, Real{one}, put);
    above[0].p = p;
    for (int m = 1; m <= lmax; ++m) {  // the conjugate of P
      p = coefficients_.first[0][m] * (p * column_);
      climb(0, m, lmax, p, put);
    }
    Pair corner{{one, V{}}, {one, V{}}};
    for (int k = 1; k <= mmax; ++k) {
      above[0].p = coefficients_.first[k][0] * (above[0].p * row_);
      climb(k, 0, lmax, above[0].p, put);
      corner = {corner.p * a2_, corner.q * b2_};
      Pair now;
      for (int m = 1; m <= lmax; ++m) {
        if (m == k) {
          now = corner;
        } else if (m < k) {
          const Complex f = coefficients_.first[k][m] * row_;
          now = {above[m].p * f, above[m].q * f};
        } else {
          const Complex f = coefficients_.first[k][m] * column_;
          now = {now.p * conjugate(f), now.q * f};
        }
        if (m <= k) above[m] = now;
        climb(k, m, lmax, now, put);
      }
    }
  }

 private:
  struct Complex {
    V re, im;
  };
  friend EQK_HD Complex operator*(const Complex& a, const Complex& b) {
    return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
  }
  friend EQK_HD Complex operator*(T s, const Complex& a) { return {s * a.re, s * a.im}; }
  static EQK_HD Complex conjugate(const Complex& a) { return {a.re, -a.im}; }
  struct Real {
    V re;
  };
  struct Pair {
    Complex p, q;
  };
  using Step = typename Coefficients<T>::Step;

  const Coefficients<T>& coefficients_;
  // a^2, b^2, R_zy + i R_xy and R_yz + i R_yx of the rotation R; cos(beta) is the sum of the last two.
  Complex a2_, b2_, row_, column_;
  V pole_, from_pole_;

  template <class Element, class Put>
  EQK_HD void climb(int k, int m, int lmax, Element now, Put& put) const {
    int l = std::max(k, m);
    elements(l, k, m, now, put);
    Element before{};
    for (++l; l <= lmax; ++l) {
      const Step& s = coefficients_.step[k][m][l];
      const Element next = stepped(s, now, before);
      before = now;
      now = next;
      elements(l, k, m, now, put);
    }
  }

  EQK_HD V factor(const Step& s, V d) const { return s.c * from_pole_ + (s.c * pole_ + d); }

  EQK_HD Real stepped(const Step& s, const Real& now, const Real& before) const {
    return {factor(s, V{}) * now.re + s.minus_e * before.re};
  }
  EQK_HD Complex stepped(const Step& s, const Complex& now, const Complex& before) const {
    return along(factor(s, V{}), s, now, before);
  }
  EQK_HD Pair stepped(const Step& s, const Pair& now, const Pair& before) const {
    const V d = V{} + s.d;
    return {along(factor(s, -d), s, now.p, before.p), along(factor(s, d), s, now.q, before.q)};
  }
  static EQK_HD Complex along(V f, const Step& s, const Complex& now, const Complex& before) {
    return {f * now.re + s.minus_e * before.re, f * now.im + s.minus_e * before.im};
  }

  template <class Put>
  static EQK_HD void elements(int l, int, int, const Real& u, Put& put) {
    put(l, 0, 0, u.re);
  }
  template <class Put>
  static EQK_HD void elements(int l, int k, int m, const Complex& u, Put& put) {
    put(l, k, m, u.re);
    put(l, -k, -m, u.im);
  }
  template <class Put>
  static EQK_HD void elements(int l, int k, int m, const Pair& u, Put& put) {
    put(l, k, m, u.p.re + u.q.re);
    put(l, k, -m, u.q.im - u.p.im);
    put(l, -k, m, u.p.im + u.q.im);
    put(l, -k, -m, u.p.re - u.q.re);
  }
};

}  // namespace eqk::wigner
