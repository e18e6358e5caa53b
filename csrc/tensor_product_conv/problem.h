#pragma once
// As tensor_product/problem.h, over the edges of a graph: rows of x belong to sources, rows of y and of weights to
// edges, rows of g to destinations.
#include "tensor_product/problem.h"
#include "tensor_product_conv/edges.h"

namespace eqk::tensor_product_conv {

using tensor_product::kG;
using tensor_product::kSlots;
using tensor_product::kW;
using tensor_product::kX;
using tensor_product::kY;
using tensor_product::Operand;
using tensor_product::Result;
using tensor_product::Slot;

struct Problem {
  const Plan* plan = nullptr;
  Dtype dtype{};
  bool dual = false;
  const Edges* edges = nullptr;
  std::array<Operand, kSlots> in{};
  std::array<Result, kSlots> out{};
};

}  // namespace eqk::tensor_product_conv
