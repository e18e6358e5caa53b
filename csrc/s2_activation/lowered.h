#pragma once
// The tables of a plan, and transforms as products of small matrices with vectors of lanes: Legendre functions by order
// m on the rings of one hemisphere, sines and cosines on half of the angles.
#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <vector>

#include "core/spherical_grid.h"
#include "s2_activation/problem.h"

namespace eqk::s2_activation {

// [rows, columns], and transposed.
template <class T>
struct Matrix {
  int rows = 0, columns = 0;
  std::vector<T> by_row, by_column;

  Matrix() = default;
  template <class F>
  Matrix(int rows, int columns, const F& f)
      : rows(rows), columns(columns), by_row(rows * columns), by_column(rows * columns) {
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < columns; ++c) by_row[r * columns + c] = by_column[c * rows + r] = static_cast<T>(f(r, c));
  }
};

// Of one order m: the degrees m, m + 2, ..., which have the same value on both rings of a pair, and the others, which
// have opposite ones. Rows: pairs of rings.
template <class T>
struct OrderTables {
  Matrix<T> same, opposite;
  // Where component (l, m) is, and (l, -m), by degree from m.
  std::vector<int> cosine, sine;
};

template <class T>
struct Lowered {
  int rings = 0, angles = 0;
  // Of the kinds x and z: to the grid by these, from the grid by their transposes.
  std::array<std::vector<OrderTables<T>>, 2> legendre;
  Matrix<T> cosine, sine;  // [angle, m]: cos(m a) from m = 0, sin(m a) from m = 1, of angles up to pi
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
        const auto table = [&](int first) {
          return Matrix<T>(pairs(), (side.lmax - first) / 2 + 1, [&](int k, int c) {
            const int l = first + 2 * c;
            const double weight = kind == kX ? 1 : plan.gain * grid[2 * k].weight * 2 * std::numbers::pi / angles;
            return functions[k](l, m) * side.scale[l] * weight * (m ? std::numbers::sqrt2 : 1);
          });
        };
        legendre[kind].push_back(
            {table(m), m < side.lmax ? table(m + 1) : Matrix<T>(pairs(), 0, [](int, int) { return 0; }), {}, {}});
        for (int l = m; l <= side.lmax; ++l) {
          legendre[kind][m].cosine.push_back(place(plan.order, side, l, m));
          legendre[kind][m].sine.push_back(place(plan.order, side, l, -m));
        }
      }
      for (int l = 0; l <= side.lmax; ++l) irreps[kind].push_back({1, l, 1, l * l});
    }
    const int mmax = std::max(plan.of[kX].mmax, plan.of[kZ].mmax);
    const auto angle = [&](int j, int m) {
      return 2 * std::numbers::pi * ((static_cast<std::int64_t>(j) * m) % angles) / angles;
    };
    cosine = Matrix<T>(half(), mmax + 1, [&](int j, int m) { return std::cos(angle(j, m)); });
    sine = Matrix<T>(half(), mmax, [&](int j, int m) { return has_mirror(j) ? std::sin(angle(j, m + 1)) : 0; });
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
