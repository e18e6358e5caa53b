#pragma once
// One description of every member of the family "contract all slots of <g, T(x, y, w)> but one".
//
// A problem without tangents asks for derivatives of Q = <g, T(x, y, w)>: out[kG] is the forward, out[kX..kW] the
// backward. A problem with tangents asks for the epsilon part of the same outputs on x + eps x', ...: out[kG] is the
// jvp, all four together are the double backward.
#include <array>
#include <cstdint>

#include "core/dtype.h"
#include "core/plan.h"

namespace eqk::tensor_product {

enum Slot { kX, kY, kW, kG, kSlots };

struct Operand {
  const void* value = nullptr;    // null: the slot that is left out, or a plan without weights
  const void* tangent = nullptr;  // null: zero
  std::int64_t stride = 0;        // elements from row to row; 0: one row for all
  std::int64_t tangent_stride = 0;
};

struct Result {
  void* data = nullptr;  // null: not wanted, or without elements
  std::int64_t stride = 0;
};

struct Problem {
  const Plan* plan = nullptr;
  Dtype dtype{};
  std::int64_t rows = 0;
  bool dual = false;
  std::array<Operand, kSlots> in{};
  std::array<Result, kSlots> out{};  // contiguous rows; out[kW] of shared weights is one row, the sum over all rows
};

}  // namespace eqk::tensor_product
