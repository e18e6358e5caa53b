#pragma once
// Arguments of the four ops, checked and turned into a Problem. Every backend registers register_impls with its
// launcher.
#include <array>
#include <initializer_list>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "core/tensor.h"
#include "tensor_product/problem.h"

namespace eqk::tensor_product {

inline constexpr std::array<const char*, kSlots> kSlotNames{"x", "y", "w", "g"};
inline constexpr std::array<const char*, kSlots> kTangentNames{"tangent of x", "tangent of y", "tangent of w",
                                                               "tangent of g"};

inline void check_wanted(const char* op, const std::vector<bool>& wanted, std::size_t count) {
  if (wanted.size() != count) fail("eqk::", op, ": wanted: expected ", count, " flags, got ", wanted.size());
}

// A call of a member of the family: checks operands against the plan, owns what it had to make contiguous and what it
// allocates for results. Description: the Problem of an op, whose operands and results this fills in.
template <class Description>
class FamilyCall {
 public:
  using Launcher = void (*)(const Description&, const Tensor& like);

  Tensor forward(Launcher launch, const OptionalTensor& y, const OptionalTensor& w) {
    values({first_, y, w});
    Tensor out = result(kG, true);
    launch(problem_, first_);
    return out;
  }

  Tensor jvp(Launcher launch, const OptionalTensor& y, const OptionalTensor& w, const OptionalTensor& tx,
             const OptionalTensor& ty, const OptionalTensor& tw) {
    values({first_, y, w});
    tangents({tx, ty, tw});
    Tensor out = result(kG, true);
    launch(problem_, first_);
    return out;
  }

  std::tuple<Tensor, Tensor, Tensor> backward(Launcher launch, const OptionalTensor& y, const OptionalTensor& w,
                                              const OptionalTensor& g, const std::vector<bool>& wanted) {
    check_wanted(op_, wanted, 3);
    values({first_, y, w, g});
    Tensor gx = result(kX, wanted[0]), gy = result(kY, wanted[1]), gw = result(kW, wanted[2]);
    launch(problem_, first_);
    return {gx, gy, gw};
  }

  std::tuple<Tensor, Tensor, Tensor, Tensor> double_backward(Launcher launch, const OptionalTensor& y,
                                                             const OptionalTensor& w, const OptionalTensor& g,
                                                             const OptionalTensor& tx, const OptionalTensor& ty,
                                                             const OptionalTensor& tw, const OptionalTensor& tg,
                                                             const std::vector<bool>& wanted) {
    check_wanted(op_, wanted, 4);
    values({first_, y, w, g});
    tangents({tx, ty, tw, tg});
    Tensor hx = result(kX, wanted[0]), hy = result(kY, wanted[1]), hw = result(kW, wanted[2]),
           hg = result(kG, wanted[3]);
    launch(problem_, first_);
    return {hx, hy, hw, hg};
  }

 protected:
  // rows_name: what a message calls the rows of x.
  FamilyCall(const char* op, const Tensor& first, const std::string& plan_text, const char* rows_name)
      : op_(op), first_(first), plan_(cached_plan(plan_text)) {
    if (!first.defined()) fail("eqk::", op_, ": x: expected a tensor, got None");
    problem_.dtype = kernel_dtype(op, first);
    if (first.dim() != 2)
      fail("eqk::", op_, ": x: expected 2 dimensions [", rows_name, ", ", plan_->dim[0], "], got shape ",
           shape_string(first));
    problem_.plan = plan_.get();
  }

  const char* op_;
  const Tensor& first_;
  std::shared_ptr<const Plan> plan_;
  Description problem_;
  std::array<std::int64_t, kSlots> rows_{};  // of each operand and result

 private:
  std::vector<Tensor> kept_;

  void values(std::initializer_list<OptionalTensor> tensors) {
    int slot = 0;
    for (const auto& t : tensors) value(static_cast<Slot>(slot++), t);
  }

  void tangents(std::initializer_list<OptionalTensor> tensors) {
    problem_.dual = true;
    int slot = 0;
    for (const auto& t : tensors) tangent(static_cast<Slot>(slot++), t);
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
    if (!t || (slot == kW && plan_->weights == Weights::none)) return;
    const Tensor& kept = accept(kTangentNames[slot], slot, *t);
    problem_.in[slot].tangent = kept.const_data_ptr();
    problem_.in[slot].tangent_stride = row_stride(slot, kept);
  }

  Tensor result(Slot slot, bool wanted) {
    if (slot == kW && plan_->weights == Weights::none) wanted = false;
    if (!wanted) return empty(first_, {0});
    const bool shared = slot == kW && plan_->weights == Weights::shared;
    Tensor t = shared ? empty(first_, {columns(slot)}) : empty(first_, {rows_[slot], columns(slot)});
    problem_.out[slot] = {t.mutable_data_ptr(), shared ? 0 : columns(slot)};
    return t;
  }

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
                             : t.dim() == 2 && t.size(0) == rows_[slot] && t.size(1) == columns(slot);
    if (!fits)
      fail("eqk::", op_, ": ", name, ": expected shape [", shared ? "" : std::to_string(rows_[slot]) + ", ",
           columns(slot), "], got ", shape_string(t));
    if (t.scalar_type() != first_.scalar_type())
      fail("eqk::", op_, ": ", name, ": expected dtype ", first_.scalar_type(), " as x has, got ", t.scalar_type());
    if (t.device() != first_.device())
      fail("eqk::", op_, ": ", name, ": expected device ", device_string(first_), " as x has, got ", device_string(t));
    kept_.push_back(with_adjacent_columns(t));
    return kept_.back();
  }
};

class Call : public FamilyCall<Problem> {
 public:
  Call(const char* op, const Tensor& x, const std::string& plan) : FamilyCall(op, x, plan, "rows") {
    problem_.rows = x.size(0);
    rows_.fill(x.size(0));
  }
};

using Launcher = Call::Launcher;

template <Launcher launch>
Tensor forward(const Tensor& x, const Tensor& y, const OptionalTensor& w, const std::string& plan) {
  return Call("tensor_product", x, plan).forward(launch, y, w);
}

template <Launcher launch>
Tensor jvp(const Tensor& x, const Tensor& y, const OptionalTensor& w, const OptionalTensor& tx,
           const OptionalTensor& ty, const OptionalTensor& tw, const std::string& plan) {
  return Call("tensor_product_jvp", x, plan).jvp(launch, y, w, tx, ty, tw);
}

template <Launcher launch>
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& x, const Tensor& y, const OptionalTensor& w, const Tensor& g,
                                            const std::string& plan, const std::vector<bool>& wanted) {
  return Call("tensor_product_backward", x, plan).backward(launch, y, w, g, wanted);
}

template <Launcher launch>
std::tuple<Tensor, Tensor, Tensor, Tensor> double_backward(const Tensor& x, const Tensor& y, const OptionalTensor& w,
                                                           const Tensor& g, const OptionalTensor& tx,
                                                           const OptionalTensor& ty, const OptionalTensor& tw,
                                                           const OptionalTensor& tg, const std::string& plan,
                                                           const std::vector<bool>& wanted) {
  return Call("tensor_product_double_backward", x, plan).double_backward(launch, y, w, g, tx, ty, tw, tg, wanted);
}

template <Launcher launch>
void register_impls(torch::stable::detail::StableLibrary& m) {
  m.impl("tensor_product", TORCH_BOX(&forward<launch>));
  m.impl("tensor_product_jvp", TORCH_BOX(&jvp<launch>));
  m.impl("tensor_product_backward", TORCH_BOX(&backward<launch>));
  m.impl("tensor_product_double_backward", TORCH_BOX(&double_backward<launch>));
}

}  // namespace eqk::tensor_product
