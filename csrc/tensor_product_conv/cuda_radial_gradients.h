#pragma once
// Gradients of the convolution with weights h a: for part after part of the edges, weights by a product of matrices,
// the backward of the convolution, and products with the gradients of weights. Of a part alone are there any of either.
#include <utility>

#include "core/tensor.h"
#include "tensor_product_conv/cuda_radial_launches.h"

namespace eqk::tensor_product_conv {

class RadialGradients {
 public:
  // ordered: with_weights(call), whose edges have place_of; by_dst: the order of destinations; bytes: that weights may
  // take, their tangents and gradients with them.
  RadialGradients(const DeviceRadialProblem& call, const DeviceProblem& ordered, const Tensor& by_dst,
                  std::int64_t bytes, const Tensor& like)
      : call_(call), problem_(ordered), by_dst_(by_dst), like_(like) {
    const Operand &h = call.in[kHidden], &a = call.in[kMatrix];
    h_ = by_place(h.value, h.stride, hidden_);
    a_ = matrix(a.value, hidden_, numel_, a.stride);
    if (h.tangent) th_ = by_place(h.tangent, h.tangent_stride, hidden_);
    if (a.tangent) ta_ = matrix(a.tangent, hidden_, numel_, a.tangent_stride);

    const Operand& y = call.in[kRadialY];
    y_ = by_place(y.value, y.stride, dim_y_);
    problem_.in[kY] = {y_.const_data_ptr(), nullptr, dim_y_, dim_y_};
    if (y.tangent) {
      ty_ = by_place(y.tangent, y.tangent_stride, dim_y_);
      problem_.in[kY].tangent = ty_->const_data_ptr();
    }
    if (call.out[kRadialY].data) {
      gy_ = empty(like, {edges_, dim_y_});
      problem_.out[kY] = {gy_->mutable_data_ptr(), dim_y_};
    }
    if (call.out[kHidden].data) gh_ = empty(like, {edges_, hidden_});
    if (call.out[kMatrix].data) ga_ = torch::stable::new_zeros(like, {hidden_, numel_});

    const bool tangent = th_ || ta_, gradient = gh_ || ga_;
    const std::int64_t row = 4 * numel_ * (1 + tangent + gradient);
    size_ = std::max<std::int64_t>(1, std::min(edges_, bytes / row));
    w_ = empty(like, {size_, numel_});
    if (tangent) tw_ = empty(like, {size_, numel_});
    if (gradient) gw_ = empty(like, {size_, numel_});
  }

  // enqueue(launches): in stream order with the products.
  template <class F>
  void run(void* scratch, F&& enqueue) {
    Launches launches(problem_, scratch);
    launches.orders();
    gradients_along(problem_, launches, false, enqueue);
    if (Launches::has_tangent_of_g(problem_))
      gradients_along(Launches::along_tangent_of_g(problem_), launches, true, enqueue);
    if (gy_) by_edge(*gy_, call_.out[kRadialY], dim_y_);
    if (gh_) by_edge(*gh_, call_.out[kHidden], hidden_);
    if (ga_) copy(*ga_, of_result(call_.out[kMatrix], hidden_, numel_));
  }

 private:
  const DeviceRadialProblem& call_;
  DeviceProblem problem_;
  const Tensor &by_dst_, &like_;
  const std::int64_t edges_ = call_.edges->count, hidden_ = call_.hidden, numel_ = call_.plan->weight_numel,
                     dim_y_ = call_.plan->dim[1];
  std::int64_t size_ = 0;  // edges of a part, at most
  // Rows of edges are by place; w_, tw_ and gw_ are of a part.
  Tensor h_, a_, y_, w_;
  OptionalTensor th_, ta_, ty_, tw_, gy_, gh_, ga_, gw_;

  Tensor matrix(const void* data, std::int64_t rows, std::int64_t columns, std::int64_t stride) const {
    return torch::stable::from_blob(const_cast<void*>(data), {rows, columns}, {stride, 1}, like_.device(),
                                    like_.scalar_type());
  }
  Tensor of_result(const Result& result, std::int64_t rows, std::int64_t columns) const {
    return matrix(result.data, rows, columns, result.stride);
  }
  Tensor by_place(const void* data, std::int64_t stride, std::int64_t columns) const {
    return torch_operation("aten::index_select", "", matrix(data, edges_, columns, stride), std::int64_t{0},
                           by_dst_)[0];
  }
  void by_edge(const Tensor& rows, const Result& result, std::int64_t columns) const {
    const Tensor place_of =
        torch::stable::from_blob(problem_.edges->place_of, {edges_}, {1}, like_.device(), ScalarType::Int);
    torch_operation("aten::index_select", "out", rows, std::int64_t{0}, place_of, of_result(result, edges_, columns));
  }

  static Tensor rows(Tensor t, std::int64_t first, std::int64_t count) {
    return torch::stable::narrow(t, 0, first, count);
  }
  static Tensor transposed(const Tensor& t) { return torch::stable::transpose(t, 0, 1); }
  static Tensor product(const Tensor& p, const Tensor& q) { return torch_operation("aten::mm", "", p, q)[0]; }
  static void multiply(const Tensor& p, const Tensor& q, const Tensor& out) {
    torch_operation("aten::mm", "out", p, q, out);
  }
  static void copy(const Tensor& from, Tensor to) { torch::stable::copy_(to, from); }
  // torch's stable interface has no addition.
  static void add(const Tensor& to, const Tensor& more) { copy(torch::stable::subtract(to, more, -1), to); }

  // add: to the gradients that are there.
  template <class F>
  void gradients_along(DeviceProblem problem, Launches& launches, bool add, F&& enqueue) {
    // With an output, no edges are a part too, of which it gets zeros.
    for (PlaceRange part; part.first < edges_ || part.first == 0; part.first += size_) {
      part.count = std::min(size_, edges_ - part.first);
      const auto of_part = [&](const Tensor& all) { return rows(all, part.first, part.count); };
      const Tensor w = rows(w_, 0, part.count);
      multiply(of_part(h_), a_, w);
      problem.in[kW] = {w.const_data_ptr(), nullptr, numel_, numel_};
      if (problem.dual && tw_) {
        const Tensor tw = rows(*tw_, 0, part.count);
        if (th_) multiply(of_part(*th_), a_, tw);
        if (ta_ && th_) RadialGradients::add(tw, product(of_part(h_), *ta_));
        if (ta_ && !th_) multiply(of_part(h_), *ta_, tw);
        problem.in[kW].tangent = tw.const_data_ptr();
      }
      if (gw_) problem.out[kW] = {gw_->mutable_data_ptr(), numel_};
      launches.gradients(problem, part, false);
      enqueue(launches.taken());
      if (gw_) add_products(part, h_, a_, add);
      if (problem.dual && gw_ && ((gh_ && ta_) || (ga_ && th_))) {
        launches.gradients(of_weights_alone(problem), part, false);
        enqueue(launches.taken());
        add_products(part, th_, ta_, true);
      }
    }
    launches.sums(problem, add);
    enqueue(launches.taken());
  }

  // The gradient of weights along g, which those of h and a have a part of that a tangent of the other makes.
  static DeviceProblem of_weights_alone(DeviceProblem problem) {
    problem.dual = false;
    for (Operand& in : problem.in) in.tangent = nullptr;
    for (const int slot : {kX, kY, kG}) problem.out[slot] = {};
    return problem;
  }

  // What the gradients of a part's weights contribute to those of a factor, by the other one.
  void add_products(const PlaceRange& part, const OptionalTensor& h, const OptionalTensor& a, bool add) {
    const Tensor gw = rows(*gw_, 0, part.count);
    if (gh_ && a) {
      const Tensor gh = rows(*gh_, part.first, part.count);
      if (add)
        RadialGradients::add(gh, product(gw, transposed(*a)));
      else
        multiply(gw, transposed(*a), gh);
    }
    if (ga_ && h) RadialGradients::add(*ga_, product(transposed(rows(*h, part.first, part.count)), gw));
  }
};

}  // namespace eqk::tensor_product_conv
