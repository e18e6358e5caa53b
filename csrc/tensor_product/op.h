#pragma once
// Arguments of the four ops, checked and turned into a Problem. Every backend registers register_impls with its
// launcher.
#include <array>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "core/tensor.h"
#include "tensor_product/problem.h"

namespace eqk::tensor_product {

// What an operand or result of an op must be.
struct Shape {
  const char* name;
  std::int64_t rows, columns;  // rows < 0: one dimension
  bool absent = false;         // the plan has no such operand
};

inline void check_wanted(const char* op, const std::vector<bool>& wanted, std::size_t count) {
  if (wanted.size() != count) fail("eqk::", op, ": wanted: expected ", count, " flags, got ", wanted.size());
}

// A call of a member of the family: checks operands against the plan, owns what it had to make contiguous and what it
// allocates for results. Description: the Problem of an op, whose operands and results, the last one g, this fills in.
template <class Description>
class FamilyCall {
  static constexpr std::size_t kCount = std::tuple_size_v<decltype(Description::in)>;

 public:
  using Launcher = void (*)(const Description&, const Tensor& like);
  template <std::size_t N>
  using Tensors = std::array<OptionalTensor, N>;

  // Checks the operands of a member. v: those behind the first one; t: tangents of all, in the double backward of g
  // too.
  void take(const Tensors<kCount - 2>& v) { values(v); }
  void take(const Tensors<kCount - 2>& v, const Tensors<kCount - 1>& t) {
    values(v);
    tangents(t);
  }
  void take(const Tensors<kCount - 1>& v, const std::vector<bool>& wanted) {
    check_wanted(op_, wanted, kCount - 1);
    values(v);
  }
  void take(const Tensors<kCount - 1>& v, const Tensors<kCount>& t, const std::vector<bool>& wanted) {
    check_wanted(op_, wanted, kCount);
    values(v);
    tangents(t);
  }

  // Of what was taken.
  Tensor forward(Launcher launch) { return finish<1>(launch, kCount - 1, {true})[0]; }
  auto backward(Launcher launch, const std::vector<bool>& wanted) {
    return std::tuple_cat(finish<kCount - 1>(launch, 0, wanted));
  }
  auto double_backward(Launcher launch, const std::vector<bool>& wanted) {
    return std::tuple_cat(finish<kCount>(launch, 0, wanted));
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

  // Those of x, y, the weights of rows, which the plan may share or lack, and g.
  std::array<Shape, 4> shapes_of_plan(std::int64_t x_rows, std::int64_t rows, std::int64_t g_rows) const {
    const bool shared = plan_->weights == Weights::shared;
    return {{{"x", x_rows, plan_->dim[0]},
             {"y", rows, plan_->dim[1]},
             {"w", shared ? -1 : rows, plan_->weight_numel, plan_->weights == Weights::none},
             {"g", g_rows, plan_->dim[2]}}};
  }

  const char* op_;
  const Tensor& first_;
  std::shared_ptr<const Plan> plan_;
  Description problem_;
  std::array<Shape, kCount> shapes_{};

 private:
  std::vector<Tensor> kept_;

  template <std::size_t N>
  void values(const Tensors<N>& tensors) {
    value(0, first_);
    for (std::size_t n = 0; n < N; ++n) value(n + 1, tensors[n]);
  }

  template <std::size_t N>
  void tangents(const Tensors<N>& tensors) {
    problem_.dual = true;
    for (std::size_t n = 0; n < N; ++n) {
      if (!tensors[n] || shapes_[n].absent) continue;
      const Tensor& kept = accept(n, *tensors[n], "tangent of ");
      problem_.in[n].tangent = kept.const_data_ptr();
      problem_.in[n].tangent_stride = row_stride(n, kept);
    }
  }

  void value(std::size_t slot, const OptionalTensor& t) {
    const Shape& shape = shapes_[slot];
    if (shape.absent) {
      if (t && t->numel() != 0)
        fail("eqk::", op_, ": ", shape.name,
             ": expected none, since no instruction of the plan is weighted, got shape ", shape_string(*t));
      return;
    }
    if (!t || !t->defined()) fail("eqk::", op_, ": ", shape.name, ": expected a tensor, got None");
    const Tensor& kept = accept(slot, *t, "");
    problem_.in[slot].value = kept.const_data_ptr();
    problem_.in[slot].stride = row_stride(slot, kept);
  }

  // N results, that of slot `first` and those after it.
  template <std::size_t N>
  std::array<Tensor, N> finish(Launcher launch, std::size_t first, const std::vector<bool>& wanted) {
    std::array<Tensor, N> results;
    for (std::size_t n = 0; n < N; ++n) {
      const Shape& shape = shapes_[first + n];
      if (!wanted[n] || shape.absent) {
        results[n] = empty(first_, {0});
        continue;
      }
      results[n] = shape.rows < 0 ? empty(first_, {shape.columns}) : empty(first_, {shape.rows, shape.columns});
      problem_.out[first + n] = {results[n].mutable_data_ptr(), shape.rows < 0 ? 0 : shape.columns};
    }
    launch(problem_, first_);
    return results;
  }

  std::int64_t row_stride(std::size_t slot, const Tensor& t) const { return shapes_[slot].rows < 0 ? 0 : t.stride(0); }

  const Tensor& accept(std::size_t slot, const Tensor& t, const char* what) {
    const auto& [shape_name, rows, columns, absent] = shapes_[slot];
    const std::string name = std::string(what) + shape_name;
    const bool fits =
        rows < 0 ? t.dim() == 1 && t.size(0) == columns : t.dim() == 2 && t.size(0) == rows && t.size(1) == columns;
    if (!fits)
      fail("eqk::", op_, ": ", name, ": expected shape [", rows < 0 ? "" : std::to_string(rows) + ", ", columns,
           "], got ", shape_string(t));
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
    shapes_ = shapes_of_plan(x.size(0), x.size(0), x.size(0));
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
