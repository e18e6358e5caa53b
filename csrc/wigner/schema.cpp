#include "core/tensor.h"

STABLE_TORCH_LIBRARY_FRAGMENT(eqk, m) {
  m.def("wigner(Tensor q, int lmax, int mmax) -> Tensor");
  m.def("wigner_backward(Tensor q, Tensor g, int lmax, int mmax) -> Tensor");
}
