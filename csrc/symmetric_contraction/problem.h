#pragma once
// One description of every derivative of Q = <g, F(x, w)>: of the function D_1 ... D_n Q, with D_i the derivative along
// (x_i, w_i, g_i), out[s] is the derivative with respect to slot s. Without tangents out[kG] is the forward.
#include <array>
#include <cstdint>
#include <vector>

#include "core/dtype.h"
#include "symmetric_contraction/plan.h"

namespace eqk::symmetric_contraction {

enum Slot { kX, kW, kG, kSlots };

// Q is of degree 4 + 1 + 1 in its slots together: one derivative more than this is zero.
inline constexpr int kMaxTangents = kMaxCorrelation + 1;

struct Operand {
  const void* data = nullptr;  // null: zero, or not needed
  // Elements from node to node, or of the weights from species to species; a row of a node is contiguous.
  std::int64_t stride = 0;
  std::int64_t path_stride = 0;  // of the weights
};

using Operands = std::array<Operand, kSlots>;

struct Problem {
  const Plan* plan = nullptr;
  Dtype dtype{};
  std::int64_t nodes = 0, channels = 0, num_species = 0;
  const void* species = nullptr;  // of each node; null: each node has weights of its own
  bool species_64 = false;        // int64, not int32
  std::int64_t species_stride = 0;
  Operands in{};
  std::vector<Operands> tangents;
  std::array<void*, kSlots> out{};  // contiguous; null: not wanted, or without elements
};

}  // namespace eqk::symmetric_contraction
