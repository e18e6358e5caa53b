#pragma once
// A call of a member of a multilinear family of ops (python/eqk/register.py), its arguments checked.
#include <array>
#include <span>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/tensor.h"

namespace eqk {

// What an operand or result of an op must be.
struct Shape {
  const char* name;
  std::int64_t rows, columns;  // rows < 0: one dimension
  bool absent = false;         // the plan has no such operand
};

inline void check_wanted(const char* op, const std::vector<bool>& wanted, std::size_t count) {
  if (wanted.size() != count) fail("eqk::", op, ": wanted: expected ", count, " flags, got ", wanted.size());
}

// Checks operands against the plan, owns what it had to make contiguous and what it allocates for results. Description:
// the Problem of an op, whose operands and results, the last one g, this fills in.
template <class Description>
class FamilyCall {
  static constexpr std::size_t kCount = std::tuple_size_v<decltype(Description::in)>;
  using Plan = std::remove_const_t<std::remove_pointer_t<decltype(Description::plan)>>;

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
  FamilyCall(const char* op, const Tensor& first, const Plan* plan, const char* rows_name)
      : op_(op), first_(first), plan_(std::move(plan)) {
    if (!first.defined()) fail("eqk::", op_, ": x: expected a tensor, got None");
    problem_.dtype = kernel_dtype(op, first);
    if (first.dim() != 2)
      fail("eqk::", op_, ": x: expected 2 dimensions [", rows_name, ", ", plan_->dim[0], "], got shape ",
           shape_string(first));
    problem_.plan = plan_;
  }

  const char* op_;
  const Tensor& first_;
  const Plan* plan_;
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
    const std::array sizes{rows, columns};
    check_shape(op_, name, t, std::span(sizes).last(rows < 0 ? 1 : 2));
    check_like(op_, name, t, first_);
    kept_.push_back(with_adjacent_columns(t));
    return kept_.back();
  }
};

// An op that torch operations make of any plan on any device: what the kernels of another, `op`, do not cover.
template <std::size_t results, class... Arguments>
std::array<Tensor, results> by_torch(const std::string& op, const std::string& name, const Arguments&... arguments) {
  try {
    return torch_operation<results>(("eqk::" + name).c_str(), "", arguments...);
  } catch (const std::exception&) {
    fail("eqk::", op,
         ": torch operations, which run what its kernels do not cover, failed, as torch says on standard error");
  }
}

using Flags = torch::headeronly::HeaderOnlyArrayRef<bool>;  // of which torch makes a list, as it does of no vector

template <std::size_t count>
std::array<bool, count> flags(const std::vector<bool>& wanted) {
  std::array<bool, count> result;
  std::copy_n(wanted.begin(), count, result.begin());
  return result;
}

}  // namespace eqk
