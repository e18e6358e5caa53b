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

#include "core/macros.h"
#include "core/wigner_3j.h"

namespace eqk::wigner {

// By Newton's method, from above: the library's is no constant.
constexpr double square_root(double x) {
  double root = x > 1 ? x : 1, next = (root + x / root) / 2;
  while (next < root) root = next, next = (root + x / root) / 2;
  return root;
}

// Constants of all degrees, which depend on k and m as a pair without order, low <= high.
template <class T>
struct Coefficients {
  struct Step {
    T c, d, minus_e;
  };
  static constexpr int pairs(int high) { return high * (high + 1) / 2; }     // below (high, 0)
  static constexpr int triples(int l) { return (l - 1) * l * (l + 1) / 6; }  // below those of l
  T first[pairs(kMaxDegree + 1)] = {};      // of the first P and Q, in terms of monomials
  Step step[triples(kMaxDegree + 1)] = {};  // to degree l
  T turn[pairs(kMaxDegree + 1)] = {};       // of (l, m), by which a turn couples m and m + 1 (torque.h)

  constexpr Coefficients() {
    for (int low = 0; low <= kMaxDegree; ++low) {
      // What has one index 0 is kept times sqrt(2).
      double square = 1, kept = low ? 1 : 2;
      for (int high = low; high <= kMaxDegree; ++high) {
        if (high > low) square *= high * (2 * high - 1) / (2.0 * (high - low) * (high + low));
        first[pairs(high) + low] = static_cast<T>(square_root(high ? kept * square : 1));
        const auto root = [&](int l) {
          return square_root(static_cast<double>(l * l - high * high) * (l * l - low * low));
        };
        for (int l = high + 1; l <= kMaxDegree; ++l) {
          const double c = l * (2 * l - 1) / root(l);
          step[triples(l) + pairs(high) + low] = {
              static_cast<T>(c), static_cast<T>(l > 1 ? c * high * low / (l * (l - 1)) : 0),
              static_cast<T>(l > high + 1 ? -l * root(l - 1) / ((l - 1) * root(l)) : 0)};
        }
        if (high > low)
          turn[pairs(high) + low] = static_cast<T>(square_root(kept * (high - low) * (high + low + 1) / 4));
      }
    }
  }
};

template <class T>
inline constexpr Coefficients<T> kCoefficients{};

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

  // put(l, m', m, D^l[m', m], D^l[m', -m]) for l <= lmax, |m'| <= mmax <= lmax and 0 <= m <= l. (|m'|, m) goes along
  // diagonals, on which monomials are made of those before, and of them takes every one in `shares`, from `share` on.
  template <class Put>
  EQK_HD void matrices(int lmax, int mmax, int share, int shares, Put&& put) const {
    Complex power{V{} + T(1), V{}};
    EQK_ROLLED
    for (int n = 0; n <= mmax + lmax; ++n) {
      const bool of_row = n <= mmax;
      if (n % shares == share)
        diagonal(of_row ? n : 0, of_row ? 0 : n - mmax, lmax, mmax, {power.re, of_row ? power.im : -power.im}, power,
                 put);
      power = n == mmax ? column_ : power * (n < mmax ? row_ : column_);
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
  struct Real {
    V re;
  };
  friend EQK_HD Real operator*(T s, const Real& a) { return {s * a.re}; }
  struct Pair {
    Complex p, q;
  };
  friend EQK_HD Pair operator*(T s, const Pair& a) { return {s * a.p, s * a.q}; }
  using Step = typename Coefficients<T>::Step;

  const Coefficients<T>& coefficients_;
  // a^2, b^2, R_zy + i R_xy and R_yz + i R_yx of the rotation R; cos(beta) is the sum of the last two.
  Complex a2_, b2_, row_, column_;
  V pole_, from_pole_;

  // P and Q of the first (k, m) in monomials; one of k and m is 0.
  template <class Put>
  EQK_HD void diagonal(int k, int m, int lmax, int mmax, Complex p, Complex q, Put& put) const {
    if (k + m == 0)
      climb(0, 0, lmax, Real{p.re}, put);
    else
      climb(k, m, lmax, q, put);
    Pair now{p, q};
    EQK_ROLLED
    for (++k, ++m; k <= mmax && m <= lmax; ++k, ++m) {
      now = {now.p * a2_, now.q * b2_};
      climb(k, m, lmax, now, put);
    }
  }

  template <class Element, class Put>
  EQK_HD void climb(int k, int m, int lmax, const Element& monomials, Put& put) const {
    const int high = std::max(k, m), pair = Coefficients<T>::pairs(high) + std::min(k, m);
    Element now = coefficients_.first[pair] * monomials, before{};
    elements(high, k, m, now, put);
    const Step* step = coefficients_.step + Coefficients<T>::triples(high + 1) + pair;
    EQK_ROLLED
    for (int l = high + 1, pairs = Coefficients<T>::pairs(l); l <= lmax; step += pairs, pairs += ++l) {
      const Element next = stepped(*step, now, before);
      before = now;
      now = next;
      elements(l, k, m, now, put);
    }
  }

  EQK_HD Real stepped(const Step& s, const Real& now, const Real& before) const {
    return {(s.c * from_pole_ + s.c * pole_) * now.re + s.minus_e * before.re};
  }
  EQK_HD Complex stepped(const Step& s, const Complex& now, const Complex& before) const {
    return along(s.c * from_pole_ + s.c * pole_, s, now, before);
  }
  EQK_HD Pair stepped(const Step& s, const Pair& now, const Pair& before) const {
    const V at_pole = s.c * pole_;
    return {along(s.c * from_pole_ + (at_pole - s.d), s, now.p, before.p),
            along(s.c * from_pole_ + (at_pole + s.d), s, now.q, before.q)};
  }
  static EQK_HD Complex along(V f, const Step& s, const Complex& now, const Complex& before) {
    return {f * now.re + s.minus_e * before.re, f * now.im + s.minus_e * before.im};
  }

  template <class Put>
  static EQK_HD void elements(int l, int, int, const Real& u, Put& put) {
    put(l, 0, 0, u.re, V{});
  }
  template <class Put>
  static EQK_HD void elements(int l, int k, int m, const Complex& u, Put& put) {
    if (k == 0) return put(l, 0, m, u.re, u.im);
    put(l, k, 0, u.re, V{});
    put(l, -k, 0, u.im, V{});
  }
  template <class Put>
  static EQK_HD void elements(int l, int k, int m, const Pair& u, Put& put) {
    put(l, k, m, u.p.re + u.q.re, u.q.im - u.p.im);
    put(l, -k, m, u.p.im + u.q.im, u.p.re - u.q.re);
  }
};

}  // namespace eqk::wigner
