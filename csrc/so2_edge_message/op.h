#pragma once
// Arguments of the ops, checked and turned into a Problem: python/eqk/so2_edge_message.py, _check, for tensors with
// data.
#include <array>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "so2_edge_message/problem.h"

namespace eqk::so2_edge_message {

// As torch.dtype is written.
inline std::string dtype_string(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "torch.float32";
    case ScalarType::Double:
      return "torch.float64";
    case ScalarType::Half:
      return "torch.float16";
    case ScalarType::BFloat16:
      return "torch.bfloat16";
    default: {
      std::ostringstream name;
      name << type;
      return name.str();
    }
  }
}

class Call {
 public:
  using Operands = std::array<OptionalTensor, kSlots>;
  using Kept = std::array<OptionalTensor, 3>;  // y, s, message

  // g: the cotangent, of backward. 16-bit types are computed in float32.
  Call(const char* op, const Operands& v, const OptionalTensor& g, const Kept& kept, const Tensor& index,
       const std::string& plan)
      : op_(op), plan_(cached_plan(plan)) {
    const Tensor& x = *v[kX];
    const auto& [_, q, h, a, w, conv1, conv2] = v;
    Problem& p = problem_;
    p.plan = plan_;
    dtype_ = x.scalar_type();
    p.dtype = kernel_dtype(op, x);
    if (p.dtype != Dtype::float64) p.dtype = Dtype::float32;
    wide_ = p.dtype == Dtype::float64 ? ScalarType::Double : ScalarType::Float;
    const std::int64_t components = plan_->components(), ins = plan_->channels_in;
    if (x.dim() != 3 || x.size(1) != components || (x.size(2) != ins && 2 * x.size(2) != ins))
      fail_at("x", "shape [nodes, ", components, ", ", ins, " or ", static_cast<double>(ins) / 2, "], got ",
              shape_string(x));
    if (index.dim() != 2 || (index.size(0) != 2 && index.size(0) != 3))
      fail_at("index", "shape [2 or 3, edges], got ", shape_string(index));
    if (index.scalar_type() != ScalarType::Int && index.scalar_type() != ScalarType::Long)
      fail_at("index", "dtype int32 or int64, got ", dtype_string(index.scalar_type()));
    check_device(op, "index", index, x);
    p.nodes = x.size(0), p.channels = x.size(2), p.edges = index.size(1);
    const Layer first = plan_->first(), second = plan_->second();
    if (h) {
      const Tensor& last = a ? *a : *h;
      const std::int64_t degrees = plan_->lmax + 1, orders = plan_->orders();
      if (last.dim() != 2 || (last.size(1) != degrees * ins && last.size(1) != orders * ins))
        fail_at(a ? "a" : "h", "2 dimensions, the last of ", degrees * ins, " (degrees) or ", orders * ins,
                " (degrees and orders) weights, got shape ", shape_string(last));
      p.groups = last.size(1) / ins;
      p.features = a ? a->size(0) : last.size(1);
    } else if (a) {
      fail_at("h", "features that a is to be multiplied with, got None");
    }
    if (w) {
      if (w->dim() != 2 || w->size(1) == 0 || plan_->channels_out % w->size(1))
        fail_at("w", "shape [", p.edges, ", a divisor of ", plan_->channels_out, "], got ", shape_string(*w));
      p.heads = w->size(1);
    }
    const std::int64_t edges = p.edges, rows = plan_->rows();
    accept("q", q, {edges, 4});
    accept("h", h, {edges, p.features});
    accept("w", w, {edges, p.heads});
    accept("conv1", conv1, {first.numel()});
    accept("conv2", conv2, {second.numel()});
    accept("g", g, {p.nodes, components, plan_->channels_out});
    const std::array<std::initializer_list<std::int64_t>, 3> shapes{
        {{edges, rows, first.out}, {edges, first.extra}, {edges, rows, plan_->channels_out}}};
    for (int n = 0; n < 3; ++n) accept(kKeptNames[n], kept[n], shapes[n]);
    for (int n = 0; n < kSlots; ++n)
      if (v[n]) check_same(kSlotNames[n], *v[n], x, dtype_, " as x has");
    if (g) check_same("g", *g, x, dtype_, " as x has");
    for (int n = 0; n < 3; ++n)
      if (kept[n]) check_same(kKeptNames[n], *kept[n], x, wide_, " that is computed in");
    for (int n = 0; n < kSlots; ++n)
      if (v[n]) p.in[n] = keep(*v[n]);
    if (g) p.g = keep(*g);
    void** const of_kept[] = {&p.y, &p.s, &p.message};
    for (int n = 0; n < 3; ++n)
      if (kept[n]) *of_kept[n] = const_cast<void*>(keep(*kept[n]));
    if (!kept[0] || !kept[1]) p.y = p.s = nullptr;  // made together
    like_ = kept_.front();
  }

  Problem& problem() { return problem_; }
  // x in the type that is computed in.
  const Tensor& like() const { return *like_; }
  Tensor make(std::initializer_list<std::int64_t> shape) const { return empty(like(), shape); }
  Tensor make_like(const Tensor& t) const { return t.dim() == 1 ? make({t.size(0)}) : make({t.size(0), t.size(1)}); }
  // In the type of x.
  Tensor result(const Tensor& t) const { return dtype_ == wide_ ? t : torch::stable::to(t, dtype_); }

 private:
  static constexpr std::array<const char*, 3> kKeptNames{"y", "s", "message"};

  const char* op_;
  const Plan* plan_;
  Problem problem_;
  ScalarType dtype_{}, wide_{};
  std::vector<Tensor> kept_;
  OptionalTensor like_;

  template <class... Parts>
  [[noreturn]] void fail_at(const char* name, const Parts&... expected) const {
    fail("eqk::", op_, ": ", name, ": expected ", expected...);
  }

  void accept(const char* name, const OptionalTensor& t, std::initializer_list<std::int64_t> shape) const {
    if (t) check_shape(op_, name, *t, shape);
  }

  void check_same(const char* name, const Tensor& t, const Tensor& x, ScalarType type, const char* whose) const {
    if (t.scalar_type() != type)
      fail_at(name, "dtype ", dtype_string(type), whose, ", got ", dtype_string(t.scalar_type()));
    check_device(op_, name, t, x);
  }

  const void* keep(const Tensor& t) {
    const Tensor wide = t.scalar_type() == wide_ ? t : torch::stable::to(t, wide_);
    kept_.push_back(torch::stable::contiguous(wide));
    static constexpr char kNothing = 0;  // what a tensor without elements has no address of
    return wide.numel() ? kept_.back().const_data_ptr() : &kNothing;
  }
};

}  // namespace eqk::so2_edge_message
