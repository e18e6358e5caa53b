#include "core/tensor.h"

STABLE_TORCH_LIBRARY_FRAGMENT(eqk, m) {
  m.def("s2_activation(Tensor x, str plan) -> Tensor");
  m.def(
      "s2_activation_product(Tensor x, Tensor? v1, Tensor? v2, Tensor? v3, Tensor? v4, str plan, str kinds)"
      " -> Tensor");
}
