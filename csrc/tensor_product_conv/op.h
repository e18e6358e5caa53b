#pragma once
// Arguments of the ops, checked and turned into the Problem of a backend, which registers what it has.
#include "tensor_product/op.h"

namespace eqk::tensor_product_conv {

// What describes the graph: edge n leads from src[n] to dst[n]. by_dst, by_src: edges in the stable order of either.
struct Graph {
  const Tensor &src, &dst;
  std::int64_t num_dst;
  const OptionalTensor &by_dst, &by_src;
};

// A call of an op over the edges of a graph; Description: its Problem. A backend has Edges, which it makes of a graph,
// edges(op, graph, number of sources), its Problem and launch(problem, x), and RadialProblem and launch_radial. It may
// leave a member of either family to torch operations: covers(problem).
template <class Backend, class Description>
class GraphCall : public FamilyCall<Description> {
 protected:
  using Base = FamilyCall<Description>;
  using Base::first_;
  using Base::op_;
  using Base::problem_;

  GraphCall(const char* op, const Tensor& x, const std::string& plan, const Graph& graph)
      : Base(op, x, cached_plan(plan), "nodes") {
    if (graph.num_dst < 0) fail("eqk::", op, ": num_dst: expected at least 0, got ", graph.num_dst);
    check("src", graph.src, nullptr);
    check("dst", graph.dst, &graph.src);
    if (graph.by_dst) check("by_dst", *graph.by_dst, &graph.src);
    if (graph.by_src) check("by_src", *graph.by_src, &graph.src);
    edges_ = Backend::edges(op, graph, x.size(0));
    problem_.edges = &edges_;
  }

 private:
  typename Backend::Edges edges_;

  void check(const char* name, const Tensor& t, const Tensor* src) const {
    if (t.dim() != 1 || (src && t.size(0) != src->size(0)))
      fail("eqk::", op_, ": ", name, ": expected shape [", src ? std::to_string(src->size(0)) : "edges", "], got ",
           shape_string(t));
    if (t.scalar_type() != ScalarType::Int && t.scalar_type() != ScalarType::Long)
      fail("eqk::", op_, ": ", name, ": expected dtype int32 or int64, got ", t.scalar_type());
    check_device(op_, name, t, first_);
  }
};

template <class Backend>
class Call : public GraphCall<Backend, typename Backend::Problem> {
 public:
  Call(const char* op, const Tensor& x, const std::string& plan, const Graph& graph)
      : Call::GraphCall(op, x, plan, graph) {
    this->shapes_ = tensor_product::shapes_of(*this->plan_, x.size(0), graph.src.size(0), graph.num_dst);
  }

  bool covered() const { return Backend::covers(this->problem_); }
};

template <std::size_t results, class... Arguments>
std::array<Tensor, results> by_messages(const char* member, const Arguments&... arguments) {
  const std::string op = "tensor_product_conv";
  return by_torch<results>(op + member, op + "_by_messages" + member, arguments...);
}

template <class Backend>
Tensor forward(const Tensor& x, const Tensor& y, const OptionalTensor& w, const Tensor& src, const Tensor& dst,
               std::int64_t num_dst, StringArgument plan, const OptionalTensor& by_dst, const OptionalTensor& by_src) {
  const std::string text = plan;
  Call<Backend> call("tensor_product_conv", x, text, {src, dst, num_dst, by_dst, by_src});
  call.take({y, w});
  if (!call.covered()) return by_messages<1>("", x, y, w, src, dst, num_dst, text, by_dst, by_src)[0];
  return call.forward(&Backend::launch);
}

template <class Backend>
Tensor jvp(const Tensor& x, const Tensor& y, const OptionalTensor& w, const OptionalTensor& tx,
           const OptionalTensor& ty, const OptionalTensor& tw, const Tensor& src, const Tensor& dst,
           std::int64_t num_dst, StringArgument plan, const OptionalTensor& by_dst, const OptionalTensor& by_src) {
  const std::string text = plan;
  Call<Backend> call("tensor_product_conv_jvp", x, text, {src, dst, num_dst, by_dst, by_src});
  call.take({y, w}, {tx, ty, tw});
  if (!call.covered()) return by_messages<1>("_jvp", x, y, w, tx, ty, tw, src, dst, num_dst, text, by_dst, by_src)[0];
  return call.forward(&Backend::launch);
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& x, const Tensor& y, const OptionalTensor& w, const Tensor& g,
                                            const Tensor& src, const Tensor& dst, std::int64_t num_dst,
                                            StringArgument plan, const OptionalTensor& by_dst,
                                            const OptionalTensor& by_src, const std::vector<bool>& wanted) {
  const std::string text = plan;
  Call<Backend> call("tensor_product_conv_backward", x, text, {src, dst, num_dst, by_dst, by_src});
  call.take({y, w, g}, wanted);
  if (!call.covered())
    return std::tuple_cat(
        by_messages<3>("_backward", x, y, w, g, src, dst, num_dst, text, by_dst, by_src, Flags(flags<3>(wanted))));
  return call.backward(&Backend::launch, wanted);
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> double_backward(const Tensor& x, const Tensor& y, const OptionalTensor& w,
                                                           const Tensor& g, const OptionalTensor& tx,
                                                           const OptionalTensor& ty, const OptionalTensor& tw,
                                                           const OptionalTensor& tg, const Tensor& src,
                                                           const Tensor& dst, std::int64_t num_dst, StringArgument plan,
                                                           const OptionalTensor& by_dst, const OptionalTensor& by_src,
                                                           const std::vector<bool>& wanted) {
  const std::string text = plan;
  Call<Backend> call("tensor_product_conv_double_backward", x, text, {src, dst, num_dst, by_dst, by_src});
  call.take({y, w, g}, {tx, ty, tw, tg}, wanted);
  if (!call.covered())
    return std::tuple_cat(by_messages<4>("_double_backward", x, y, w, g, tx, ty, tw, tg, src, dst, num_dst, text,
                                         by_dst, by_src, Flags(flags<4>(wanted))));
  return call.double_backward(&Backend::launch, wanted);
}

template <class Backend>
void register_impls(torch::stable::detail::StableLibrary& m) {
  m.impl("tensor_product_conv", TORCH_BOX(&forward<Backend>));
  m.impl("tensor_product_conv_jvp", TORCH_BOX(&jvp<Backend>));
  m.impl("tensor_product_conv_backward", TORCH_BOX(&backward<Backend>));
  m.impl("tensor_product_conv_double_backward", TORCH_BOX(&double_backward<Backend>));
}

template <class Backend>
class RadialCall : public GraphCall<Backend, typename Backend::RadialProblem> {
 public:
  RadialCall(const char* op, const Tensor& x, const Tensor& a, const std::string& plan, const Graph& graph)
      : RadialCall::GraphCall(op, x, plan, graph) {
    if (this->plan_->weights != Weights::per_sample) fail("eqk::", op, ": plan: expected per_sample weights");
    for (const auto& ins : this->plan_->instructions)
      if (!ins.weighted) fail("eqk::", op, ": plan: expected a weight in each instruction");
    if (a.dim() != 2)
      fail("eqk::", op, ": a: expected 2 dimensions [hidden, ", this->plan_->weight_numel, "], got shape ",
           shape_string(a));
    const std::int64_t edges = graph.src.size(0);
    const auto of_plan = tensor_product::shapes_of(*this->plan_, x.size(0), edges, graph.num_dst);
    this->problem_.hidden = a.size(0);
    this->shapes_ = {of_plan[0],
                     of_plan[1],
                     {"h", edges, this->problem_.hidden},
                     {"a", this->problem_.hidden, this->plan_->weight_numel},
                     of_plan[3]};
  }

  bool covered() const { return Backend::covers(this->problem_); }
};

template <std::size_t results, class... Arguments>
std::array<Tensor, results> by_weights(const char* member, const Arguments&... arguments) {
  const std::string op = "tensor_product_conv_radial";
  return by_torch<results>(op + member, op + "_by_weights" + member, arguments...);
}

template <class Backend>
Tensor radial_forward(const Tensor& x, const Tensor& y, const Tensor& h, const Tensor& a, const Tensor& src,
                      const Tensor& dst, std::int64_t num_dst, StringArgument plan, const OptionalTensor& by_dst,
                      const OptionalTensor& by_src) {
  const std::string text = plan;
  RadialCall<Backend> call("tensor_product_conv_radial", x, a, text, {src, dst, num_dst, by_dst, by_src});
  call.take({y, h, a});
  if (!call.covered()) return by_weights<1>("", x, y, h, a, src, dst, num_dst, text, by_dst, by_src)[0];
  return call.forward(&Backend::launch_radial);
}

template <class Backend>
Tensor radial_jvp(const Tensor& x, const Tensor& y, const Tensor& h, const Tensor& a, const OptionalTensor& tx,
                  const OptionalTensor& ty, const OptionalTensor& th, const OptionalTensor& ta, const Tensor& src,
                  const Tensor& dst, std::int64_t num_dst, StringArgument plan, const OptionalTensor& by_dst,
                  const OptionalTensor& by_src) {
  RadialCall<Backend> call("tensor_product_conv_radial_jvp", x, a, plan, {src, dst, num_dst, by_dst, by_src});
  call.take({y, h, a}, {tx, ty, th, ta});
  return call.forward(&Backend::launch_radial);
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> radial_backward(const Tensor& x, const Tensor& y, const Tensor& h,
                                                           const Tensor& a, const Tensor& g, const Tensor& src,
                                                           const Tensor& dst, std::int64_t num_dst, StringArgument plan,
                                                           const OptionalTensor& by_dst, const OptionalTensor& by_src,
                                                           const std::vector<bool>& wanted) {
  const std::string text = plan;
  RadialCall<Backend> call("tensor_product_conv_radial_backward", x, a, text, {src, dst, num_dst, by_dst, by_src});
  call.take({y, h, a, g}, wanted);
  if (!call.covered())
    return std::tuple_cat(
        by_weights<4>("_backward", x, y, h, a, g, src, dst, num_dst, text, by_dst, by_src, Flags(flags<4>(wanted))));
  return call.backward(&Backend::launch_radial, wanted);
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> radial_double_backward(
    const Tensor& x, const Tensor& y, const Tensor& h, const Tensor& a, const Tensor& g, const OptionalTensor& tx,
    const OptionalTensor& ty, const OptionalTensor& th, const OptionalTensor& ta, const OptionalTensor& tg,
    const Tensor& src, const Tensor& dst, std::int64_t num_dst, StringArgument plan, const OptionalTensor& by_dst,
    const OptionalTensor& by_src, const std::vector<bool>& wanted) {
  const std::string text = plan;
  RadialCall<Backend> call("tensor_product_conv_radial_double_backward", x, a, text,
                           {src, dst, num_dst, by_dst, by_src});
  call.take({y, h, a, g}, {tx, ty, th, ta, tg}, wanted);
  if (!call.covered())
    return std::tuple_cat(by_weights<5>("_double_backward", x, y, h, a, g, tx, ty, th, ta, tg, src, dst, num_dst, text,
                                        by_dst, by_src, Flags(flags<5>(wanted))));
  return call.double_backward(&Backend::launch_radial, wanted);
}

template <class Backend>
void register_radial_forward(torch::stable::detail::StableLibrary& m) {
  m.impl("tensor_product_conv_radial", TORCH_BOX(&radial_forward<Backend>));
}

template <class Backend>
void register_radial_jvp(torch::stable::detail::StableLibrary& m) {
  m.impl("tensor_product_conv_radial_jvp", TORCH_BOX(&radial_jvp<Backend>));
}

template <class Backend>
void register_radial_gradients(torch::stable::detail::StableLibrary& m) {
  m.impl("tensor_product_conv_radial_backward", TORCH_BOX(&radial_backward<Backend>));
  m.impl("tensor_product_conv_radial_double_backward", TORCH_BOX(&radial_double_backward<Backend>));
}

}  // namespace eqk::tensor_product_conv
