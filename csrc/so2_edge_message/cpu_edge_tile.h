#pragma once
// All of a tile of edges, from the nodes to the sums of its nodes, in one thread: what lies between stays in its
// caches.
#include <algorithm>
#include <cstdint>

#include "core/cpu_sums.h"
#include "s2_activation/cpu_kernels.h"
#include "so2_edge_message/cpu_activation.h"
#include "so2_edge_message/cpu_linear.h"
#include "so2_edge_message/problem.h"

namespace eqk::so2_edge_message {
inline namespace EQK_ISA {

#define EQK_JOIN(a, b) a##b
#define EQK_KERNEL(isa) EQK_JOIN(kernel_of_, isa)

// The parameters as products take them.
template <class T>
struct Matrices {
  Linear<T> first, second;
  Matrix<T> radial, radial_transposed;

  Matrices(const Problem& p, Arena arena) : Matrices(p, arena, 0) {}
  static std::int64_t bytes(const Problem& p) {
    Arena arena{nullptr};
    Matrices(p, arena, 0);
    return static_cast<std::int64_t>(arena.used);
  }

  template <class F>
  void for_all(const F& f) const {
    first.for_matrices(f);
    second.for_matrices(f);
    f(radial);
    f(radial_transposed);
  }

 private:
  Matrices(const Problem& p, Arena& arena, int)
      : first(p.plan->first(), in(p, kConv1), !p.g || !p.y, p.g && p.wants_input(), arena),
        second(p.plan->second(), in(p, kConv2), p.makes_message(), p.g && p.wants_hidden(), arena) {
    const std::int64_t weights = p.groups * p.plan->channels_in;
    if (!p.in[kA]) return;
    radial = {nullptr, p.features, weights, in(p, kA), nullptr, 1, 0, weights, 1};
    radial.take_panels(arena);
    if (!p.wanted[kH]) return;
    radial_transposed = {nullptr, weights, p.features, in(p, kA), nullptr, 1, 0, 1, weights};
    radial_transposed.take_panels(arena);
  }
  static const T* in(const Problem& p, Slot slot) { return static_cast<const T*>(p.in[slot]); }
};

template <class T>
class EdgeTile {
 public:
  EdgeTile(const Problem& problem, const Matrices<T>& matrices, Steps& steps, Arena arena)
      : EdgeTile(problem, matrices, &steps, arena, 0) {}
  static std::int64_t bytes(const Problem& p) {
    Arena arena{nullptr};
    EdgeTile(p, Matrices<T>(p, Arena{nullptr}), nullptr, arena, 0);
    return static_cast<std::int64_t>(arena.used);
  }

  void run(const Tile& tile) {
    t_ = &tile;
    count_ = tile.count;
    y_ = p_.y ? static_cast<T*>(p_.y) + tile.begin * rows_ * first_.out : own_y_;
    s_ = p_.y ? static_cast<T*>(p_.s) + tile.begin * first_.extra : own_s_;
    message_ = p_.message ? static_cast<T*>(p_.message) + tile.begin * rows_ * plan_.channels_out : own_message_;
    run_wigner(nullptr, d_);
    make_weights();
    if (p_.g)
      run_backward();
    else
      run_forward();
  }

  static std::int64_t sums_numel(const Problem& p, const Matrices<T>& m) {
    return (p.wanted[kConv1] ? m.first.sums_numel() : 0) + (p.wanted[kConv2] ? m.second.sums_numel() : 0) +
           (p.wanted[kA] ? a_numel(p) : 0);
  }

  static void finish(const Problem& p, const Matrices<T>& m, const T* sums, const std::array<void*, kSlots>& out) {
    if (p.wanted[kConv1]) m.first.finish_gradient(sums, static_cast<T*>(out[kConv1])), sums += m.first.sums_numel();
    if (p.wanted[kConv2]) m.second.finish_gradient(sums, static_cast<T*>(out[kConv2])), sums += m.second.sums_numel();
    if (p.wanted[kA]) std::copy_n(sums, a_numel(p), static_cast<T*>(out[kA]));
  }

 private:
  const Problem& p_;
  const Plan& plan_;
  const Matrices<T>& m_;
  Steps* steps_;
  Layer first_;
  Gates<T> gates_;
  std::int64_t rows_, numbers_, weights_;
  const Tile* t_ = nullptr;
  std::int64_t count_ = 0;
  // Of the tile's edges: matrices and their gradients, weights, what goes into layers and comes out.
  T *d_, *of_d_, *more_of_d_, *own_weights_, *of_weights_, *z_, *own_y_, *own_s_, *active_, *own_message_;
  T *of_message_, *of_active_, *of_y_, *of_s_, *of_z_, *halves_[2], *of_halves_, *sum_, *panels_;
  T *y_ = nullptr, *s_ = nullptr, *message_ = nullptr;
  const T* r_ = nullptr;

  EdgeTile(const Problem& problem, const Matrices<T>& matrices, Steps* steps, Arena& arena, int)
      : p_(problem),
        plan_(*problem.plan),
        m_(matrices),
        steps_(steps),
        first_(plan_.first()),
        gates_(plan_),
        rows_(plan_.rows()),
        numbers_(wigner::numbers(plan_.lmax, plan_.mmax)),
        weights_(p_.groups * plan_.channels_in) {
    const auto take = [&](bool wanted, std::int64_t numbers) { return arena.take<T>(wanted ? p_.tile * numbers : 0); };
    const bool backward = p_.g, two = plan_.activation == Activation::swiglu_s2;
    const std::int64_t hidden = rows_ * plan_.hidden;
    d_ = take(true, numbers_);
    of_d_ = take(p_.wanted[kQ], numbers_);
    more_of_d_ = take(p_.wanted[kQ], numbers_);
    own_weights_ = take(p_.in[kA], weights_);
    of_weights_ = take(p_.in[kA] && (p_.wanted[kH] || p_.wanted[kA]), weights_);
    z_ = take(makes_z(), rows_ * plan_.channels_in);
    own_y_ = take(!p_.y, rows_ * first_.out);
    own_s_ = take(!p_.y, first_.extra);
    active_ = take(makes_active(), hidden);
    own_message_ = take(!p_.message && p_.makes_message(), rows_ * plan_.channels_out);
    of_message_ = take(backward, rows_ * plan_.channels_out);
    of_active_ = take(p_.wants_hidden(), hidden);
    const bool in_place = plan_.activation == Activation::gate;
    of_y_ = in_place ? of_active_ : take(p_.wants_hidden(), rows_ * first_.out);
    of_s_ = take(p_.wants_hidden(), first_.extra);
    of_z_ = take(p_.wants_input(), rows_ * plan_.channels_in);
    for (T*& half : halves_) half = take(two, hidden);
    of_halves_ = take(two && p_.wants_hidden(), hidden);
    sum_ = take(true, std::max(m_.first.widest(), m_.second.widest()));
    const std::int64_t widest = std::max((plan_.lmax + 1) * std::max(plan_.channels_in, plan_.hidden), weights_);
    panels_ = take(p_.wants_sums(), widest + Matrix<T>::kPanel);
  }

  bool makes_z() const { return !p_.y || !p_.g || p_.wanted[kConv1]; }
  bool makes_active() const { return !p_.g || p_.wanted[kConv2] || p_.makes_message(); }
  static std::int64_t a_numel(const Problem& p) { return p.features * p.groups * p.plan->channels_in; }
  const T* in(Slot slot, std::int64_t columns) const {
    return p_.in[slot] ? static_cast<const T*>(p_.in[slot]) + t_->begin * columns : nullptr;
  }
  T* out(Slot slot, std::int64_t columns) const { return static_cast<T*>(p_.out[slot]) + t_->begin * columns; }

  // The matrices of the tile's edges, or for g, the gradient of theirs, that of q.
  void run_wigner(const T* g, T* to) {
    wigner::Problem& w = steps_->wigner;
    w.rows = count_;
    w.q = in(kQ, 4);
    w.g = g;
    w.out = to;
    const wigner::Kernels& kernels = wigner::EQK_KERNEL(EQK_ISA)();
    kernels.run(w, 0, kernels.tasks(w));
  }

  void make_weights() {
    r_ = p_.in[kA] ? own_weights_ : in(kH, weights_);
    if (p_.in[kA]) m_.radial.times(count_, in(kH, p_.features), p_.features, own_weights_, weights_, false);
  }

  void rotate(rotate::Problem& step, rotate::Slot missing, const void* x, const T* weights, const T* z,
              const std::int64_t* nodes, void* to) {
    step.missing = missing;
    step.edges = count_;
    step.in = {x, missing == rotate::kD ? nullptr : d_, weights, z};
    step.index = nodes;
    step.ends = t_->ends;
    step.out = to;
    rotate::EQK_KERNEL(EQK_ISA)()(step, 0, missing == rotate::kX ? t_->ends->num_dst : count_);
  }
  // Of features of the sources, and of messages.
  void rotate_in(rotate::Slot missing, const T* weights, const T* z, void* to) {
    rotate(steps_->in, missing, missing == rotate::kX ? nullptr : p_.in[kX], weights, z, t_->sources, to);
  }
  void rotate_out(rotate::Slot missing, const T* weights, const T* z, void* to) {
    rotate(steps_->out, missing, p_.g, weights, z, t_->targets, to);
  }

  void run_forward() {
    rotate_in(rotate::kZ, r_, nullptr, z_);
    m_.first.apply(count_, z_, y_, s_, sum_);
    activate();
    m_.second.apply(count_, active_, message_, nullptr, sum_);
    rotate_out(rotate::kX, in(kW, p_.heads), message_, t_->rows);
  }

  void run_backward() {
    const T* const w = in(kW, p_.heads);
    T* sums = static_cast<T*>(t_->sums);
    if (makes_z()) rotate_in(rotate::kZ, r_, nullptr, z_);
    if (!p_.y) m_.first.apply(count_, z_, y_, s_, sum_);
    if (makes_active()) activate();
    if (p_.makes_message()) m_.second.apply(count_, active_, message_, nullptr, sum_);

    rotate_out(rotate::kZ, w, nullptr, of_message_);
    if (p_.wanted[kQ]) rotate_out(rotate::kD, w, message_, of_d_);
    if (p_.wanted[kW]) rotate_out(rotate::kWeights, nullptr, message_, out(kW, p_.heads));
    if (p_.wants_hidden()) {
      m_.second.apply_transposed(count_, of_message_, nullptr, of_active_, sum_);
      activation_gradient();
    }
    if (p_.wanted[kConv1]) {
      m_.first.add_gradient(count_, z_, of_y_, of_s_, sums, sum_, panels_);
      sums += m_.first.sums_numel();
    }
    if (p_.wanted[kConv2]) {
      m_.second.add_gradient(count_, active_, of_message_, nullptr, sums, sum_, panels_);
      sums += m_.second.sums_numel();
    }
    if (p_.wants_input()) {
      m_.first.apply_transposed(count_, of_y_, of_s_, of_z_, sum_);
      if (p_.wanted[kX]) rotate_in(rotate::kX, r_, of_z_, t_->rows);
      if (p_.wanted[kH] || p_.wanted[kA]) weights_gradient(sums);
      if (p_.wanted[kQ]) {
        rotate_in(rotate::kD, r_, of_z_, more_of_d_);
        add_row(more_of_d_, count_ * numbers_, of_d_);
      }
    }
    if (p_.wanted[kQ]) run_wigner(of_d_, out(kQ, 4));
  }

  void weights_gradient(T* sums) {
    T* const to = p_.in[kA] ? of_weights_ : out(kH, weights_);
    rotate_in(rotate::kWeights, nullptr, of_z_, to);
    if (!p_.in[kA]) return;
    if (p_.wanted[kH]) m_.radial_transposed.times(count_, to, weights_, out(kH, p_.features), p_.features, false);
    if (!p_.wanted[kA]) return;
    Linear<T>::pack_rows(count_, weights_, to, nullptr, weights_, panels_);
    Linear<T>::add_product(count_, in(kH, p_.features), p_.features, p_.features, panels_, weights_, sums);
  }

  // f(edge, its y or gradient of it, its s or gradient of it)
  template <class F>
  void for_edges(const F& f) const {
    for (std::int64_t e = 0; e < count_; ++e) f(e * rows_ * plan_.hidden, e * first_.extra);
  }

  void activate() {
    switch (plan_.activation) {
      case Activation::gate:
        return for_edges([&](auto y, auto s) { gates_.gate(y_ + y, s_ + s, active_ + y); });
      case Activation::s2:
        on_grid(steps_->value, y_, nullptr, active_);
        return for_edges([&](auto y, auto s) { gates_.silu(s_ + s, active_ + y); });
      case Activation::swiglu_s2:
        multiply_halves(active_);
        return for_edges([&](auto y, auto s) { gates_.swiglu(s_ + s, active_ + y); });
    }
  }

  // Of of_active to of_y and of_s.
  void activation_gradient() {
    switch (plan_.activation) {
      case Activation::gate:
        return for_edges([&](auto y, auto s) { gates_.gate_gradient(y_ + y, s_ + s, of_active_ + y, of_s_ + s); });
      case Activation::s2:
        for_edges([&](auto y, auto s) { gates_.silu_gradient(s_ + s, of_active_ + y, of_s_ + s); });
        return on_grid(steps_->gradient, y_, of_active_, of_y_);
      case Activation::swiglu_s2:
        multiply_halves(of_halves_);
        for_edges([&](auto y, auto s) { gates_.swiglu_gradient(s_ + s, of_halves_ + y, of_active_ + y, of_s_ + s); });
        for (int half = 0; half < 2; ++half) {
          on_grid(steps_->gradient, halves_[1 - half], of_active_, of_halves_);
          copy_half(half, [](T* y, T* own, std::int64_t n) { std::copy_n(own, n, y); }, of_y_, of_halves_);
        }
    }
  }

  // Of x, and of a factor where the step has one.
  void on_grid(s2_activation::Problem& step, const T* x, const T* factor, T* to) {
    step.rows = count_;
    step.x.data = x;
    if (factor) step.factors[0].data = factor;
    step.out = to;
    const s2_activation::Kernels& kernels = s2_activation::EQK_KERNEL(EQK_ISA)();
    kernels.run(step, 0, kernels.tasks(step));
  }

  // f(channels of y in a half, the same in an array of that half, how many) of all rows.
  template <class F>
  void copy_half(int half, const F& f, T* y, T* own) const {
    for (std::int64_t row = 0; row < count_ * rows_; ++row)
      f(y + (2 * row + half) * plan_.hidden, own + row * plan_.hidden, plan_.hidden);
  }

  // The product on the sphere of both halves of y.
  void multiply_halves(T* to) {
    for (int half = 0; half < 2; ++half)
      copy_half(half, [](const T* y, T* own, std::int64_t n) { std::copy_n(y, n, own); }, y_, halves_[half]);
    on_grid(steps_->value, halves_[0], halves_[1], to);
  }
};

}  // namespace EQK_ISA
}  // namespace eqk::so2_edge_message
