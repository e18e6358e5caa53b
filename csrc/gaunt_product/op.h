#pragma once
// Arguments of the four ops, checked and turned into a Problem. A backend has launch(problem, x), and may leave members
// of the family to torch operations: covers(problem).
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

  const Problem& problem() const { return problem_; }
};

using Maybe = OptionalTensor;

template <std::size_t results, class... Arguments>
std::array<Tensor, results> by_grid(const char* member, const Arguments&... arguments) {
  const std::string op = "gaunt_product";
  return by_torch<results>(op + member, op + "_by_grid" + member, arguments...);
}

template <class Backend>
Tensor forward(const Tensor& x, const Tensor& y, const Maybe& a, const Maybe& b, const Maybe& c, StringArgument plan) {
  const std::string text = plan;
  Call call("gaunt_product", x, a, b, c, text);
  call.take({y, a, b, c});
  if (!Backend::covers(call.problem())) return by_grid<1>("", x, y, a, b, c, text)[0];
  return call.forward(&Backend::launch);
}

template <class Backend>
Tensor jvp(const Tensor& x, const Tensor& y, const Maybe& a, const Maybe& b, const Maybe& c, const Maybe& tx,
           const Maybe& ty, const Maybe& ta, const Maybe& tb, const Maybe& tc, StringArgument plan) {
  const std::string text = plan;
  Call call("gaunt_product_jvp", x, a, b, c, text);
  call.take({y, a, b, c}, {tx, ty, ta, tb, tc});
  if (!Backend::covers(call.problem())) return by_grid<1>("_jvp", x, y, a, b, c, tx, ty, ta, tb, tc, text)[0];
  return call.forward(&Backend::launch);
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(const Tensor& x, const Tensor& y, const Maybe& a,
                                                            const Maybe& b, const Maybe& c, const Tensor& g,
                                                            StringArgument plan, const std::vector<bool>& wanted) {
  const std::string text = plan;
  Call call("gaunt_product_backward", x, a, b, c, text);
  call.take({y, a, b, c, g}, wanted);
  if (!Backend::covers(call.problem()))
    return std::tuple_cat(by_grid<5>("_backward", x, y, a, b, c, g, text, Flags(flags<5>(wanted))));
  return call.backward(&Backend::launch, wanted);
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> double_backward(
    const Tensor& x, const Tensor& y, const Maybe& a, const Maybe& b, const Maybe& c, const Tensor& g, const Maybe& tx,
    const Maybe& ty, const Maybe& ta, const Maybe& tb, const Maybe& tc, const Maybe& tg, StringArgument plan,
    const std::vector<bool>& wanted) {
  const std::string text = plan;
  Call call("gaunt_product_double_backward", x, a, b, c, text);
  call.take({y, a, b, c, g}, {tx, ty, ta, tb, tc, tg}, wanted);
  if (!Backend::covers(call.problem()))
    return std::tuple_cat(
        by_grid<6>("_double_backward", x, y, a, b, c, g, tx, ty, ta, tb, tc, tg, text, Flags(flags<6>(wanted))));
  return call.double_backward(&Backend::launch, wanted);
}

template <class Backend>
void register_impls(torch::stable::detail::StableLibrary& m) {
  m.impl("gaunt_product", TORCH_BOX(&forward<Backend>));
  m.impl("gaunt_product_jvp", TORCH_BOX(&jvp<Backend>));
  m.impl("gaunt_product_backward", TORCH_BOX(&backward<Backend>));
  m.impl("gaunt_product_double_backward", TORCH_BOX(&double_backward<Backend>));
}

}  // namespace eqk::gaunt_product
