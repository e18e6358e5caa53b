#pragma once
// The formulas of python/eqk/register.py, which says why they hold, in C++ and reverse mode.
#include <optional>
#include <string>
#include <vector>

#include "autograd/rule.h"

namespace eqk::autograd {

// The flags at the end of the arguments, and the rest without them.
inline std::pair<Values, Flags> without_wanted(const Backward& b) {
  const c10::List<bool> list = b.rest.back().toBoolList();
  return {part(b.rest, 0, b.rest.size() - 1), Flags(list.begin(), list.end())};
}

// An op that is linear in each of n operands but, where one is `affine`, affine in that one; with its _jvp, _backward
// and _double_backward.
class Multilinear : public std::enable_shared_from_this<Multilinear> {
 public:
  Multilinear(const std::string& name, std::size_t n, std::optional<std::size_t> affine)
      : n_(n),
        affine_(affine),
        forward_(name),
        jvp_(name + "_jvp"),
        backward_(name + "_backward"),
        double_backward_(name + "_double_backward") {}

  void implement_all(torch::Library& library) const {
    const auto self = shared_from_this();
    implement(library, forward_,
              {n_, [self](const Backward& b) { return self->backward(b.v, b.cotangents[0], b.rest, b.needed); }});
    implement(library, jvp_, {2 * n_, [self](const Backward& b) { return self->of_jvp(b); }});
    implement(library, backward_, {n_ + 1, [self](const Backward& b) { return self->of_backward(b); }});
    implement(library, double_backward_,
              {2 * n_ + 2, [self](const Backward& b) { return self->of_double_backward(b); }});
  }

 private:
  // Results of the family, undefined what was not computed.

  Tensors backward(const Tensors& v, const at::Tensor& g, const Values& rest, Flags wanted) const {
    for (std::size_t s = 0; s < n_; ++s) wanted[s] = wanted[s] && v[s].defined();
    if (!g.defined() || !any(wanted)) return Tensors(n_);
    return only(backward_(joined(v, Tensors{g}), joined(rest, Values{value(wanted)})), wanted);
  }

  // `slots`: (v, g).
  Tensors double_backward(const Tensors& slots, const Tensors& t, const Values& rest, Flags wanted) const {
    for (std::size_t s = 0; s <= n_; ++s) wanted[s] = wanted[s] && slots[s].defined();
    if (!any(t) || !any(wanted)) return Tensors(n_ + 1);
    return only(double_backward_(joined(slots, t), joined(rest, Values{value(wanted)})), wanted);
  }

  // grad of D_c D_t Q at `slots`: each pair of slots once, one filled by c and one that varies along t.
  Tensors mixed(const Tensors& slots, const Tensors& c, const Tensors& t, const Values& rest,
                const Flags& wanted) const {
    Tensors total(n_ + 1);
    const auto term = [&](std::size_t filled, const at::Tensor& with, const Tensors& along) {
      Tensors at = slots;
      at[filled] = with;
      Flags want = wanted;
      want[filled] = false;  // what was filled is no argument of this term
      add(total, double_backward(at, along, rest, want));
    };
    for (std::size_t s = 0; s <= n_; ++s) {
      if (!c[s].defined() || s == affine_) continue;
      Tensors along = t;
      along[s] = at::Tensor();
      term(s, c[s], along);
    }
    if (affine_ && c[*affine_].defined()) {
      // Never filled, since its constant part would be taken for one of c: the two exchange roles.
      Tensors along(n_ + 1);
      along[*affine_] = c[*affine_];
      for (std::size_t r = 0; r <= n_; ++r)
        if (t[r].defined() && r != affine_) term(r, t[r], along);
    }
    return total;
  }

  Tensors of_jvp(const Backward& b) const {
    const Tensors v = part(b.v, 0, n_), t = part(b.v, n_, 2 * n_);
    const at::Tensor& g = b.cotangents[0];
    const Flags wanted = joined(part(b.needed, 0, n_), Flags{false});
    const Tensors of_v = double_backward(joined(v, Tensors{g}), joined(t, Tensors(1)), b.rest, wanted);
    return joined(part(of_v, 0, n_), backward(v, g, b.rest, part(b.needed, n_, 2 * n_)));
  }

  Tensors of_backward(const Backward& b) const {
    const auto [rest, wanted] = without_wanted(b);
    return double_backward(b.v, joined(only(b.cotangents, wanted), Tensors(1)), rest, b.needed);
  }

  Tensors of_double_backward(const Backward& b) const {
    const auto [rest, wanted] = without_wanted(b);
    const Tensors slots = part(b.v, 0, n_ + 1), t = part(b.v, n_ + 1, 2 * n_ + 2);
    const Tensors c = only(b.cotangents, wanted);
    return joined(mixed(slots, c, t, rest, part(b.needed, 0, n_ + 1)),
                  double_backward(slots, c, rest, part(b.needed, n_ + 1, 2 * n_ + 2)));
  }

  std::size_t n_;
  std::optional<std::size_t> affine_;
  Op forward_, jvp_, backward_, double_backward_;
};

// An op that is a polynomial in n operands, linear in the last, with its _derivative for up to `most` tangents.
class Polynomial : public std::enable_shared_from_this<Polynomial> {
 public:
  Polynomial(const std::string& name, std::size_t n, std::size_t most)
      : n_(n), most_(most), count_((n + 1) * (most + 1)), forward_(name), derivative_(name + "_derivative") {}

  void implement_all(torch::Library& library) const {
    const auto self = shared_from_this();
    implement(library, forward_,
              {n_, [self](const Backward& b) {
                 const std::size_t n = self->n_;
                 return part(self->gradients(joined(b.v, b.cotangents), {}, b.rest, joined(b.needed, Flags{false})), 0,
                             n);
               }});
    implement(library, derivative_, {count_, [self](const Backward& b) { return self->of_derivative(b); }});
  }

 private:
  // `slots`: (v, g), g undefined for zero.
  Tensors gradients(const Tensors& slots, const std::vector<Tensors>& tangents, const Values& rest,
                    Flags wanted) const {
    bool with_g = slots[n_].defined(), zero = tangents.size() > most_;
    for (const Tensors& t : tangents) {
      with_g = with_g || t[n_].defined();
      zero = zero || !any(t);
    }
    for (std::size_t s = 0; s < n_; ++s) wanted[s] = wanted[s] && slots[s].defined() && with_g;
    if (zero || !any(wanted)) return Tensors(n_ + 1);
    Tensors all = slots;
    for (const Tensors& t : tangents) all = joined(std::move(all), t);
    all.resize(count_);
    return only(derivative_(all, joined(rest, Values{value(wanted)})), wanted);
  }

  Tensors of_derivative(const Backward& b) const {
    const auto [rest, wanted] = without_wanted(b);
    const Tensors c = only(b.cotangents, wanted);
    const auto group = [&](const auto& all, std::size_t i) { return part(all, i * (n_ + 1), (i + 1) * (n_ + 1)); };
    std::vector<Tensors> tangents;
    for (std::size_t i = 1; i <= most_; ++i) tangents.push_back(group(b.v, i));
    while (!tangents.empty() && !any(tangents.back())) tangents.pop_back();
    Tensors results;
    for (std::size_t i = 0; i <= tangents.size(); ++i) {
      // To the slots c is one tangent more, to a tangent it stands in its place.
      std::vector<Tensors> along = tangents;
      if (i == 0)
        along.push_back(c);
      else
        along[i - 1] = c;
      results = joined(std::move(results), gradients(group(b.v, 0), along, rest, group(b.needed, i)));
    }
    results.resize(count_);
    return results;
  }

  std::size_t n_, most_, count_;
  Op forward_, derivative_;
};

}  // namespace eqk::autograd
