#pragma once
// One description of every member of the family of Q = sum over ranks r of <c_r g, T(a_r x, b_r y)>, as in
// tensor_product/problem.h: without tangents derivatives of Q, with them their parts of epsilon.
#include <array>
#include <cstdint>

#include "core/dtype.h"
#include "gaunt_product/plan.h"
#include "tensor_product/problem.h"

namespace eqk::gaunt_product {

using tensor_product::Operand;
using tensor_product::Result;

// a, b, c: weights [rows, rank, degree, channel] of x, y and the result, null: all one.
enum Slot { kX, kY, kA, kB, kC, kG, kSlots };

// Of the signals x, y and g the slot, and that of their weights.
inline constexpr std::array<Slot, 3> kSignal{kX, kY, kG}, kWeight{kA, kB, kC};

struct Problem {
  const Plan* plan = nullptr;
  Dtype dtype{};
  std::int64_t rows = 0;
  bool dual = false;
  std::array<Operand, kSlots> in{};
  std::array<Result, kSlots> out{};
};

}  // namespace eqk::gaunt_product
