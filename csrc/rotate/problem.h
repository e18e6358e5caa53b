#pragma once
// One description of the form
//
//   sum over edges e, k < K, rows p = (l, m'), channels c of
//     z[e, p, k C + c] weights[e, group(p), (k C + c) / width] s_l sum_m D[e, (l, m', m)] x[index[k, e], (l, m), c]
//
// without one of its operands, which is the result. python/eqk/rotate.py says what the operands are.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "core/dtype.h"
#include "core/edges.h"

namespace eqk::rotate {

enum Slot { kX, kD, kWeights, kZ };
inline constexpr int kSlots = 4;
inline constexpr std::array<const char*, kSlots> kSlotNames{"x", "D", "weights", "z"};

// What has a weight of its own: an edge, a degree, or a degree and an order |m'|.
enum class Group { edge, degree, order };

// Where a row m' begins among the numbers that an edge has in z and, times width, in weights.
struct Row {
  std::int64_t z, weights;
};

// The block of D of a degree, [m' = -k..k][m = -l..l] with k = min(l, mmax).
struct Block {
  int l;
  std::int64_t first;  // of its numbers
  double scale;
  std::vector<Row> rows;

  std::int64_t end() const { return first + static_cast<std::int64_t>(rows.size()) * (2 * l + 1); }
};

struct Frame {
  std::int64_t components = 0, rows = 0, numbers = 0;  // of a node, of an edge, of D
  std::vector<Block> blocks;
};

// Rows are in m-primary order: those of m = 0 by degree, then for m = 1, 2, ... those of m and then those of -m.
inline Frame make_frame(int lmax, int mmax, bool rescale, Group group, std::int64_t channels) {
  Frame f;
  for (int l = 0; l <= lmax; ++l) {
    const int most = std::min(l, mmax);
    Block block{l, f.numbers, rescale && l > mmax ? std::sqrt((2 * l + 1) / (2 * mmax + 1.0)) : 1.0, {}};
    for (int m = -most; m <= most; ++m) {
      const int order = std::abs(m);
      int pairs = 0;  // of degrees and orders 0 < |m'| < |m|
      for (int n = 1; n < order; ++n) pairs += lmax + 1 - n;
      const int before = order == 0 ? 0 : lmax + 1, place = before + 2 * pairs + l - order;
      const int weight = group == Group::edge ? 0 : group == Group::degree ? l : before + pairs + l - order;
      block.rows.push_back({(m < 0 ? place + lmax + 1 - order : place) * channels, weight * channels});
    }
    f.components += 2 * l + 1;
    f.rows += 2 * most + 1;
    f.numbers = block.end();
    f.blocks.push_back(std::move(block));
  }
  return f;
}

struct Problem {
  Frame frame;
  Dtype dtype{};
  std::int64_t edges = 0, nodes = 0, channels = 0;
  std::int64_t nodes_of_edge = 0;        // K
  std::int64_t groups = 0, columns = 0;  // of weights
  std::array<const void*, kSlots> in{};  // contiguous; null where there is none
  void* out = nullptr;                   // contiguous
  Slot missing{};
  const std::int64_t* index = nullptr;  // [K, edges]; null: each edge has a row of x
  // Without x: ends of edges, k edges + e, in the order of nodes; null as above.
  const Edges* ends = nullptr;

  std::int64_t width() const { return nodes_of_edge * channels / std::max<std::int64_t>(1, columns); }
};

// Handles edges, or without x nodes, [begin, end).
using Kernel = void (*)(const Problem&, std::int64_t begin, std::int64_t end);

Kernel kernel_of_baseline();
Kernel kernel_of_avx2();
Kernel kernel_of_avx512();

}  // namespace eqk::rotate
