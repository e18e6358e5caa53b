#include "core/tensor.h"

STABLE_TORCH_LIBRARY_FRAGMENT(eqk, m) {
  m.def("gaunt_product(Tensor x, Tensor y, Tensor? a, Tensor? b, Tensor? c, str plan) -> Tensor");
  m.def(
      "gaunt_product_jvp(Tensor x, Tensor y, Tensor? a, Tensor? b, Tensor? c, Tensor? tx, Tensor? ty, Tensor? ta,"
      " Tensor? tb, Tensor? tc, str plan) -> Tensor");
  m.def(
      "gaunt_product_backward(Tensor x, Tensor y, Tensor? a, Tensor? b, Tensor? c, Tensor g, str plan, bool[] wanted)"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "gaunt_product_double_backward(Tensor x, Tensor y, Tensor? a, Tensor? b, Tensor? c, Tensor g, Tensor? tx,"
      " Tensor? ty, Tensor? ta, Tensor? tb, Tensor? tc, Tensor? tg, str plan, bool[] wanted)"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  // By torch operations, to which kernels leave what they do not cover.
  m.def("gaunt_product_by_grid(Tensor x, Tensor y, Tensor? a, Tensor? b, Tensor? c, str plan) -> Tensor");
  m.def(
      "gaunt_product_by_grid_jvp(Tensor x, Tensor y, Tensor? a, Tensor? b, Tensor? c, Tensor? tx, Tensor? ty, Tensor? "
      "ta,"
      " Tensor? tb, Tensor? tc, str plan) -> Tensor");
  m.def(
      "gaunt_product_by_grid_backward(Tensor x, Tensor y, Tensor? a, Tensor? b, Tensor? c, Tensor g, str plan, bool[] "
      "wanted)"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "gaunt_product_by_grid_double_backward(Tensor x, Tensor y, Tensor? a, Tensor? b, Tensor? c, Tensor g, Tensor? tx,"
      " Tensor? ty, Tensor? ta, Tensor? tb, Tensor? tc, Tensor? tg, str plan, bool[] wanted)"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}
