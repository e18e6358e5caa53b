#pragma once
// How the derivative of an op is registered in C++: what python/eqk/register.py does for processes with Python. Unlike
// the kernels' libraries this needs all of torch's C++ interface, and so is compiled for one version of it.
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <iterator>
#include <memory>
#include <ranges>
#include <string>
#include <utility>
#include <vector>

namespace eqk::autograd {

using Tensors = std::vector<at::Tensor>;  // undefined: None
using Flags = std::vector<bool>;
using Values = std::vector<c10::IValue>;

inline c10::IValue value(const at::Tensor& t) { return t.defined() ? c10::IValue(t) : c10::IValue(); }

inline c10::IValue value(const Flags& flags) {
  c10::List<bool> list;
  for (const bool flag : flags) list.push_back(flag);
  return list;
}

template <class T, class... More>
std::vector<T> joined(std::vector<T> all, const More&... more) {
  (all.insert(all.end(), more.begin(), more.end()), ...);
  return all;
}

template <class T>
std::vector<T> part(const std::vector<T>& all, std::size_t begin, std::size_t end) {
  return {all.begin() + static_cast<std::ptrdiff_t>(begin), all.begin() + static_cast<std::ptrdiff_t>(end)};
}

inline bool any(const Flags& flags) { return std::ranges::find(flags, true) != flags.end(); }

inline bool any(const Tensors& tensors) {
  return std::ranges::any_of(tensors, [](const at::Tensor& t) { return t.defined(); });
}

// Those that a flag stands for, undefined the others.
inline Tensors only(Tensors tensors, const Flags& flags) {
  for (std::size_t n = 0; n < tensors.size(); ++n)
    if (!flags[n]) tensors[n] = at::Tensor();
  return tensors;
}

inline at::Tensor sum(const at::Tensor& a, const at::Tensor& b) { return !a.defined() ? b : b.defined() ? a + b : a; }

inline void add(Tensors& totals, const Tensors& terms) {
  for (std::size_t n = 0; n < totals.size(); ++n) totals[n] = sum(totals[n], terms[n]);
}

class Op {
 public:
  explicit Op(const std::string& name) : handle_(c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), "")) {}

  const c10::OperatorHandle& handle() const { return handle_; }

  Tensors operator()(const Tensors& operands, const Values& rest) const {
    torch::jit::Stack stack;
    stack.reserve(operands.size() + rest.size());
    for (const at::Tensor& t : operands) stack.push_back(value(t));
    stack.insert(stack.end(), rest.begin(), rest.end());
    handle_.callBoxed(stack);
    Tensors results;
    for (const c10::IValue& result : stack) results.push_back(result.toTensor());
    return results;
  }

 private:
  c10::OperatorHandle handle_;
};

// What a backward pass has: the operands (and what the op kept), the arguments behind them, the cotangents of the
// results, and which operands need a gradient in this pass.
struct Backward {
  Tensors v;
  Values rest;
  Tensors cotangents;
  Flags needed;
};

struct Rule {
  std::size_t operands;  // the arguments that have gradients: the first ones, all tensors
  std::function<Tensors(const Backward&)> gradients;
  // Results from this one on are kept for the backward pass, behind the operands, and have no gradients.
  std::size_t first_kept = SIZE_MAX;
  // Changes arguments behind the operands where somebody may ask for a gradient.
  std::function<void(Values&)> before = nullptr;
};

// Each lives as long as the process: graphs name rules by their place.
inline std::deque<Rule>& rules() {
  static std::deque<Rule> all;
  return all;
}

struct Call {
  const c10::OperatorHandle& op;
  c10::DispatchKeySet keys;
  Tensors operands;
  Values rest;
  std::size_t rule;
};

// The last of the stack, which is an interpreter's and has more on it.
inline c10::ArrayRef<c10::IValue> arguments_of(const c10::OperatorHandle& op, const torch::jit::Stack& stack) {
  return torch::jit::last(stack, op.schema().arguments().size());
}

inline void below(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack& stack) {
  const at::AutoDispatchBelowAutograd guard;
  op.redispatchBoxed(keys & c10::after_autograd_keyset, &stack);
}

inline Tensors those_there(const Tensors& tensors) {
  Tensors there;
  std::ranges::copy_if(tensors, std::back_inserter(there), [](const at::Tensor& t) { return t.defined(); });
  return there;
}

// The autograd function of every op, of the operands that are there. All are saved, wherever a gradient is needed.
struct Function : torch::autograd::Function<Function> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx, at::TensorList /*there*/,
                                                const Call& call) {
    const Rule& rule = rules()[call.rule];
    ctx->set_materialize_grads(false);
    torch::jit::Stack stack;
    for (const at::Tensor& t : call.operands) stack.push_back(value(t));
    stack.insert(stack.end(), call.rest.begin(), call.rest.end());
    below(call.op, call.keys, stack);
    Tensors results, kept, saved = call.operands;
    for (const c10::IValue& result : stack) results.push_back(result.toTensor());
    if (rule.first_kept < results.size()) kept = part(results, rule.first_kept, results.size());
    ctx->mark_non_differentiable(kept);
    saved = joined(std::move(saved), kept);

    // Indices of a graph are saved as tensors are, so that a change of them in place is an error here too.
    std::vector<std::int64_t> places;
    Values rest = call.rest;
    for (std::size_t n = 0; n < rest.size(); ++n) {
      if (!rest[n].isTensor()) continue;
      places.push_back(static_cast<std::int64_t>(n));
      saved.push_back(rest[n].toTensor());
      rest[n] = c10::IValue();
    }
    ctx->save_for_backward(saved);
    ctx->saved_data["places"] = places;
    ctx->saved_data["rest"] = c10::ivalue::Tuple::create(std::move(rest));
    ctx->saved_data["rule"] = static_cast<std::int64_t>(call.rule);
    return results;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& cotangents) {
    const Rule& rule = rules()[static_cast<std::size_t>(ctx->saved_data["rule"].toInt())];
    Backward pass{ctx->get_saved_variables(), ctx->saved_data["rest"].toTupleRef().elements().vec(), cotangents, {}};
    const std::vector<std::int64_t> places = ctx->saved_data["places"].toIntVector();
    const std::size_t count = pass.v.size() - places.size();
    for (std::size_t n = 0; n < places.size(); ++n) pass.rest[static_cast<std::size_t>(places[n])] = pass.v[count + n];
    pass.v.resize(count);
    std::size_t edges = 0;
    for (std::size_t n = 0; n < rule.operands; ++n)
      pass.needed.push_back(pass.v[n].defined() && ctx->needs_input_grad(edges++));
    Tensors gradients(rule.operands), of_those_there;
    if (any(cotangents) && any(pass.needed)) gradients = rule.gradients(pass);
    for (std::size_t n = 0; n < rule.operands; ++n)
      if (pass.v[n].defined()) of_those_there.push_back(std::move(gradients[n]));
    of_those_there.emplace_back();  // of the Call
    return of_those_there;
  }
};

class Kernel final : public c10::OperatorKernel {
 public:
  explicit Kernel(std::size_t rule) : rule_(rule) {}

  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) const {
    const Rule& rule = rules()[rule_];
    const auto arguments = arguments_of(op, *stack);
    Tensors operands;
    bool requires_grad = false, has_tangent = false;
    for (std::size_t n = 0; n < rule.operands; ++n) {
      const c10::IValue& argument = arguments[n];
      at::Tensor t = argument.isNone() ? at::Tensor() : argument.toTensor();
      requires_grad = requires_grad || (t.defined() && t.requires_grad());
      has_tangent = has_tangent || (t.defined() && t._fw_grad(0).defined());
      operands.push_back(std::move(t));
    }
    // Of tangents torch's own function refuses to be silent.
    if (!has_tangent && !(requires_grad && at::GradMode::is_enabled())) return below(op, keys, *stack);
    Call call{op, keys, std::move(operands), Values(arguments.begin() + rule.operands, arguments.end()), rule_};
    if (rule.before) rule.before(call.rest);
    torch::jit::drop(*stack, arguments.size());
    const Tensors there = those_there(call.operands);
    for (at::Tensor& result : Function::apply(at::TensorList(there), std::as_const(call)))
      stack->emplace_back(std::move(result));
  }

 private:
  std::size_t rule_;
};

inline void implement(torch::Library& library, const Op& op, Rule rule) {
  rules().push_back(std::move(rule));
  auto kernel = std::make_unique<Kernel>(rules().size() - 1);
  library.impl(op.handle().operator_name().name.c_str(), torch::CppFunction::makeFromBoxedFunctor(std::move(kernel)));
}

}  // namespace eqk::autograd
