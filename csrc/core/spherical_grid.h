#pragma once
// The Gauss-Legendre rings of a grid on the sphere and the Legendre functions on them, in float64.
#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

namespace eqk {

struct Ring {
  double z, weight;  // z = cos(beta); the weights of all rings sum to 2
};

// Exact for polynomials in z of degree 2 count - 1. North of the equator first, each followed by its mirror image, and
// the equator last, where there is one.
inline std::vector<Ring> gauss_legendre_rings(int count) {
  std::vector<Ring> rings;
  for (int k = 0; k < (count + 1) / 2; ++k) {
    double z = std::cos(std::numbers::pi * (k + 0.75) / (count + 0.5)), slope = 0;
    for (int step = 0; step < 100; ++step) {  // Newton's, on the recurrence of P_count
      double last = 1, p = z;
      for (int l = 2; l <= count; ++l) {
        const double next = ((2 * l - 1) * z * p - (l - 1) * last) / l;
        last = p;
        p = next;
      }
      slope = count * (z * p - last) / (z * z - 1);
      const double move = p / slope;
      z -= move;
      if (std::abs(move) < 1e-15) break;
    }
    const bool equator = 2 * k + 1 == count;
    if (equator) {
      z = 0;
      double p = 1;  // P_(count - 1)(0), whose product with count is the slope
      for (int l = 2; l < count; l += 2) p *= -(l - 1.0) / l;
      slope = count * p;
    }
    const double weight = 2 / ((1 - z * z) * slope * slope);
    rings.push_back({z, weight});
    if (!equator) rings.push_back({-z, weight});
  }
  return rings;
}

// The equiangular rings of e3nn, beta = pi (i + 1/2) / count of an even count, in the same order, with the weights of
// Kostelec and Rockmore 2008, eq. 3.15: exact to degree count - 1.
inline std::vector<Ring> soft_rings(int count) {
  std::vector<Ring> rings;
  for (int i = 0; i < count / 2; ++i) {
    const double beta = std::numbers::pi * (i + 0.5) / count;
    double sum = 0;
    for (int k = 0; k < count / 2; ++k) sum += std::sin((2 * k + 1) * beta) / (2 * k + 1);
    const double weight = 4.0 / count * std::sin(beta) * sum;
    rings.push_back({std::cos(beta), weight});
    rings.push_back({-std::cos(beta), weight});
  }
  return rings;
}

// P_lm(beta) for 0 <= m <= l <= lmax, of the orthonormal real harmonics: Y_lm = P_l|m| S_m with S_m sqrt(2) sin(|m| a),
// 1 or sqrt(2) cos(m a). The recurrences of fully normalised functions (Holmes and Featherstone 2002, eq. 11 to 13).
class LegendreFunctions {
 public:
  LegendreFunctions(int lmax, double z)
      : z_(z), sin_squared_(1 - z * z), values_(static_cast<std::size_t>(lmax + 1) * (lmax + 2) / 2) {
    const double s = std::sqrt(sin_squared_);
    double diagonal = 1 / std::sqrt(4 * std::numbers::pi);
    for (int m = 0; m <= lmax; ++m) {
      if (m) diagonal *= std::sqrt((2 * m + 1.0) / (2 * m)) * s;
      values_[index(m, m)] = diagonal;
      for (int l = m + 1; l <= lmax; ++l) {
        const double a = std::sqrt((4.0 * l * l - 1) / (1.0 * l * l - m * m));
        const double b = std::sqrt(((l - 1.0) * (l - 1) - m * m) / (4.0 * (l - 1) * (l - 1) - 1));
        values_[index(l, m)] = a * (z * values_[index(l - 1, m)] - (l > m + 1 ? b * values_[index(l - 2, m)] : 0));
      }
    }
  }

  double operator()(int l, int m) const { return values_[index(l, m)]; }

  // dP_lm/dbeta / sin(beta), which is not at the poles
  double slope(int l, int m) const {
    if (l == 0) return 0;
    const double below = l > m ? std::sqrt((1.0 * l * l - m * m) * (2 * l + 1) / (2 * l - 1)) * (*this)(l - 1, m) : 0;
    return (l * z_ * (*this)(l, m) - below) / sin_squared_;
  }

 private:
  static std::size_t index(int l, int m) { return static_cast<std::size_t>(l) * (l + 1) / 2 + m; }

  double z_, sin_squared_;
  std::vector<double> values_;
};

}  // namespace eqk
