#pragma once
// The gradient of x over the edges of a part, in Part::gx: edges add to rows of any order.
#include <algorithm>
#include <cstdint>

#include "core/aligned.h"
#include "core/cpu_sums.h"
#include "tensor_product_conv/cpu_kernels.h"

namespace eqk::tensor_product_conv {
inline namespace EQK_ISA {

// Rows that the part with the most edges of a node needs (Part::gx).
inline int levels_of_sums(std::int64_t max_out_degree) {
  return max_out_degree <= kFew ? 1 : max_out_degree <= kMany ? 2 : 3;
}

template <class T>
class NodeSums {
 public:
  explicit NodeSums(const Part& part) {
    for (int level = 0; level < 3; ++level) rows_[level] = static_cast<T*>(part.gx[level]);
  }

  // add: to what rows hold.
  void start(std::int64_t nodes, std::int64_t size, bool add) {
    size_ = size;
    for (T* rows : rows_)
      if (rows && !add) std::fill_n(rows, nodes * size, T{});
    if (!rows_[1]) return;
    added_ = aligned_array<std::int64_t>(nodes);
    std::fill_n(added_.get(), nodes, 0);
  }

  // Where an edge from a node is added. Null: not wanted.
  T* row(std::int64_t node) const { return rows_[0] ? rows_[0] + node * size_ : nullptr; }

  void added(std::int64_t node) {
    if (!rows_[1]) return;
    const std::int64_t count = ++added_[node];
    for (int level = 0; level < 2; ++level)
      if (rows_[level + 1] && count % (level ? kMany : kFew) == 0)
        move_row(rows_[level] + node * size_, size_, rows_[level + 1] + node * size_);
  }

 private:
  T* rows_[3];
  std::int64_t size_ = 0;
  AlignedArray<std::int64_t> added_;  // edges of each node so far
};

}  // namespace EQK_ISA
}  // namespace eqk::tensor_product_conv
