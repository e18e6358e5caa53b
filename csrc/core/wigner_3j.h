#pragma once
// Real Clebsch-Gordan coefficients of SO(3) in e3nn's basis, sign and normalisation, in double precision.
//
// The complex coefficients use the binomial form of the Racah sum (Varshalovich, Moskalev & Khersonskii, Quantum Theory
// of Angular Momentum, 8.2.1): for j1 + j2 + j3 <= 62 every product of binomials is an exact 64-bit integer, so
// cancellation in the alternating sum costs no digit. The change of basis is e3nn's (m = -l..l, (-i)^l phase).
#include <array>
#include <cmath>
#include <complex>
#include <cstdint>
#include <cstdlib>
#include <vector>

namespace eqk {

inline constexpr int kMaxDegree = 20;

struct CgEntry {
  int i, j, k;
  double c;
};

namespace detail {

inline constexpr int kMaxSum = 3 * kMaxDegree + 1;

// [n][k], by the compiler: all triples up to kMaxDegree would take ten seconds where each sum forms its own.
inline constexpr auto kBinomials = [] {
  std::array<std::array<double, kMaxSum + 1>, kMaxSum + 1> table{};
  for (int n = 0; n <= kMaxSum; ++n)
    for (int k = 0; k <= n; ++k) {
      double r = 1;
      for (int i = 1; i <= k; ++i) r = r * (n - k + i) / i;  // exact below 2^53: every prefix is itself a binomial
      table[n][k] = r;
    }
  return table;
}();

inline double binomial(int n, int k) { return k < 0 || k > n ? 0 : kBinomials[n][k]; }

inline double complex_cg(int j1, int m1, int j2, int m2, int j3, int m3) {
  if (m1 + m2 != m3) return 0;
  const int a = j1 + j2 - j3, b = j1 - j2 + j3, c = j2 - j1 + j3;
  std::int64_t sum = 0;
  for (int k = 0; k <= a; ++k) {
    const auto t = static_cast<std::int64_t>(binomial(a, k)) * static_cast<std::int64_t>(binomial(b, j1 - m1 - k)) *
                   static_cast<std::int64_t>(binomial(c, j2 + m2 - k));
    sum += k % 2 ? -t : t;
  }
  const double scale = binomial(2 * j1, a) / binomial(j1 + j2 + j3 + 1, a) * binomial(2 * j2, a) /
                       (binomial(2 * j1, j1 - m1) * binomial(2 * j2, j2 - m2) * binomial(2 * j3, j3 - m3));
  return static_cast<double>(sum) * std::sqrt(scale);
}

// Row m of the matrix that takes the real basis to the complex one has the two columns |m| and -|m|.
inline std::complex<double> real_to_complex(int l, int m, int column) {
  const std::complex<double> phases[] = {{1, 0}, {0, -1}, {-1, 0}, {0, 1}};
  const std::complex<double> phase = phases[l % 4];
  const double r = std::sqrt(0.5);
  if (m == 0) return column == 0 ? phase : 0.0;
  if (std::abs(column) != std::abs(m)) return 0.0;
  const double sign = m > 0 && m % 2 ? -1 : 1;
  if (column > 0) return phase * (sign * r);
  return phase * std::complex<double>(0, m < 0 ? -r : sign * r);
}

}  // namespace detail

// C[i, j, k] of (l1, l2, l3), row-major in [2 l1 + 1, 2 l2 + 1, 2 l3 + 1], of unit Frobenius norm: e3nn.o3.wigner_3j.
inline std::vector<double> wigner_3j(int l1, int l2, int l3) {
  const int d1 = 2 * l1 + 1, d2 = 2 * l2 + 1, d3 = 2 * l3 + 1;
  std::vector<double> c(static_cast<std::size_t>(d1) * d2 * d3, 0.0);
  const double norm = 1 / std::sqrt(static_cast<double>(d3));
  for (int i = -l1; i <= l1; ++i)
    for (int j = -l2; j <= l2; ++j)
      for (int k = -l3; k <= l3; ++k) {
        std::complex<double> sum = 0;
        for (int s1 = i ? -1 : 1; s1 <= 1; s1 += 2)
          for (int s2 = j ? -1 : 1; s2 <= 1; s2 += 2) {
            const int m1 = s1 * i, m2 = s2 * j, m3 = m1 + m2;
            if (std::abs(m3) != std::abs(k)) continue;
            sum += detail::real_to_complex(l1, m1, i) * detail::real_to_complex(l2, m2, j) *
                   std::conj(detail::real_to_complex(l3, m3, k)) * detail::complex_cg(l1, m1, l2, m2, l3, m3);
          }
        const double value = sum.real() * norm;
        c[(static_cast<std::size_t>(i + l1) * d2 + j + l2) * d3 + k + l3] = std::abs(value) < 1e-13 ? 0 : value;
      }
  return c;
}

// The nonzero coefficients, sorted by (k, i, j).
inline std::vector<CgEntry> sparse_wigner_3j(int l1, int l2, int l3) {
  const auto c = wigner_3j(l1, l2, l3);
  const int d1 = 2 * l1 + 1, d2 = 2 * l2 + 1, d3 = 2 * l3 + 1;
  std::vector<CgEntry> entries;
  for (int k = 0; k < d3; ++k)
    for (int i = 0; i < d1; ++i)
      for (int j = 0; j < d2; ++j)
        if (const double v = c[(static_cast<std::size_t>(i) * d2 + j) * d3 + k]; v != 0)
          entries.push_back({i, j, k, v});
  return entries;
}

}  // namespace eqk
