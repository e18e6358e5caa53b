#pragma once
// What cpu.cpp and the kernels that are compiled once per instruction set agree on. python/eqk/so2_edge_message.py says
// what the operands are and, in _forward_tile and _backward_tile, what is made of them.
#include <array>
#include <cstdint>

#include "core/dtype.h"
#include "core/edges.h"
#include "core/macros.h"
#include "rotate/problem.h"
#include "s2_activation/problem.h"
#include "so2_edge_message/plan.h"
#include "wigner/problem.h"

namespace eqk::so2_edge_message {

enum Slot { kX, kQ, kH, kA, kW, kConv1, kConv2 };
inline constexpr int kSlots = 7;
inline constexpr std::array<const char*, kSlots> kSlotNames{"x", "q", "h", "a", "w", "conv1", "conv2"};

struct Problem {
  const Plan* plan = nullptr;
  Dtype dtype{};  // float32 or float64
  std::int64_t edges = 0, nodes = 0;
  std::int64_t channels = 0;             // of a node
  std::int64_t features = 0;             // columns of h
  std::int64_t groups = 0;               // of weights of an edge, each of all channels in; 0 without weights
  std::int64_t heads = 0;                // columns of w
  std::int64_t tile = 0;                 // most edges of a tile
  std::array<const void*, kSlots> in{};  // contiguous; null where there is none
  const void* g = nullptr;               // [nodes, components, channels out]; null: forward
  // [edges, ..], results of the layers: what forward keeps and backward reads. Null: not kept.
  void *y = nullptr, *s = nullptr, *message = nullptr;
  std::array<bool, kSlots> wanted{};  // gradients
  std::array<void*, kSlots> out{};    // those of q, h and w

  EQK_HD std::int64_t sources() const { return plan->channels_in / channels; }
  EQK_HD bool wants_sums() const { return wanted[kA] || wanted[kConv1] || wanted[kConv2]; }
  EQK_HD bool wants_input() const { return wanted[kX] || wanted[kQ] || wanted[kH] || wanted[kA]; }
  EQK_HD bool wants_hidden() const { return wants_input() || wanted[kConv1]; }
  EQK_HD bool makes_message() const { return !g || (!message && (wanted[kQ] || wanted[kW])); }

  // f(T{}) of the type that is computed in.
  template <class F>
  EQK_HD auto with_type(const F& f) const {
    return dtype == Dtype::float64 ? f(double{}) : f(float{});
  }
};

// The ops that a tile is made of, as problems of one thread, whose operands are those of the tile at hand.
struct Steps {
  wigner::Problem wigner;
  rotate::Problem in, out;  // of the input of the first layer, and of the result of the second
  s2_activation::Problem value, gradient;
};

// Edges [begin, begin + count).
struct Tile {
  std::int64_t begin, count;
  const std::int64_t *sources, *targets;  // nodes, [sources, count] and [count]
  // What the tile gives its nodes: of ends sources * count + e, or targets in forward, in the order of the nodes that
  // it has, a row for each of them.
  const Edges* ends;
  void* rows;
  void* sums;  // where gradients of a and the parameters are added, Kernels::sums_numel elements; null: not wanted
};

struct Kernels {
  std::int64_t (*matrices_bytes)(const Problem&);
  // The parameters as products take them: tasks [begin, end) of so many.
  std::int64_t (*pack_tasks)(const Problem&);
  void (*pack)(const Problem&, void* matrices, std::int64_t begin, std::int64_t end);
  std::int64_t (*scratch_bytes)(const Problem&);
  std::int64_t (*sums_numel)(const Problem&);
  void (*run)(const Problem&, const void* matrices, Steps&, void* scratch, const Tile&);
  // sums (its first elements) to the gradients of a, conv1 and conv2; null: not wanted.
  void (*finish)(const Problem&, const void* sums, const std::array<void*, kSlots>& out);
};

const Kernels& kernel_of_baseline();
const Kernels& kernel_of_avx2();
const Kernels& kernel_of_avx512();

}  // namespace eqk::so2_edge_message
