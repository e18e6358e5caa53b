#pragma once
// Arguments of the four ops, checked and turned into a Problem.
#include <array>
#include <string>
#include <tuple>
#include <vector>

#include "core/family_call.h"
#include "gaunt_product/problem.h"

namespace eqk::gaunt_product {

class Call : public FamilyCall<Problem> {
 public:
  Call(const char* op, const Tensor& x, const OptionalTensor& a, const OptionalTensor& b, const OptionalTensor& c,
       const std::string& plan)
      : FamilyCall(op, x, cached_plan(plan), "rows") {
    problem_.rows = x.size(0);
    const auto weights = [&](const char* name, int s, const OptionalTensor& t) {
      return Shape{name, x.size(0), plan_->rank * (plan_->of[s].lmax + 1) * plan_->channels(), !t};
    };
    shapes_ = {Shape{"x", x.size(0), plan_->dim[0]},
               Shape{"y", x.size(0), plan_->dim[1]},
               weights("a", 0, a),
               weights("b", 1, b),
               weights("c", 2, c),
               Shape{"g", x.size(0), plan_->dim[2]}};
  }
};

using Launcher = Call::Launcher;
using Maybe = OptionalTensor;

template <Launcher launch>
Tensor forward(const Tensor& x, const Tensor& y, const Maybe& a, const Maybe& b, const Maybe& c, StringArgument plan) {
  Call call("gaunt_product", x, a, b, c, plan);
  call.take({y, a, b, c});
  return call.forward(launch);
}

template <Launcher launch>
Tensor jvp(const Tensor& x, const Tensor& y, const Maybe& a, const Maybe& b, const Maybe& c, const Maybe& tx,
           const Maybe& ty, const Maybe& ta, const Maybe& tb, const Maybe& tc, StringArgument plan) {
  Call call("gaunt_product_jvp", x, a, b, c, plan);
  call.take({y, a, b, c}, {tx, ty, ta, tb, tc});
  return call.forward(launch);
}

template <Launcher launch>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(const Tensor& x, const Tensor& y, const Maybe& a,
                                                            const Maybe& b, const Maybe& c, const Tensor& g,
                                                            StringArgument plan, const std::vector<bool>& wanted) {
  Call call("gaunt_product_backward", x, a, b, c, plan);
  call.take({y, a, b, c, g}, wanted);
  return call.backward(launch, wanted);
}

template <Launcher launch>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> double_backward(
    const Tensor& x, const Tensor& y, const Maybe& a, const Maybe& b, const Maybe& c, const Tensor& g, const Maybe& tx,
    const Maybe& ty, const Maybe& ta, const Maybe& tb, const Maybe& tc, const Maybe& tg, StringArgument plan,
    const std::vector<bool>& wanted) {
  Call call("gaunt_product_double_backward", x, a, b, c, plan);
  call.take({y, a, b, c, g}, {tx, ty, ta, tb, tc, tg}, wanted);
  return call.double_backward(launch, wanted);
}

template <Launcher launch>
void register_impls(torch::stable::detail::StableLibrary& m) {
  m.impl("gaunt_product", TORCH_BOX(&forward<launch>));
  m.impl("gaunt_product_jvp", TORCH_BOX(&jvp<launch>));
  m.impl("gaunt_product_backward", TORCH_BOX(&backward<launch>));
  m.impl("gaunt_product_double_backward", TORCH_BOX(&double_backward<launch>));
}

}  // namespace eqk::gaunt_product
