#include "core/tensor.h"

STABLE_TORCH_LIBRARY_FRAGMENT(eqk, m) {
  m.def("tensor_product_conv_cpu_kernel(Tensor x, str plan) -> str");
  m.def(
      "tensor_product_conv(Tensor x, Tensor y, Tensor? w, Tensor src, Tensor dst, SymInt num_dst, str plan,"
      " Tensor? by_dst=None, Tensor? by_src=None) -> Tensor");
  m.def(
      "tensor_product_conv_jvp(Tensor x, Tensor y, Tensor? w, Tensor? tx, Tensor? ty, Tensor? tw, Tensor src,"
      " Tensor dst, SymInt num_dst, str plan, Tensor? by_dst=None, Tensor? by_src=None) -> Tensor");
  m.def(
      "tensor_product_conv_backward(Tensor x, Tensor y, Tensor? w, Tensor g, Tensor src, Tensor dst, SymInt num_dst,"
      " str plan, Tensor? by_dst, Tensor? by_src, bool[] wanted) -> (Tensor, Tensor, Tensor)");
  m.def(
      "tensor_product_conv_double_backward(Tensor x, Tensor y, Tensor? w, Tensor g, Tensor? tx, Tensor? ty, Tensor? tw,"
      " Tensor? tg, Tensor src, Tensor dst, SymInt num_dst, str plan, Tensor? by_dst, Tensor? by_src, bool[] wanted)"
      " -> (Tensor, Tensor, Tensor, Tensor)");
  // By torch operations, to which kernels leave what they do not cover.
  m.def(
      "tensor_product_conv_by_messages(Tensor x, Tensor y, Tensor? w, Tensor src, Tensor dst, SymInt num_dst, str plan,"
      " Tensor? by_dst=None, Tensor? by_src=None) -> Tensor");
  m.def(
      "tensor_product_conv_by_messages_jvp(Tensor x, Tensor y, Tensor? w, Tensor? tx, Tensor? ty, Tensor? tw,"
      " Tensor src, Tensor dst, SymInt num_dst, str plan, Tensor? by_dst=None, Tensor? by_src=None) -> Tensor");
  m.def(
      "tensor_product_conv_by_messages_backward(Tensor x, Tensor y, Tensor? w, Tensor g, Tensor src, Tensor dst,"
      " SymInt num_dst, str plan, Tensor? by_dst, Tensor? by_src, bool[] wanted) -> (Tensor, Tensor, Tensor)");
  m.def(
      "tensor_product_conv_by_messages_double_backward(Tensor x, Tensor y, Tensor? w, Tensor g, Tensor? tx,"
      " Tensor? ty, Tensor? tw, Tensor? tg, Tensor src, Tensor dst, SymInt num_dst, str plan, Tensor? by_dst,"
      " Tensor? by_src, bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor)");
  // The members of tensor_product_conv with w = h a; those by weights in memory; and what a kernel reads where it runs:
  // whether torch's settings ask for exact products of float32 matrices, and how many bytes weights may take there.
  m.def(
      "tensor_product_conv_radial(Tensor x, Tensor y, Tensor h, Tensor a, Tensor src, Tensor dst, SymInt num_dst,"
      " str plan, Tensor? by_dst=None, Tensor? by_src=None) -> Tensor");
  m.def(
      "tensor_product_conv_radial_by_weights(Tensor x, Tensor y, Tensor h, Tensor a, Tensor src, Tensor dst,"
      " SymInt num_dst, str plan, Tensor? by_dst=None, Tensor? by_src=None) -> Tensor");
  m.def(
      "tensor_product_conv_radial_by_weights_backward(Tensor x, Tensor y, Tensor h, Tensor a, Tensor g, Tensor src,"
      " Tensor dst, SymInt num_dst, str plan, Tensor? by_dst, Tensor? by_src, bool[] wanted)"
      " -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "tensor_product_conv_radial_by_weights_double_backward(Tensor x, Tensor y, Tensor h, Tensor a, Tensor g,"
      " Tensor? tx, Tensor? ty, Tensor? th, Tensor? ta, Tensor? tg, Tensor src, Tensor dst, SymInt num_dst, str plan,"
      " Tensor? by_dst, Tensor? by_src, bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("tensor_product_conv_radial_is_exact() -> bool");
  m.def("tensor_product_conv_radial_bytes_of_weights() -> int");
  m.def(
      "tensor_product_conv_radial_jvp(Tensor x, Tensor y, Tensor h, Tensor a, Tensor? tx, Tensor? ty, Tensor? th,"
      " Tensor? ta, Tensor src, Tensor dst, SymInt num_dst, str plan, Tensor? by_dst=None, Tensor? by_src=None)"
      " -> Tensor");
  m.def(
      "tensor_product_conv_radial_backward(Tensor x, Tensor y, Tensor h, Tensor a, Tensor g, Tensor src, Tensor dst,"
      " SymInt num_dst, str plan, Tensor? by_dst, Tensor? by_src, bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "tensor_product_conv_radial_double_backward(Tensor x, Tensor y, Tensor h, Tensor a, Tensor g, Tensor? tx,"
      " Tensor? ty, Tensor? th, Tensor? ta, Tensor? tg, Tensor src, Tensor dst, SymInt num_dst, str plan,"
      " Tensor? by_dst, Tensor? by_src, bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}
