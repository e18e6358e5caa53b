// Derivatives of eqk's ops for processes without Python, such as LAMMPS with a TorchScript model. The formulas are
// those of python/eqk: register.py for families, and the file of each other op; reverse mode, to any order but where
// said.
#include <ATen/ops/cat.h>
#include <ATen/ops/linalg_cross.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <c10/core/ScalarType.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/headeronly/version.h>

#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <string>

#include "autograd/families.h"
#include "autograd/rule.h"
#include "s2_activation/plan.h"
#include "so2_edge_message/plan.h"

namespace {

using namespace eqk::autograd;

std::string number(double x) {
  std::array<char, 32> text{};
  return {text.data(), std::to_chars(text.data(), text.data() + text.size(), x).ptr};
}

// One path of a plan without weights.
struct Path {
  int in1, in2, out;
  double coefficient;
};

std::string plan_text(const std::string& in1, const std::string& in2, const std::string& out, const char* mode,
                      const std::vector<Path>& paths) {
  std::string text;
  for (const Path& p : paths)
    text += std::string(text.empty() ? "" : "; ") + std::to_string(p.in1) + " " + std::to_string(p.in2) + " " +
            std::to_string(p.out) + " " + mode + " - " + number(p.coefficient);
  return in1 + " * " + in2 + " -> " + out + " [mul_ir,mul_ir,mul_ir] none {" + text + "}";
}

at::Tensor tensor_product(const at::Tensor& x, const at::Tensor& y, const std::string& plan) {
  static const Op op("eqk::tensor_product");
  return op({x, y, {}}, {plan})[0];
}

// rotate: the gradient to an operand is the op without that one, with the cotangent where something was missing.

Tensors of_rotate(const Backward& b) {
  static const Op rotate("eqk::rotate");
  Tensors slots = b.v, results(4);
  slots[static_cast<std::size_t>(b.rest[7].toInt())] = b.cotangents[0];
  for (std::size_t s = 0; s < 4; ++s) {
    if (!b.needed[s]) continue;
    Tensors others = slots;
    others[s] = at::Tensor();
    Values rest = b.rest;
    rest[1] = s == 0 ? slots[0].size(0) : 0;  // num_nodes
    rest[2] = s == 2 ? slots[2].size(1) : 0;  // groups
    rest[3] = s == 2 ? slots[2].size(2) : 0;  // columns
    rest[7] = static_cast<std::int64_t>(s);
    results[s] = rotate(others, rest)[0];
  }
  return results;
}

// s2_activation: P[f^(k)(S x) (T_1 v_1) ... (T_n v_n)], closed in this form.

constexpr std::size_t kMaxFactors = 4, kMaxDerivative = 4;  // csrc/s2_activation/problem.h

at::Tensor s2_product(at::Tensor x, Tensors factors, const std::string& text, std::size_t derivative, std::string kinds,
                      char result) {
  static const Op op("eqk::s2_activation_product");
  using eqk::s2_activation::Function;
  const auto plan = eqk::s2_activation::cached_plan(text);
  const auto function = static_cast<std::size_t>(plan->function);
  const bool polynomial = plan->function <= Function::quartic;  // the first of them, by degree
  const std::size_t power = polynomial ? function + 1 : SIZE_MAX;
  if (const auto n = kinds.find('x'); derivative == 1 && power == 1 && n != std::string::npos) {
    // A product of signals without x: one of them in its place.
    x = factors[n];
    factors.erase(factors.begin() + static_cast<std::ptrdiff_t>(n));
    kinds.erase(n, 1);
    derivative = 0;
  }
  if (derivative > kMaxDerivative || factors.size() > kMaxFactors) {
    if (derivative > power) return x.new_zeros({x.size(0), plan->dim[result == 'x' ? 0 : 1]});
    TORCH_CHECK(false, "eqk::s2_activation: x: expected derivatives of the function up to order ", kMaxDerivative,
                ", times up to ", kMaxFactors, " signals and cotangents, asked for order ", derivative, " times ",
                factors.size());
  }
  factors.resize(kMaxFactors);
  return op(joined(Tensors{x}, factors), {text, std::to_string(derivative) + kinds + ">" + result})[0];
}

Tensors of_s2_product(const Backward& b) {
  const std::string& plan = b.rest[0].toStringRef();
  const std::string& text = b.rest[1].toStringRef();
  const auto derivative = static_cast<std::size_t>(text[0] - '0');
  const std::string kinds = text.substr(1, text.find('>') - 1);
  const char result = text.back();
  const Tensors factors = part(b.v, 1, 1 + kinds.size());
  Tensors results(1 + kMaxFactors);
  if (b.needed[0])
    results[0] = s2_product(b.v[0], joined(factors, b.cotangents), plan, derivative + 1, kinds + result, 'x');
  for (std::size_t n = 0; n < kinds.size(); ++n) {
    if (!b.needed[n + 1]) continue;
    Tensors others = factors;
    others[n] = b.cotangents[0];
    std::string of_others = kinds;
    of_others[n] = result;
    results[n + 1] = s2_product(b.v[0], others, plan, derivative, of_others, kinds[n]);
  }
  return results;
}

// spherical_harmonics: d Y_l[i] / d x[a] = c_l sum_j C[j, a, i] Y_(l-1)[j], by tensor products.

struct Harmonics {
  std::string lower;              // plan of the degrees l - 1, of those l that are not zero
  std::string gradient, adjoint;  // plans of tensor products
};

Harmonics harmonics(const std::string& text) {
  const auto space = text.find(' ');
  const std::string name = text.substr(space + 1);
  std::vector<int> degrees;
  for (std::size_t at = 0; text[0] != '-' && at < space; at = text.find_first_of(", ", at) + 1)
    degrees.push_back(std::stoi(text.substr(at)));
  const auto irreps = [](const std::vector<int>& ls) {
    std::string all;
    for (const int l : ls) all += (all.empty() ? "1x" : "+1x") + std::to_string(l) + (l % 2 ? "o" : "e");
    return all.empty() ? std::string("-") : all;
  };
  Harmonics made;
  std::vector<int> low;
  std::vector<Path> up, down;
  for (std::size_t i = 0; i < degrees.size(); ++i) {
    const int l = degrees[i];
    if (l == 0) continue;
    const double c = (2 * l + 1) * std::sqrt(l) * (name == "norm" ? std::sqrt((2.0 * l - 1) / (2 * l + 1)) : 1);
    const int here = static_cast<int>(i), there = static_cast<int>(low.size());
    up.push_back({there, 0, here, c});
    down.push_back({here, 0, there, c});
    made.lower += (low.empty() ? "" : ",") + std::to_string(l - 1);
    low.push_back(l - 1);
  }
  made.lower = (low.empty() ? "-" : made.lower) + " " + name;
  made.gradient = plan_text(irreps(low), "1x1o", irreps(degrees), "uuu", up);
  made.adjoint = plan_text(irreps(degrees), "1x1o", irreps(low), "uuu", down);
  return made;
}

at::Tensor harmonics_backward(const at::Tensor& x, const at::Tensor& g, const std::string& plan) {
  static const Op op("eqk::spherical_harmonics_backward");
  return op({x, g}, {plan})[0];
}

Tensors of_harmonics(const Backward& b) {
  return {harmonics_backward(b.v[0], b.cotangents[0], b.rest[0].toStringRef())};
}

Tensors of_harmonics_backward(const Backward& b) {
  static const Op forward("eqk::spherical_harmonics");
  const at::Tensor &x = b.v[0], &g = b.v[1], &c = b.cotangents[0];
  const Harmonics plan = harmonics(b.rest[0].toStringRef());
  Tensors results(2);
  if (b.needed[0]) results[0] = harmonics_backward(x, tensor_product(g, c, plan.adjoint), plan.lower);
  if (b.needed[1]) results[1] = tensor_product(forward({x}, {plan.lower})[0], c, plan.gradient);
  return results;
}

// wigner: dD = sum_k D L_k omega_k with omega = 2 Im(conj(q) dq) / |q|^2, a tensor product of D and omega.

std::string generators(std::int64_t lmax, std::int64_t mmax) {
  std::string irreps;
  std::vector<Path> paths;
  for (int l = 0; l <= lmax; ++l) {
    if (l) irreps += '+';
    irreps += std::to_string(2 * std::min<std::int64_t>(l, mmax) + 1) + "x" + std::to_string(l) + "e";
    if (l) paths.push_back({l, 0, l, std::sqrt(l * (l + 1.0) * (2 * l + 1))});
  }
  return plan_text(irreps, "1x1e", irreps, "uvu", paths);
}

at::Tensor wide(const at::Tensor& t) { return t.to(c10::promoteTypes(t.scalar_type(), at::kFloat)); }

struct Scaled {
  at::Tensor q, scale, factor;  // q / s, s [rows, 1] and 2 / (s |q / s|^2), so that no square overflows
};

Scaled scaled(const at::Tensor& q) {
  const at::Tensor all = wide(q);
  const at::Tensor scale = at::linalg_vector_norm(all.detach(), std::numeric_limits<double>::infinity(),
                                                  at::IntArrayRef{1}, /*keepdim=*/true);
  const at::Tensor unit = all / scale;
  return {unit, scale, 2 / (scale * (unit * unit).sum(1, true))};
}

at::Tensor scalar(const at::Tensor& q) { return q.narrow(1, 0, 1); }
at::Tensor vector(const at::Tensor& q) { return q.narrow(1, 1, 3); }
at::Tensor cross_product(const at::Tensor& a, const at::Tensor& b) { return at::linalg_cross(a, b, 1); }

at::Tensor omega_of(const at::Tensor& q, const at::Tensor& t) {
  const Scaled s = scaled(q);
  const at::Tensor along = wide(t);
  return s.factor *
         (scalar(s.q) * vector(along) - scalar(along) * vector(s.q) - cross_product(vector(s.q), vector(along)));
}

// The gradient of <torque, Im(conj(q) t)> with respect to t.
at::Tensor of_turn(const at::Tensor& q, const at::Tensor& torque) {
  return at::cat({-(vector(q) * torque).sum(1, true), scalar(q) * torque + cross_product(vector(q), torque)}, 1);
}

at::Tensor wigner(const at::Tensor& q, const Values& degrees) {
  static const Op op("eqk::wigner");
  return op({q}, degrees)[0];
}

at::Tensor wigner_backward(const at::Tensor& q, const at::Tensor& g, const Values& degrees) {
  static const Op op("eqk::wigner_backward");
  return op({q, g}, degrees)[0];
}

Tensors of_wigner(const Backward& b) { return {wigner_backward(b.v[0], b.cotangents[0], b.rest)}; }

Tensors of_wigner_backward(const Backward& b) {
  static const Op product_backward("eqk::tensor_product_backward");
  const at::Tensor &q = b.v[0], &g = b.v[1], &c = b.cotangents[0];
  const std::string plan = generators(b.rest[0].toInt(), b.rest[1].toInt());
  const at::Tensor omega = omega_of(q, c), d = wigner(q, b.rest);
  Tensors results(2);
  if (b.needed[0]) {
    const Tensors made = product_backward({d, omega.to(q.scalar_type()), {}, g}, {plan, value({true, true, false})});
    const at::Tensor torque = wide(made[1]);
    const Scaled s = scaled(q);
    const at::Tensor work = (torque * omega).sum(1, true);
    const at::Tensor of_omega = -s.factor * (of_turn(wide(c) / s.scale, torque) + work * s.q);
    results[0] = wigner_backward(q, made[0], b.rest) + of_omega.to(q.scalar_type());
  }
  if (b.needed[1]) results[1] = tensor_product(d, omega.to(q.scalar_type()), plan);
  return results;
}

// so2_edge_message: its second derivatives are made in Python alone.

Tensors of_message(const Backward& b) {
  static const Op backward("eqk::so2_edge_message_backward");
  const auto plan = eqk::so2_edge_message::cached_plan(b.rest[1].toStringRef());
  Tensors kept = part(b.v, 7, 10);
  if (!b.rest[2].toBool()) kept.assign(3, {});
  if (!plan->keeps_message) kept[2] = at::Tensor();
  return only(
      backward(joined(part(b.v, 0, 7), Tensors{b.cotangents[0]}, kept), {b.rest[0], b.rest[1], value(b.needed)}),
      b.needed);
}

void keep(Values& rest) { rest[2] = !eqk::so2_edge_message::cached_plan(rest[1].toStringRef())->recomputes; }

// one_hot_index: what it would be differentiated by is refused, since its result would be taken for a constant.
class OneHotIndex final : public c10::OperatorKernel {
 public:
  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) const {
    const at::Tensor rows = arguments_of(op, *stack).front().toTensor();
    TORCH_CHECK(!rows.requires_grad() && !rows._fw_grad(0).defined(),
                "eqk::one_hot_index: rows: expected a tensor of which nobody asks for derivatives");
    below(op, keys, *stack);
  }
};

// "2.13" of TORCH_ABI_VERSION, whose first bytes are these numbers.
std::string release(std::uint64_t version) {
  return std::to_string(version >> 56) + "." + std::to_string(version >> 48 & 0xff);
}

}  // namespace

TORCH_LIBRARY_IMPL(eqk, Autograd, library) {
  const std::string expected = release(TORCH_ABI_VERSION), found = release(aoti_torch_abi_version());
  TORCH_CHECK(expected == found, "libeqk_autograd: expected torch ", expected, ", for which it was compiled, found ",
              found);
  const auto has_kernel = [](const Op& op) { return op.handle().hasKernelForDispatchKey(c10::DispatchKey::Autograd); };
  // Python's eqk is there, which has forward mode and vmap too.
  if (has_kernel(Op("eqk::tensor_product"))) return;

  std::make_shared<Multilinear>("eqk::tensor_product", 3, 2)->implement_all(library);
  std::make_shared<Multilinear>("eqk::tensor_product_conv", 3, 2)->implement_all(library);
  std::make_shared<Multilinear>("eqk::tensor_product_conv_radial", 4, std::nullopt)->implement_all(library);
  std::make_shared<Multilinear>("eqk::gaunt_product", 5, std::nullopt)->implement_all(library);
  std::make_shared<Polynomial>("eqk::symmetric_contraction", 2, 5)->implement_all(library);
  implement(library, Op("eqk::rotate"), {4, of_rotate});
  implement(library, Op("eqk::s2_activation"),
            {1, [](const Backward& b) {
               return Tensors{s2_product(b.v[0], b.cotangents, b.rest[0].toStringRef(), 1, "z", 'x')};
             }});
  implement(library, Op("eqk::s2_activation_product"), {1 + kMaxFactors, of_s2_product});
  implement(library, Op("eqk::spherical_harmonics"), {1, of_harmonics});
  implement(library, Op("eqk::spherical_harmonics_backward"), {2, of_harmonics_backward});
  implement(library, Op("eqk::wigner"), {1, of_wigner});
  implement(library, Op("eqk::wigner_backward"), {2, of_wigner_backward});
  implement(library, Op("eqk::so2_edge_message"), {7, of_message, 1, keep});
  library.impl("one_hot_index", torch::CppFunction::makeFromBoxedFunctor(std::make_unique<OneHotIndex>()));

  // The others raise by name where somebody asks for a gradient.
  for (const c10::OperatorName& name : c10::Dispatcher::singleton().getAllOpNames())
    if (name.name.starts_with("eqk::") && !has_kernel(Op(name.name)))
      library.impl(name.name.c_str(), torch::autograd::autogradNotImplementedFallback());
}
