#pragma once
// Products of matrices for a few dozen rows, too few for a library's product to be at its speed, in one thread.
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
};

template <class T>
using PanelMultiply = void (*)(const PanelProduct<T>&);

}  // namespace eqk
