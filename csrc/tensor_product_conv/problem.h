#pragma once
// As tensor_product/problem.h, over the edges of a graph: rows of x belong to sources, rows of y and of weights to
// edges, rows of g to destinations.
#include "core/edges.h"
#include "tensor_product/problem.h"

namespace eqk::tensor_product_conv {

using tensor_product::kG;
using tensor_product::kSlots;
using tensor_product::kW;
using tensor_product::kX;
using tensor_product::kY;
using tensor_product::Operand;
using tensor_product::Result;
using tensor_product::Slot;

// E: what a backend makes of the edges.
template <class E, std::size_t slots>
struct GraphProblem {
  const Plan* plan = nullptr;
  Dtype dtype{};
  bool dual = false;
  const E* edges = nullptr;
  std::array<Operand, slots> in{};
  std::array<Result, slots> out{};
};

using Problem = GraphProblem<Edges, kSlots>;

// The same where weights are made of features h [edges, hidden] and a matrix a [hidden, weight_numel]: w = h a.
enum RadialSlot { kRadialX, kRadialY, kHidden, kMatrix, kRadialG, kRadialSlots };

struct RadialProblem : GraphProblem<Edges, kRadialSlots> {
  std::int64_t hidden = 0;
};

}  // namespace eqk::tensor_product_conv
