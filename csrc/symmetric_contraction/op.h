#pragma once
// Arguments of the two ops, checked and turned into a Problem. A backend registers register_impls with its launcher.
#include <array>
#include <string>
#include <tuple>
#include <vector>

#include "core/tensor.h"
#include "symmetric_contraction/problem.h"

namespace eqk::symmetric_contraction {

class Call {
 public:
  using Launcher = void (*)(const Problem&, const Tensor& like);

  Call(const char* op, const Tensor& x, const Tensor& w, const OptionalTensor& species, const std::string& plan)
      : op_(op), x_(x), plan_(cached_plan(plan)) {
    problem_.plan = plan_;
    problem_.dtype = kernel_dtype(op, x);
    const std::int64_t dim = plan_->dim_in;
    const bool mul_ir = plan_->layout_in == Layout::mul_ir;
    if (x.dim() != 3 || x.size(mul_ir ? 2 : 1) != dim)
      fail("eqk::", op, ": x: expected shape [nodes, ", mul_ir ? "channels, " : "", dim, mul_ir ? "" : ", channels",
           "], got ", shape_string(x));
    problem_.nodes = x.size(0);
    problem_.channels = x.size(mul_ir ? 1 : 2);
    if (w.dim() != 3) fail("eqk::", op, ": w: expected 3 dimensions, got shape ", shape_string(w));
    if (species) check_species(*species);
    problem_.num_species = species ? w.size(0) : x.size(0);
    value(kX, x);
    value(kW, w);
  }

  void g(const OptionalTensor& g) {
    has_g_ = g.has_value();
    if (g) value(kG, *g);
  }

  // Three for each derivative; those in front count up to the last one with a tangent.
  void tangents(const std::array<std::array<OptionalTensor, kSlots>, kMaxTangents>& groups) {
    int count = kMaxTangents;
    const auto empty_group = [](const auto& group) { return !group[kX] && !group[kW] && !group[kG]; };
    while (count > 0 && empty_group(groups[count - 1])) --count;
    for (int n = 0; n < count; ++n) {
      problem_.tangents.emplace_back();
      for (int s = 0; s < kSlots; ++s)
        if (groups[n][s]) problem_.tangents[n][s] = operand(static_cast<Slot>(s), *groups[n][s], n + 1);
    }
  }

  Tensor result(Slot slot, bool wanted) {
    if (!wanted) return empty(x_, {0});
    const auto n = problem_.nodes, c = problem_.channels;
    Tensor t = slot == kX   ? empty(x_, {n, x_.size(1), x_.size(2)})
               : slot == kW ? empty(x_, {problem_.num_species, paths(), c})
                            : empty(x_, {n, c * plan_->dim_out});
    if (t.numel() > 0) problem_.out[slot] = t.mutable_data_ptr();
    return t;
  }

  // A gradient of x or w without any g would be zero: a mistake.
  void launch(Launcher launcher) {
    bool has_g = has_g_;
    for (const auto& tangent : problem_.tangents) has_g = has_g || tangent[kG].data;
    if ((problem_.out[kX] || problem_.out[kW]) && !has_g) fail("eqk::", op_, ": g: expected a tensor, got None");
    launcher(problem_, x_);
  }

 private:
  const char* op_;
  const Tensor& x_;
  const Plan* plan_;
  Problem problem_;
  bool has_g_ = false;
  std::vector<Tensor> kept_;

  std::int64_t paths() const { return static_cast<std::int64_t>(plan_->paths.size()); }

  void check_species(const Tensor& t) {
    check_shape(op_, "species", t, std::array{problem_.nodes});
    if (t.scalar_type() != ScalarType::Int && t.scalar_type() != ScalarType::Long)
      fail("eqk::", op_, ": species: expected dtype int32 or int64, got ", t.scalar_type());
    check_device(op_, "species", t, x_);
    problem_.species = t.numel() > 0 ? t.const_data_ptr() : &problem_;  // not null: there is one weight a species
    problem_.species_64 = t.scalar_type() == ScalarType::Long;
    problem_.species_stride = t.stride(0);
  }

  void value(Slot slot, const Tensor& t) { problem_.in[slot] = operand(slot, t, 0); }

  // n: of the n-th tangent.
  Operand operand(Slot slot, const Tensor& t, int n) {
    const std::string name = (n ? "tangent " + std::to_string(n) + " of " : "") + "xwg"[slot];
    std::vector<std::int64_t> shape{problem_.nodes, problem_.channels * plan_->dim_out};
    if (slot == kX) shape = {problem_.nodes, x_.size(1), x_.size(2)};
    if (slot == kW) shape = {problem_.num_species, paths(), problem_.channels};
    check_shape(op_, name, t, shape);
    check_like(op_, name, t, x_);
    kept_.push_back(slot == kX ? with_contiguous_rows(t) : with_adjacent_columns(t));
    const Tensor& kept = kept_.back();
    if (kept.numel() == 0) return {};
    return {kept.const_data_ptr(), kept.stride(0), slot == kW ? kept.stride(1) : 0};
  }

  static Tensor with_contiguous_rows(const Tensor& t) {
    const bool adjacent = t.size(2) == 1 || t.stride(2) == 1;
    const bool contiguous = adjacent && (t.size(1) == 1 || t.stride(1) == t.size(2));
    return t.numel() == 0 || contiguous ? t : torch::stable::contiguous(t);
  }
};

template <Call::Launcher launch>
Tensor forward(const Tensor& x, const Tensor& w, const OptionalTensor& species, StringArgument plan) {
  Call call("symmetric_contraction", x, w, species, plan);
  Tensor out = call.result(kG, true);
  call.launch(launch);
  return out;
}

template <Call::Launcher launch>
std::tuple<Tensor, Tensor, Tensor> derivative(
    const Tensor& x, const Tensor& w, const OptionalTensor& g, const OptionalTensor& x1, const OptionalTensor& w1,
    const OptionalTensor& g1, const OptionalTensor& x2, const OptionalTensor& w2, const OptionalTensor& g2,
    const OptionalTensor& x3, const OptionalTensor& w3, const OptionalTensor& g3, const OptionalTensor& x4,
    const OptionalTensor& w4, const OptionalTensor& g4, const OptionalTensor& x5, const OptionalTensor& w5,
    const OptionalTensor& g5, const OptionalTensor& species, StringArgument plan, const std::vector<bool>& wanted) {
  const char* const op = "symmetric_contraction_derivative";
  if (wanted.size() != kSlots) fail("eqk::", op, ": wanted: expected 3 flags, got ", wanted.size());
  Call call(op, x, w, species, plan);
  call.g(g);
  call.tangents({{{x1, w1, g1}, {x2, w2, g2}, {x3, w3, g3}, {x4, w4, g4}, {x5, w5, g5}}});
  Tensor gx = call.result(kX, wanted[0]), gw = call.result(kW, wanted[1]), gg = call.result(kG, wanted[2]);
  call.launch(launch);
  return {gx, gw, gg};
}

template <Call::Launcher launch>
void register_impls(torch::stable::detail::StableLibrary& m) {
  m.impl("symmetric_contraction", TORCH_BOX(&forward<launch>));
  m.impl("symmetric_contraction_derivative", TORCH_BOX(&derivative<launch>));
}

}  // namespace eqk::symmetric_contraction
