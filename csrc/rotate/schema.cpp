#include "core/tensor.h"

STABLE_TORCH_LIBRARY_FRAGMENT(eqk, m) {
  m.def(
      "rotate(Tensor? x, Tensor? D, Tensor? weights, Tensor? z, Tensor? index, SymInt num_nodes, SymInt groups,"
      " SymInt columns, int lmax, int mmax, bool rescale, int missing) -> Tensor");
}
