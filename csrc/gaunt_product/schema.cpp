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
}
