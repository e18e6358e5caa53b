#pragma once
// Arguments of the four ops, checked and turned into a Problem. Every backend registers register_impls with its
// launcher.
#include <array>
#include <string>
#include <tuple>
#include <vector>

#include "core/family_call.h"
#include "tensor_product/problem.h"

namespace eqk::tensor_product {

// Those of x, y, the weights of rows, which the plan may share or lack, and g.
inline std::array<Shape, 4> shapes_of(const Plan& plan, std::int64_t x_rows, std::int64_t rows, std::int64_t g_rows) {
  const bool shared = plan.weights == Weights::shared;
  return {{{"x", x_rows, plan.dim[0]},
           {"y", rows, plan.dim[1]},
           {"w", shared ? -1 : rows, plan.weight_numel, plan.weights == Weights::none},
           {"g", g_rows, plan.dim[2]}}};
}

class Call : public FamilyCall<Problem> {
 public:
  Call(const char* op, const Tensor& x, const std::string& plan) : FamilyCall(op, x, cached_plan(plan), "rows") {
    problem_.rows = x.size(0);
    shapes_ = shapes_of(*plan_, x.size(0), x.size(0), x.size(0));
  }
};

using Launcher = Call::Launcher;

template <Launcher launch>
Tensor forward(const Tensor& x, const Tensor& y, const OptionalTensor& w, StringArgument plan) {
  Call call("tensor_product", x, plan);
  call.take({y, w});
  return call.forward(launch);
}

template <Launcher launch>
Tensor jvp(const Tensor& x, const Tensor& y, const OptionalTensor& w, const OptionalTensor& tx,
           const OptionalTensor& ty, const OptionalTensor& tw, StringArgument plan) {
  Call call("tensor_product_jvp", x, plan);
  call.take({y, w}, {tx, ty, tw});
  return call.forward(launch);
}

template <Launcher launch>
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& x, const Tensor& y, const OptionalTensor& w, const Tensor& g,
                                            StringArgument plan, const std::vector<bool>& wanted) {
  Call call("tensor_product_backward", x, plan);
  call.take({y, w, g}, wanted);
  return call.backward(launch, wanted);
}

template <Launcher launch>
std::tuple<Tensor, Tensor, Tensor, Tensor> double_backward(const Tensor& x, const Tensor& y, const OptionalTensor& w,
                                                           const Tensor& g, const OptionalTensor& tx,
                                                           const OptionalTensor& ty, const OptionalTensor& tw,
                                                           const OptionalTensor& tg, StringArgument plan,
                                                           const std::vector<bool>& wanted) {
  Call call("tensor_product_double_backward", x, plan);
  call.take({y, w, g}, {tx, ty, tw, tg}, wanted);
  return call.double_backward(launch, wanted);
}

template <Launcher launch>
void register_impls(torch::stable::detail::StableLibrary& m) {
  m.impl("tensor_product", TORCH_BOX(&forward<launch>));
  m.impl("tensor_product_jvp", TORCH_BOX(&jvp<launch>));
  m.impl("tensor_product_backward", TORCH_BOX(&backward<launch>));
  m.impl("tensor_product_double_backward", TORCH_BOX(&double_backward<launch>));
}

}  // namespace eqk::tensor_product
