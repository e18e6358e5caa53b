#pragma once
// Arguments of the four ops, checked and turned into a Problem. Every backend registers register_impls with its
// launcher.
#include <string>
#include <tuple>
#include <vector>

#include "core/tensor.h"
#include "tensor_product/problem.h"

namespace eqk::tensor_product {

using Launcher = void (*)(const Problem&, const Tensor& like);

inline constexpr std::array<const char*, kSlots> kSlotNames{"x", "y", "w", "g"};
inline constexpr std::array<const char*, kSlots> kTangentNames{"tangent of x", "tangent of y", "tangent of w",
                                                               "tangent of g"};

// Checks operands against the plan, owns what it had to make contiguous and what it allocates for results.
class Call {
 public:
  Call(const char* op, const Tensor& first, const std::string& plan_text)
      : op_(op), first_(first), plan_(cached_plan(plan_text)) {
    if (!first.defined()) fail("eqk::", op_, ": x: expected a tensor, got None");
    problem_.dtype = kernel_dtype(op, first);
    if (first.dim() != 2)
      fail("eqk::", op_, ": x: expected 2 dimensions [rows, ", plan_->dim[0], "], got shape ", shape_string(first));
    problem_.plan = plan_.get();
    problem_.rows = first.size(0);
  }

  void value(Slot slot, const OptionalTensor& t) {
    if (slot == kW && plan_->weights == Weights::none) {
      if (t && t->numel() != 0)
        fail("eqk::", op_, ": w: expected none, since no instruction of the plan is weighted, got shape ",
             shape_string(*t));
      return;
    }
    if (!t || !t->defined()) fail("eqk::", op_, ": ", kSlotNames[slot], ": expected a tensor, got None");
    const Tensor& kept = accept(kSlotNames[slot], slot, *t);
    problem_.in[slot].value = kept.const_data_ptr();
    problem_.in[slot].stride = row_stride(slot, kept);
  }

  void tangent(Slot slot, const OptionalTensor& t) {
    problem_.dual = true;
    if (!t || (slot == kW && plan_->weights == Weights::none)) return;
    const Tensor& kept = accept(kTangentNames[slot], slot, *t);
    problem_.in[slot].tangent = kept.const_data_ptr();
    problem_.in[slot].tangent_stride = row_stride(slot, kept);
  }

  Tensor result(Slot slot, bool wanted) {
    if (slot == kW && plan_->weights == Weights::none) wanted = false;
    if (!wanted) return empty(first_, {0});
    const bool shared = slot == kW && plan_->weights == Weights::shared;
    Tensor t = shared ? empty(first_, {columns(slot)}) : empty(first_, {problem_.rows, columns(slot)});
    problem_.out[slot] = {t.mutable_data_ptr(), shared ? 0 : columns(slot)};
    return t;
  }

  void run(Launcher launch) const { launch(problem_, first_); }

 private:
  const char* op_;
  const Tensor& first_;
  std::shared_ptr<const Plan> plan_;
  Problem problem_;
  std::vector<Tensor> kept_;

  std::int64_t columns(Slot slot) const {
    switch (slot) {
      case kX:
        return plan_->dim[0];
      case kY:
        return plan_->dim[1];
      case kW:
        return plan_->weight_numel;
      default:
        return plan_->dim[2];
    }
  }

  std::int64_t row_stride(Slot slot, const Tensor& t) const {
    return slot == kW && plan_->weights == Weights::shared ? 0 : t.stride(0);
  }

  Tensor accept(const char* name, Slot slot, const Tensor& t) {
    const bool shared = slot == kW && plan_->weights == Weights::shared;
    const bool fits = shared ? t.dim() == 1 && t.size(0) == columns(slot)
                             : t.dim() == 2 && t.size(0) == problem_.rows && t.size(1) == columns(slot);
    if (!fits)
      fail("eqk::", op_, ": ", name, ": expected shape [", shared ? "" : std::to_string(problem_.rows) + ", ",
           columns(slot), "], got ", shape_string(t));
    if (t.scalar_type() != first_.scalar_type())
      fail("eqk::", op_, ": ", name, ": expected dtype ", first_.scalar_type(), " as x has, got ", t.scalar_type());
    if (t.device() != first_.device())
      fail("eqk::", op_, ": ", name, ": expected device ", device_string(first_), " as x has, got ", device_string(t));
    kept_.push_back(with_adjacent_columns(t));
    return kept_.back();
  }
};

inline void check_wanted(const char* op, const std::vector<bool>& wanted, std::size_t count) {
  if (wanted.size() != count) fail("eqk::", op, ": wanted: expected ", count, " flags, got ", wanted.size());
}

template <Launcher launch>
Tensor forward(const Tensor& x, const Tensor& y, const OptionalTensor& w, const std::string& plan) {
  Call call("tensor_product", x, plan);
  call.value(kX, x);
  call.value(kY, y);
  call.value(kW, w);
  Tensor out = call.result(kG, true);
  call.run(launch);
  return out;
}

template <Launcher launch>
Tensor jvp(const Tensor& x, const Tensor& y, const OptionalTensor& w, const OptionalTensor& tx,
           const OptionalTensor& ty, const OptionalTensor& tw, const std::string& plan) {
  Call call("tensor_product_jvp", x, plan);
  call.value(kX, x);
  call.value(kY, y);
  call.value(kW, w);
  call.tangent(kX, tx);
  call.tangent(kY, ty);
  call.tangent(kW, tw);
  Tensor out = call.result(kG, true);
  call.run(launch);
  return out;
}

template <Launcher launch>
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& x, const Tensor& y, const OptionalTensor& w, const Tensor& g,
                                            const std::string& plan, const std::vector<bool>& wanted) {
  check_wanted("tensor_product_backward", wanted, 3);
  Call call("tensor_product_backward", x, plan);
  call.value(kX, x);
  call.value(kY, y);
  call.value(kW, w);
  call.value(kG, g);
  Tensor gx = call.result(kX, wanted[0]), gy = call.result(kY, wanted[1]), gw = call.result(kW, wanted[2]);
  call.run(launch);
  return {gx, gy, gw};
}

template <Launcher launch>
std::tuple<Tensor, Tensor, Tensor, Tensor> double_backward(const Tensor& x, const Tensor& y, const OptionalTensor& w,
                                                           const Tensor& g, const OptionalTensor& tx,
                                                           const OptionalTensor& ty, const OptionalTensor& tw,
                                                           const OptionalTensor& tg, const std::string& plan,
                                                           const std::vector<bool>& wanted) {
  check_wanted("tensor_product_double_backward", wanted, 4);
  Call call("tensor_product_double_backward", x, plan);
  call.value(kX, x);
  call.value(kY, y);
  call.value(kW, w);
  call.value(kG, g);
  call.tangent(kX, tx);
  call.tangent(kY, ty);
  call.tangent(kW, tw);
  call.tangent(kG, tg);
  Tensor hx = call.result(kX, wanted[0]), hy = call.result(kY, wanted[1]), hw = call.result(kW, wanted[2]),
         hg = call.result(kG, wanted[3]);
  call.run(launch);
  return {hx, hy, hw, hg};
}

template <Launcher launch>
void register_impls(torch::stable::detail::StableLibrary& m) {
  m.impl("tensor_product", TORCH_BOX(&forward<launch>));
  m.impl("tensor_product_jvp", TORCH_BOX(&jvp<launch>));
  m.impl("tensor_product_backward", TORCH_BOX(&backward<launch>));
  m.impl("tensor_product_double_backward", TORCH_BOX(&double_backward<launch>));
}

}  // namespace eqk::tensor_product
