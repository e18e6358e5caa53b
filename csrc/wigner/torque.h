#pragma once
// What the gradient of matrices D(q) is to q. With the generators L of rotations about x, y and z,
//
//   dD = sum_k D L_k omega_k,    omega = 2 Im(conj(q) dq) / |q|^2,
//
// so that omega's gradient is the torque sum of g D L_k; nothing of the recursion is differentiated. L is the angular
// momentum in e3nn's real basis: L_y couples m and -m by m, L_x and L_z couple m and m + 1 by sqrt((l - m) (l + m + 1))
// / 2, of m = 0 times sqrt(2) (Varshalovich, Moskalev & Khersonskii, Quantum Theory of Angular Momentum, 2.3.2).
#include "core/macros.h"
#include "wigner/recursion.h"

namespace eqk::wigner {

template <class T, class V>
class Torque {
 public:
  V sum[3]{};

  EQK_HD explicit Torque(const Coefficients<T>& coefficients) : coefficients_(coefficients) {}

  // What D^l[m', m] and D^l[m', -m], m >= 0, are in; g points to the cotangent of D^l[m', 0] among those of its row.
  EQK_HD void add(int l, int m, V plus, V minus, const V* g) {
    const T* const turn = coefficients_.turn + Coefficients<T>::pairs(l) + m;
    V above{}, minus_above{}, below{}, minus_below{};
    if (m < l) above = turn[0] * g[m + 1], minus_above = turn[0] * g[-m - 1];
    if (m > 0) below = turn[-1] * g[m - 1];
    if (m > 1) minus_below = turn[-1] * g[1 - m];
    sum[0] += plus * (below - above) + minus * (minus_below - minus_above);
    if (m > 0) sum[1] += static_cast<T>(m) * (minus * g[m] - plus * g[-m]);
    sum[2] += plus * (minus_below + minus_above) - minus * (below + above);
  }

 private:
  const Coefficients<T>& coefficients_;
};

// The gradient of q [w, x, y, z] from the torque. No square overflows: the scale of q cancels.
template <class T, class V>
EQK_HD void quaternion_gradient(const V* q, const V* torque, V* to) {
  V scale{};
  for (int i = 0; i < 4; ++i) {
    const V size = q[i] < 0 ? -q[i] : q[i];
    scale = size > scale ? size : scale;
  }
  const V w = q[0] / scale, x = q[1] / scale, y = q[2] / scale, z = q[3] / scale;
  const V factor = T(2) / (scale * (w * w + x * x + y * y + z * z));
  to[0] = -factor * (x * torque[0] + y * torque[1] + z * torque[2]);
  to[1] = factor * (w * torque[0] + (y * torque[2] - z * torque[1]));
  to[2] = factor * (w * torque[1] + (z * torque[0] - x * torque[2]));
  to[3] = factor * (w * torque[2] + (x * torque[1] - y * torque[0]));
}

}  // namespace eqk::wigner
