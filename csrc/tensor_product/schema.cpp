#include "core/tensor.h"

STABLE_TORCH_LIBRARY_FRAGMENT(eqk, m) {
  m.def("tensor_product(Tensor x, Tensor y, Tensor? w, str plan) -> Tensor");
  m.def("tensor_product_jvp(Tensor x, Tensor y, Tensor? w, Tensor? tx, Tensor? ty, Tensor? tw, str plan) -> Tensor");
  m.def(
      "tensor_product_backward(Tensor x, Tensor y, Tensor? w, Tensor g, str plan, bool[] wanted)"
      " -> (Tensor, Tensor, Tensor)");
  m.def(
      "tensor_product_double_backward(Tensor x, Tensor y, Tensor? w, Tensor g, Tensor? tx, Tensor? ty, Tensor? tw,"
      " Tensor? tg, str plan, bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("tensor_product_cpu_kernel(Tensor x, str plan) -> str");
}
