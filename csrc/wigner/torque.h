#pragma once
// What the gradient of matrices D(q) is to q. With the generators L of rotations about x, y and z,
//
//   dD = sum_k D L_k omega_k,    omega = 2 Im(conj(q) dq) / |q|^2,
//
// so that omega's gradient is the torque sum of g D L_k; nothing of the recursion is differentiated.
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "core/macros.h"
#include "core/wigner_3j.h"

namespace eqk::wigner {

// L_k[i, j] that are not zero, of degrees 1 to kMaxDegree: multiples of the 3j symbols of (l, 1, l).
struct Generators {
  struct Entry {
    int i, j, k;
    double value;
  };
  std::array<std::vector<Entry>, kMaxDegree + 1> of;

  Generators() {
    for (int l = 1; l <= kMaxDegree; ++l)
      for (const CgEntry& e : sparse_wigner_3j(l, 1, l))
        of[l].push_back({e.i, e.k, e.j, e.c * std::sqrt(l * (l + 1.0) * (2 * l + 1))});
  }
};

// In cpu.cpp: built once by code for the baseline instruction set.
const Generators& generators();

// D and g: of each degree the rows |m'| <= mmax, each of 2 l + 1.
template <class T>
EQK_HD void torque(const Generators& generators, int lmax, int mmax, const T* d, const T* g, T* sum) {
  sum[0] = sum[1] = sum[2] = 0;
  for (int l = 0; l <= lmax; ++l) {
    const int rows = 2 * (l < mmax ? l : mmax) + 1, columns = 2 * l + 1;
    for (const Generators::Entry& e : generators.of[l]) {
      T products = 0;
      for (int r = 0; r < rows; ++r) products += d[r * columns + e.i] * g[r * columns + e.j];
      sum[e.k] += static_cast<T>(e.value) * products;
    }
    d += rows * columns;
    g += rows * columns;
  }
}

// The gradient of q [w, x, y, z] from the torque. No square overflows: the scale of q cancels.
template <class T>
EQK_HD void quaternion_gradient(const T* q, const T* torque, T* to) {
  T scale = 0;
  for (int i = 0; i < 4; ++i) {
    const T size = q[i] < 0 ? -q[i] : q[i];
    scale = size > scale ? size : scale;
  }
  const T w = q[0] / scale, x = q[1] / scale, y = q[2] / scale, z = q[3] / scale;
  const T factor = 2 / (scale * (w * w + x * x + y * y + z * z));
  to[0] = -factor * (x * torque[0] + y * torque[1] + z * torque[2]);
  to[1] = factor * (w * torque[0] + (y * torque[2] - z * torque[1]));
  to[2] = factor * (w * torque[1] + (z * torque[0] - x * torque[2]));
  to[3] = factor * (w * torque[2] + (x * torque[1] - y * torque[0]));
}

}  // namespace eqk::wigner
