#pragma once
// One description of the function and its derivatives. With S and A the linear maps to the grid and from it, z = A f(S
// x), each derivative is result = P[f^(k)(S x) (T_1 v_1) ... (T_k v_k)]: T_i is S for a v of the kind of x and the
// transpose of A for one of the kind of z, P is A for a result of the kind of z and the transpose of S for one of the
// kind of x.
#include <array>
#include <cstdint>
#include <vector>

#include "core/dtype.h"
#include "s2_activation/plan.h"

namespace eqk::s2_activation {

enum Kind { kX, kZ };

inline constexpr int kMaxFactors = 4;  // the k above

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
  std::vector<Operand> factors;
  Kind result = kZ;
  void* out = nullptr;  // contiguous
};

}  // namespace eqk::s2_activation
