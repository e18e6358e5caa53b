#pragma once
// Products of matrices for a few dozen rows, too few for a library's product to be at its speed, in one thread.
#include <cstddef>
#include <cstdint>

namespace eqk {

// c[rows, columns] (+)= a[rows, depth] b[depth, columns]. Columns of b come in panels, each with depth rows of
// a fixed number of columns: the last panel may be read in full and need not be finite beyond the columns.
template <class T>
struct PanelProduct {
  std::int64_t rows, depth, columns;
  const T* a;
  std::int64_t a_row, a_depth;  // strides, in elements
  const T* b;
  std::int64_t b_panel, b_depth;
  T* c;
  std::int64_t c_row;
  bool add;
  std::int64_t copy = 0;  // how far from c the result is stored once more; 0: nowhere
  // b once more, by PanelSplit, where its owner has it; b may then be null, but a_row or a_depth is 1.
  const std::byte* split = nullptr;
};

template <class T>
using PanelMultiply = void (*)(const PanelProduct<T>&);

// What the products of an instruction set read instead of b, and would make of it each time: 0 bytes where that is b.
template <class T>
struct PanelSplit {
  std::int64_t (*bytes)(std::int64_t depth, std::int64_t columns);
  // Columns [first, first + columns) of a panel, whose rows b_depth apart begin at b; `to`: where all columns go.
  void (*split)(const T* b, std::int64_t b_depth, std::int64_t depth, std::int64_t first, std::int64_t columns,
                std::byte* to);
};

}  // namespace eqk
