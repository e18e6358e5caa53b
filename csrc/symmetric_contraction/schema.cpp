#include "core/tensor.h"

STABLE_TORCH_LIBRARY_FRAGMENT(eqk, m) {
  // Of each row the place of the 1 where all else is 0, else -1.
  m.def("one_hot_index(Tensor rows) -> Tensor");
  m.def("symmetric_contraction(Tensor x, Tensor w, Tensor? species, str plan) -> Tensor");
  m.def(
      "symmetric_contraction_derivative(Tensor x, Tensor w, Tensor? g, Tensor? x1, Tensor? w1, Tensor? g1, Tensor? x2,"
      " Tensor? w2, Tensor? g2, Tensor? x3, Tensor? w3, Tensor? g3, Tensor? x4, Tensor? w4, Tensor? g4, Tensor? x5,"
      " Tensor? w5, Tensor? g5, Tensor? species, str plan, bool[] wanted) -> (Tensor, Tensor, Tensor)");
}
