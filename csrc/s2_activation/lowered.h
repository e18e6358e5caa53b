#pragma once
// The tables of a plan: Legendre functions by order m on the rings of one hemisphere, sines and cosines on half of the
// angles.
#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <vector>

#include "core/spherical_grid.h"
#include "s2_activation/problem.h"

namespace eqk::s2_activation {

// Of one order m: degrees m to lmax, of which the even ones, counted from m, have the same value on both rings of a
// pair and the others opposite ones.
template <class T>
struct OrderTables {
  int degrees = 0;
  std::vector<T> table;  // [pair of rings, degree]
  // Where component (l, m) is, and (l, -m), by degree.
  std::vector<int> cosine, sine;
};

template <class T>
struct Lowered {
  int rings = 0, angles = 0, mmax = 0;
  // Of the kinds x and z: to the grid by these, from the grid by their transposes.
  std::array<std::vector<OrderTables<T>>, 2> legendre;
  std::vector<T> cosine, sine;  // [angle up to pi, m from 1 to mmax]
  std::array<std::vector<Segment>, 2> irreps;

  int pairs() const { return (rings + 1) / 2; }
  // Angles of one hemisphere of longitudes, their mirror images left out.
  int half() const { return angles / 2 + 1; }
  bool has_mirror(int angle) const { return angle != 0 && 2 * angle != angles; }

  explicit Lowered(const Plan& plan) : rings(plan.res_beta), angles(plan.res_alpha) {
    const auto grid = plan.quadrature == Quadrature::gausslegendre ? gauss_legendre_rings(rings) : soft_rings(rings);
    for (const Kind kind : {kX, kZ}) {
      const Side& side = plan.of[kind];
      std::vector<LegendreFunctions> functions;
      for (int k = 0; k < pairs(); ++k) functions.emplace_back(side.lmax, grid[2 * k].z);
      for (int m = 0; m <= side.mmax; ++m) {
        OrderTables<T> order{side.lmax + 1 - m, {}, {}, {}};
        for (int k = 0; k < pairs(); ++k)
          for (int l = m; l <= side.lmax; ++l) {
            const double weight = kind == kX ? 1 : plan.gain * grid[2 * k].weight * 2 * std::numbers::pi / angles;
            order.table.push_back(
                static_cast<T>(functions[k](l, m) * side.scale[l] * weight * (m ? std::numbers::sqrt2 : 1)));
          }
        for (int l = m; l <= side.lmax; ++l) {
          order.cosine.push_back(place(plan.order, side, l, m));
          order.sine.push_back(place(plan.order, side, l, -m));
        }
        legendre[kind].push_back(std::move(order));
      }
      for (int l = 0; l <= side.lmax; ++l) irreps[kind].push_back({1, l, 1, l * l});
    }
    mmax = std::max(plan.of[kX].mmax, plan.of[kZ].mmax);
    for (int j = 0; j < half(); ++j)
      for (int m = 1; m <= mmax; ++m) {
        const double angle = 2 * std::numbers::pi * ((static_cast<std::int64_t>(j) * m) % angles) / angles;
        cosine.push_back(static_cast<T>(std::cos(angle)));
        sine.push_back(has_mirror(j) ? static_cast<T>(std::sin(angle)) : 0);
      }
  }

 private:
  static int place(Order order, const Side& side, int l, int m) {
    if (order == Order::l_primary) {
      const Side below{l - 1, std::min(l - 1, side.mmax), {}, {}};
      return (l ? below.components() : 0) + std::min(l, side.mmax) + m;
    }
    const int a = std::abs(m);
    // Of 0 to a - 1, each but 0 twice, lmax + 1 - m degrees of order m.
    const int before = a ? (2 * a - 1) * (side.lmax + 1) - a * (a - 1) : 0;
    return before + (m < 0 ? side.lmax + 1 - a : 0) + l - a;
  }
};

}  // namespace eqk::s2_activation
