#pragma once
// One description of the function, of its products with other signals, and of all their derivatives. With S and A the
// linear maps to the grid and from it, result = P[f^(k)(S x) (T_1 v_1) ... (T_n v_n)]: T_i is S for a v of the kind of
// x and the transpose of A for one of the kind of z, P is A for a result of the kind of z and the transpose of S for
// one of the kind of x. z = A f(S x) has k = 0 and no factors.
#include <array>
#include <cstdint>
#include <vector>

#include "core/dtype.h"
#include "s2_activation/plan.h"

namespace eqk::s2_activation {

enum Kind { kX, kZ };

inline constexpr int kMaxFactors = 4, kMaxDerivative = 4;  // n and k above

struct Operand {
  const void* data = nullptr;
  std::int64_t stride = 0;  // elements from row to row
  Kind kind = kX;
};

struct Problem {
  const Plan* plan = nullptr;
  Dtype dtype{};
  std::int64_t rows = 0;
  Operand x;
  int derivative = 0;
  std::vector<Operand> factors;
  Kind result = kZ;
  void* out = nullptr;  // contiguous
};

}  // namespace eqk::s2_activation
