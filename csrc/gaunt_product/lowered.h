#pragma once
// The tables of a plan: Legendre functions on the rings of the smallest grid that is exact, scales and weights of the
// quadrature included. There is no grid of azimuths: on a ring a signal is f(a) = c_0 + sum_m 2 Re(c_m exp(-i m a)),
// c_m = sum_l sqrt(1/2) P_lm (x_lm + i x_l-m), c_0 = sum_l P_l0 x_l0, and signals are multiplied as such polynomials.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <numbers>
#include <vector>

#include "core/spherical_grid.h"
#include "gaunt_product/plan.h"

namespace eqk::gaunt_product {

// Those of a signal of degrees 0 to lmax. Rows [m][ring of a pair][l - m]: rings in pairs, north and south of the
// equator, of which the table has the one in the north, and the equator last, where there is one.
template <class T>
struct Tables {
  int lmax = 0;
  std::vector<T> value, slope, analysis;  // c_m, d/dbeta c_m / sin(beta), and from c_m back to x

  int count(int m) const { return lmax + 1 - m; }
  // Of m and the first pair; the next one is count(m) further.
  std::int64_t row(int m, int half) const { return static_cast<std::int64_t>(half) * (m * (2 * lmax + 3 - m) / 2); }
};

template <class T>
struct Lowered {
  int rings = 0;
  bool product = false, bracket = false;
  std::array<Tables<T>, 3> of;                 // x, y, the result
  std::array<std::vector<Segment>, 3> irreps;  // components of a signal

  int half() const { return (rings + 1) / 2; }
  bool equator() const { return rings % 2; }

  // rings_or_more: of the grid, where the plan needs no more.
  explicit Lowered(const Plan& plan, int rings_or_more = 0) : product(plan.even != 0), bracket(plan.odd != 0) {
    int degree = plan.of[0].lmax + plan.of[1].lmax + plan.of[2].lmax;
    if (!product && degree > 0) --degree;  // of the bracket alone
    rings = std::max(degree / 2 + 1, rings_or_more);
    const auto grid = gauss_legendre_rings(rings);
    for (int s = 0; s < 3; ++s) {
      const auto& signals = plan.of[s];
      const int lmax = of[s].lmax = signals.lmax;
      std::vector<LegendreFunctions> functions;
      for (int k = 0; k < half(); ++k) functions.emplace_back(lmax, grid[2 * k].z);
      for (int m = 0; m <= lmax; ++m)
        for (int k = 0; k < half(); ++k)
          for (int l = m; l <= lmax; ++l) {
            const double scale = has_path(plan, s, l) ? signals.scale[l] * (m ? std::sqrt(0.5) : 1) : 0;
            const double p = functions[k](l, m) * scale;
            // The quadrature gives the product's coefficient; the slope, once in each term of the bracket, its own.
            const double coefficient = product ? plan.even : 1;
            of[s].value.push_back(static_cast<T>(p));
            of[s].slope.push_back(static_cast<T>(functions[k].slope(l, m) * scale * plan.odd / coefficient));
            const double weight = grid[2 * k].weight * std::numbers::pi * (m ? 4 : 2);
            of[s].analysis.push_back(static_cast<T>(p * coefficient * weight));
          }
      for (int l = 0; l <= lmax; ++l) irreps[s].push_back({1, l, 1, l * l});
    }
  }

 private:
  // Whether degree l of s couples with some of the two others: else the quadrature would leave rounding errors of zero,
  // of this signal and, where it is a factor, of the two others.
  bool has_path(const Plan& plan, int s, int l) const {
    for (int a = 0; a <= plan.of[(s + 1) % 3].lmax; ++a)
      for (int b = std::abs(l - a); b <= std::min(l + a, plan.of[(s + 2) % 3].lmax); ++b)
        if ((l + a + b) % 2 ? bracket : product) return true;
    return false;
  }
};

}  // namespace eqk::gaunt_product
