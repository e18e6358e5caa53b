#include "core/tensor.h"

STABLE_TORCH_LIBRARY_FRAGMENT(eqk, m) {
  m.def(
      "so2_edge_message(Tensor x, Tensor q, Tensor? h, Tensor? a, Tensor? w, Tensor conv1, Tensor conv2, Tensor index,"
      " str plan, bool keep) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "so2_edge_message_backward(Tensor x, Tensor q, Tensor? h, Tensor? a, Tensor? w, Tensor conv1, Tensor conv2,"
      " Tensor g, Tensor? y, Tensor? s, Tensor? message, Tensor index, str plan, bool[] wanted)"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "so2_edge_message_double_backward(Tensor x, Tensor q, Tensor? h, Tensor? a, Tensor? w, Tensor conv1,"
      " Tensor conv2, Tensor g, Tensor? c_x, Tensor? c_q, Tensor? c_h, Tensor? c_a, Tensor? c_w, Tensor? c_conv1,"
      " Tensor? c_conv2, Tensor index, str plan, bool[] wanted)"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}
