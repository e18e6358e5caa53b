#pragma once
// Arguments of the two ops, checked and turned into a Problem.
#include <array>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "s2_activation/problem.h"

namespace eqk::s2_activation {

using Launcher = void (*)(const Problem&);

inline constexpr std::array<const char*, kMaxFactors> kFactorNames{"v1", "v2", "v3", "v4"};

class Call {
 public:
  // kinds: the order of the derivative, the kind of each factor, x or z, '>' and that of the result.
  Call(const char* op, const Tensor& x, const std::vector<OptionalTensor>& factors, const std::string& plan,
       const std::string& kinds)
      : op_(op), x_(x), plan_(cached_plan(plan)) {
    problem_.plan = plan_;
    problem_.dtype = kernel_dtype(op, x);
    if (x.dim() != 2)
      fail("eqk::", op, ": x: expected 2 dimensions [rows, ", plan_->dim[kX], "], got shape ", shape_string(x));
    problem_.rows = x.size(0);
    problem_.x = accept("x", x, kX);
    std::size_t count = 0;
    while (count < factors.size() && factors[count]) ++count;
    bool right = kinds.size() == count + 3 && kinds[count + 1] == '>';
    right = right && kinds[0] >= '0' && kinds[0] <= '0' + kMaxDerivative;
    for (std::size_t n = 1; right && n < kinds.size(); ++n)
      right = n == count + 1 || kinds[n] == 'x' || kinds[n] == 'z';
    for (std::size_t n = count; right && n < factors.size(); ++n) right = !factors[n];
    if (!right)
      fail("eqk::", op, ": kinds: expected the order of the derivative, 0 to ", kMaxDerivative, ", x or z for each of ",
           count, " factors, '>', and x or z, got '", kinds, "'");
    problem_.derivative = kinds[0] - '0';
    for (std::size_t n = 0; n < count; ++n)
      problem_.factors.push_back(accept(kFactorNames[n], *factors[n], kinds[n + 1] == 'x' ? kX : kZ));
    problem_.result = kinds.back() == 'x' ? kX : kZ;
  }

  Tensor run(Launcher launch) {
    Tensor out = empty(x_, {problem_.rows, plan_->dim[problem_.result]});
    if (out.numel() == 0) return out;
    problem_.out = out.mutable_data_ptr();
    launch(problem_);
    return out;
  }

 private:
  const char* op_;
  const Tensor& x_;
  const Plan* plan_;
  Problem problem_;
  std::vector<Tensor> kept_;

  Operand accept(const std::string& name, const Tensor& t, Kind kind) {
    check_shape(op_, name, t, std::array{problem_.rows, plan_->dim[kind]});
    check_like(op_, name, t, x_);
    kept_.push_back(with_adjacent_columns(t));
    return {kept_.back().const_data_ptr(), kept_.back().stride(0), kind};
  }
};

template <Launcher launch>
Tensor forward(const Tensor& x, StringArgument plan) {
  return Call("s2_activation", x, {}, plan, "0>z").run(launch);
}

template <Launcher launch>
Tensor product(const Tensor& x, const OptionalTensor& v1, const OptionalTensor& v2, const OptionalTensor& v3,
               const OptionalTensor& v4, StringArgument plan, StringArgument kinds) {
  return Call("s2_activation_product", x, {v1, v2, v3, v4}, plan, kinds).run(launch);
}

template <Launcher launch>
void register_impls(torch::stable::detail::StableLibrary& m) {
  m.impl("s2_activation", TORCH_BOX(&forward<launch>));
  m.impl("s2_activation_product", TORCH_BOX(&product<launch>));
}

}  // namespace eqk::s2_activation
