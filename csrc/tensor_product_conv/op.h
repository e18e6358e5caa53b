#pragma once
// Arguments of the four ops, checked and turned into a Problem. Every backend registers register_impls with its
// launcher.
#include "tensor_product/op.h"
#include "tensor_product_conv/edge_order.h"
#include "tensor_product_conv/problem.h"

namespace eqk::tensor_product_conv {

// What describes the graph: edge n leads from src[n] to dst[n]. by_dst, by_src: edges in the stable order of either.
struct Graph {
  const Tensor &src, &dst;
  std::int64_t num_dst;
  const OptionalTensor &by_dst, &by_src;
};

// A call of an op over the edges of a graph; Description: its Problem.
template <class Description>
class GraphCall : public tensor_product::FamilyCall<Description> {
 protected:
  using Base = tensor_product::FamilyCall<Description>;
  using Base::first_;
  using Base::op_;
  using Base::problem_;

  GraphCall(const char* op, const Tensor& x, const std::string& plan, const Graph& graph) : Base(op, x, plan, "nodes") {
    if (graph.num_dst < 0) fail("eqk::", op, ": num_dst: expected at least 0, got ", graph.num_dst);
    check("src", graph.src, nullptr);
    check("dst", graph.dst, &graph.src);
    if (graph.by_dst) check("by_dst", *graph.by_dst, &graph.src);
    if (graph.by_src) check("by_src", *graph.by_src, &graph.src);
    edges_ = make_edges(op, graph.src, graph.dst, x.size(0), graph.num_dst, graph.by_dst);
    problem_.edges = &edges_;
  }

 private:
  Edges edges_;

  void check(const char* name, const Tensor& t, const Tensor* src) const {
    if (t.dim() != 1 || (src && t.size(0) != src->size(0)))
      fail("eqk::", op_, ": ", name, ": expected shape [", src ? std::to_string(src->size(0)) : "edges", "], got ",
           shape_string(t));
    if (t.scalar_type() != ScalarType::Int && t.scalar_type() != ScalarType::Long)
      fail("eqk::", op_, ": ", name, ": expected dtype int32 or int64, got ", t.scalar_type());
    if (t.device() != first_.device())
      fail("eqk::", op_, ": ", name, ": expected device ", device_string(first_), " as x has, got ", device_string(t));
  }
};

class Call : public GraphCall<Problem> {
 public:
  Call(const char* op, const Tensor& x, const std::string& plan, const Graph& graph) : GraphCall(op, x, plan, graph) {
    shapes_ = shapes_of_plan(x.size(0), graph.src.size(0), graph.num_dst);
  }
};

using Launcher = Call::Launcher;

template <Launcher launch>
Tensor forward(const Tensor& x, const Tensor& y, const OptionalTensor& w, const Tensor& src, const Tensor& dst,
               std::int64_t num_dst, StringArgument plan, const OptionalTensor& by_dst, const OptionalTensor& by_src) {
  return Call("tensor_product_conv", x, plan, {src, dst, num_dst, by_dst, by_src}).forward(launch, {y, w});
}

template <Launcher launch>
Tensor jvp(const Tensor& x, const Tensor& y, const OptionalTensor& w, const OptionalTensor& tx,
           const OptionalTensor& ty, const OptionalTensor& tw, const Tensor& src, const Tensor& dst,
           std::int64_t num_dst, StringArgument plan, const OptionalTensor& by_dst, const OptionalTensor& by_src) {
  return Call("tensor_product_conv_jvp", x, plan, {src, dst, num_dst, by_dst, by_src})
      .jvp(launch, {y, w}, {tx, ty, tw});
}

template <Launcher launch>
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& x, const Tensor& y, const OptionalTensor& w, const Tensor& g,
                                            const Tensor& src, const Tensor& dst, std::int64_t num_dst,
                                            StringArgument plan, const OptionalTensor& by_dst,
                                            const OptionalTensor& by_src, const std::vector<bool>& wanted) {
  return Call("tensor_product_conv_backward", x, plan, {src, dst, num_dst, by_dst, by_src})
      .backward(launch, {y, w, g}, wanted);
}

template <Launcher launch>
std::tuple<Tensor, Tensor, Tensor, Tensor> double_backward(const Tensor& x, const Tensor& y, const OptionalTensor& w,
                                                           const Tensor& g, const OptionalTensor& tx,
                                                           const OptionalTensor& ty, const OptionalTensor& tw,
                                                           const OptionalTensor& tg, const Tensor& src,
                                                           const Tensor& dst, std::int64_t num_dst, StringArgument plan,
                                                           const OptionalTensor& by_dst, const OptionalTensor& by_src,
                                                           const std::vector<bool>& wanted) {
  return Call("tensor_product_conv_double_backward", x, plan, {src, dst, num_dst, by_dst, by_src})
      .double_backward(launch, {y, w, g}, {tx, ty, tw, tg}, wanted);
}

template <Launcher launch>
void register_impls(torch::stable::detail::StableLibrary& m) {
  m.impl("tensor_product_conv", TORCH_BOX(&forward<launch>));
  m.impl("tensor_product_conv_jvp", TORCH_BOX(&jvp<launch>));
  m.impl("tensor_product_conv_backward", TORCH_BOX(&backward<launch>));
  m.impl("tensor_product_conv_double_backward", TORCH_BOX(&double_backward<launch>));
}

class RadialCall : public GraphCall<RadialProblem> {
 public:
  RadialCall(const char* op, const Tensor& x, const Tensor& a, const std::string& plan, const Graph& graph)
      : GraphCall(op, x, plan, graph) {
    if (plan_->weights != Weights::per_sample) fail("eqk::", op, ": plan: expected per_sample weights");
    for (const auto& ins : plan_->instructions)
      if (!ins.weighted) fail("eqk::", op, ": plan: expected a weight in each instruction");
    if (a.dim() != 2)
      fail("eqk::", op, ": a: expected 2 dimensions [hidden, ", plan_->weight_numel, "], got shape ", shape_string(a));
    const std::int64_t edges = graph.src.size(0);
    const auto of_plan = shapes_of_plan(x.size(0), edges, graph.num_dst);
    problem_.hidden = a.size(0);
    shapes_ = {
        of_plan[0], of_plan[1], {"h", edges, problem_.hidden}, {"a", problem_.hidden, plan_->weight_numel}, of_plan[3]};
  }
};

using RadialLauncher = RadialCall::Launcher;

template <RadialLauncher launch>
Tensor radial_forward(const Tensor& x, const Tensor& y, const Tensor& h, const Tensor& a, const Tensor& src,
                      const Tensor& dst, std::int64_t num_dst, StringArgument plan, const OptionalTensor& by_dst,
                      const OptionalTensor& by_src) {
  return RadialCall("tensor_product_conv_radial", x, a, plan, {src, dst, num_dst, by_dst, by_src})
      .forward(launch, {y, h, a});
}

template <RadialLauncher launch>
Tensor radial_jvp(const Tensor& x, const Tensor& y, const Tensor& h, const Tensor& a, const OptionalTensor& tx,
                  const OptionalTensor& ty, const OptionalTensor& th, const OptionalTensor& ta, const Tensor& src,
                  const Tensor& dst, std::int64_t num_dst, StringArgument plan, const OptionalTensor& by_dst,
                  const OptionalTensor& by_src) {
  return RadialCall("tensor_product_conv_radial_jvp", x, a, plan, {src, dst, num_dst, by_dst, by_src})
      .jvp(launch, {y, h, a}, {tx, ty, th, ta});
}

template <RadialLauncher launch>
std::tuple<Tensor, Tensor, Tensor, Tensor> radial_backward(const Tensor& x, const Tensor& y, const Tensor& h,
                                                           const Tensor& a, const Tensor& g, const Tensor& src,
                                                           const Tensor& dst, std::int64_t num_dst, StringArgument plan,
                                                           const OptionalTensor& by_dst, const OptionalTensor& by_src,
                                                           const std::vector<bool>& wanted) {
  return RadialCall("tensor_product_conv_radial_backward", x, a, plan, {src, dst, num_dst, by_dst, by_src})
      .backward(launch, {y, h, a, g}, wanted);
}

template <RadialLauncher launch>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> radial_double_backward(
    const Tensor& x, const Tensor& y, const Tensor& h, const Tensor& a, const Tensor& g, const OptionalTensor& tx,
    const OptionalTensor& ty, const OptionalTensor& th, const OptionalTensor& ta, const OptionalTensor& tg,
    const Tensor& src, const Tensor& dst, std::int64_t num_dst, StringArgument plan, const OptionalTensor& by_dst,
    const OptionalTensor& by_src, const std::vector<bool>& wanted) {
  return RadialCall("tensor_product_conv_radial_double_backward", x, a, plan, {src, dst, num_dst, by_dst, by_src})
      .double_backward(launch, {y, h, a, g}, {tx, ty, th, ta, tg}, wanted);
}

template <RadialLauncher launch>
void register_radial_impls(torch::stable::detail::StableLibrary& m) {
  m.impl("tensor_product_conv_radial", TORCH_BOX(&radial_forward<launch>));
  m.impl("tensor_product_conv_radial_jvp", TORCH_BOX(&radial_jvp<launch>));
  m.impl("tensor_product_conv_radial_backward", TORCH_BOX(&radial_backward<launch>));
  m.impl("tensor_product_conv_radial_double_backward", TORCH_BOX(&radial_double_backward<launch>));
}

}  // namespace eqk::tensor_product_conv
