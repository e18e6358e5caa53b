#pragma once
// What cpu.cpp needs of the kernels that are compiled once per instruction set.
#include <array>
#include <cstdint>
#include <tuple>
#include <vector>

#include "core/panel_product.h"
#include "tensor_product/lowered.h"
#include "tensor_product_conv/problem.h"

namespace eqk::tensor_product_conv {

using tensor_product::ChannelPlan;

// Scratch rows of nodes, padded segments one after another; T is the dtype of the problem.
struct Staged {
  const void *x = nullptr, *x_tangent = nullptr;
};

// Weights that are made for kEdges edges at a time, in the order of destinations, and whose gradients are used up at
// once: rows, pitch apart, in the accumulation type, of the edges from a place on. Null: not wanted, or zero.
struct EdgeWeights {
  static constexpr std::int64_t kEdges = 64;
  std::int64_t pitch = 0;
  const void *w = nullptr, *w_tangent = nullptr;
  void *gw = nullptr, *gw_value = nullptr;  // on duals the eps part of the gradient, and its value
  // Called with `self` before the first edge, when w and w_tangent are to be made, and after the last one.
  void* self = nullptr;
  void (*begin)(void* self, std::int64_t place, std::int64_t count) = nullptr;
  void (*end)(void* self, std::int64_t place, std::int64_t count) = nullptr;
};

// Destinations [begin, end), and where the sums over their edges go that other parts add to as well. Null: not wanted.
struct Part {
  std::int64_t begin = 0, end = 0;
  // [num_src] rows, of this part alone: sums of few edges, and of more where a source has more.
  std::array<void*, 3> gx{};
  void* gw = nullptr;                    // gradient of shared weights, in the accumulation type
  const EdgeWeights* weights = nullptr;  // instead of those of the problem
  bool add = false;                      // to gradients of x and y that have been made of other paths
};

template <class T>
struct PanelKernel {
  std::int64_t columns;  // of a panel
  PanelMultiply<T> multiply;
  PanelSplit<T> split;
};

// The kernels whose lanes are channels, on problems that can_run accepts, and products of matrices, which run anywhere.
struct EdgeKernels {
  bool (*can_run)(const Problem&, const ChannelPlan&);
  // Nodes [begin, end) of x and its tangent to scratch rows.
  void (*stage)(const Problem&, const ChannelPlan&, std::int64_t begin, std::int64_t end, void* x, void* x_tangent);
  void (*run)(const Problem&, const ChannelPlan&, const Staged&, const Part&);
  // Nodes [begin, end) of the gradient of x: the sum over parts of their rows, which it overwrites.
  void (*collect)(const Problem&, const ChannelPlan&, const std::vector<Part>&, std::int64_t begin, std::int64_t end);
  std::tuple<PanelKernel<float>, PanelKernel<double>> panels;
};

const EdgeKernels& kernel_of_baseline();
const EdgeKernels& kernel_of_avx2();
const EdgeKernels& kernel_of_avx512();

}  // namespace eqk::tensor_product_conv
