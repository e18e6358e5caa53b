#include "core/tensor.h"

STABLE_TORCH_LIBRARY_FRAGMENT(eqk, m) {
  m.def("spherical_harmonics(Tensor x, str plan) -> Tensor");
  m.def("spherical_harmonics_backward(Tensor x, Tensor g, str plan) -> Tensor");
}
