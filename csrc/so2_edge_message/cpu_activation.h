#pragma once
// Gates of the rows of an edge, and functions of its scalars. Lanes are channels.
#include <algorithm>
#include <cstdint>

#include "core/lanes.h"
#include "s2_activation/cpu_functions.h"
#include "so2_edge_message/plan.h"

namespace eqk::so2_edge_message {
inline namespace EQK_ISA {

template <class T>
class Gates {
  static constexpr int W = EQK_VECTOR_BYTES / static_cast<int>(sizeof(T));
  using V = Vector<T, W>;
  using Function = s2_activation::Function;

  template <Function function, int K>
  static EQK_HD V evaluate(V x) {
    return s2_activation::derivative<function, K, T, W>(x);
  }
  static EQK_HD V sigmoid(V x) { return evaluate<Function::sigmoid, 0>(x); }

 public:
  explicit Gates(const Plan& plan) : layer_(plan.second()), channels_(plan.hidden) {}

  // y [rows, hidden] times the gates of degrees: of degree 0 the sigmoid of itself, of others that of s [lmax, hidden].
  void gate(const T* y, const T* s, T* to) const {
    for_degrees([&](int l, std::int64_t c, std::int64_t n) EQK_LAMBDA {
      const V gate = sigmoid(load_n<T, W>(l ? s + (l - 1) * channels_ + c : y + c, n));
      for_rows(l, [&](int row) EQK_LAMBDA {
        const std::int64_t at = row * channels_ + c;
        store_n<T, W>(to + at, load_n<T, W>(y + at, n) * gate, n);
      });
    });
  }

  // g: the gradient of the result; after, that of y.
  void gate_gradient(const T* y, const T* s, T* g, T* of_s) const {
    for_degrees([&](int l, std::int64_t c, std::int64_t n) EQK_LAMBDA {
      const V gate = sigmoid(load_n<T, W>(l ? s + (l - 1) * channels_ + c : y + c, n));
      V sum{};
      for_rows(l, [&](int row) EQK_LAMBDA {
        const std::int64_t at = row * channels_ + c;
        const V v = load_n<T, W>(g + at, n);
        sum += v * load_n<T, W>(y + at, n);
        store_n<T, W>(g + at, v * gate, n);
      });
      sum *= gate * (1 - gate);
      if (l)
        store_n<T, W>(of_s + (l - 1) * channels_ + c, sum, n);
      else
        store_n<T, W>(g + c, load_n<T, W>(g + c, n) + sum, n);
    });
  }

  // Degree 0 of the separable activation is SiLU of s [hidden].
  void silu(const T* s, T* to) const {
    for_channels([&](std::int64_t c, std::int64_t n)
                     EQK_LAMBDA { store_n<T, W>(to + c, evaluate<Function::silu, 0>(load_n<T, W>(s + c, n)), n); });
  }
  // After, g is zero there.
  void silu_gradient(const T* s, T* g, T* of_s) const {
    for_channels([&](std::int64_t c, std::int64_t n) EQK_LAMBDA {
      store_n<T, W>(of_s + c, load_n<T, W>(g + c, n) * evaluate<Function::silu, 1>(load_n<T, W>(s + c, n)), n);
      store_n<T, W>(g + c, V{}, n);
    });
  }

  // z [rows, hidden], times the sigmoid of the third of s [3, hidden], and for degree 0 silu of the first times the
  // second.
  void swiglu(const T* s, T* z) const {
    for_channels([&](std::int64_t c, std::int64_t n) EQK_LAMBDA {
      const V gate = sigmoid(load_n<T, W>(s + 2 * channels_ + c, n));
      const V scalar = evaluate<Function::silu, 0>(load_n<T, W>(s + c, n)) * load_n<T, W>(s + channels_ + c, n);
      for (int row = 0; row < layer_.rows(); ++row) {
        T* const at = z + row * channels_ + c;
        store_n<T, W>(at, load_n<T, W>(at, n) * gate + (row ? V{} : scalar), n);
      }
    });
  }
  // g: the gradient of the result; after, that of z.
  void swiglu_gradient(const T* s, const T* z, T* g, T* of_s) const {
    for_channels([&](std::int64_t c, std::int64_t n) EQK_LAMBDA {
      const V p = load_n<T, W>(s + c, n), t = load_n<T, W>(s + channels_ + c, n), scalar = load_n<T, W>(g + c, n);
      const V gate = sigmoid(load_n<T, W>(s + 2 * channels_ + c, n));
      V sum{};
      for (int row = 0; row < layer_.rows(); ++row) {
        const std::int64_t at = row * channels_ + c;
        const V v = load_n<T, W>(g + at, n);
        sum += v * load_n<T, W>(z + at, n);
        store_n<T, W>(g + at, v * gate, n);
      }
      store_n<T, W>(of_s + c, scalar * t * evaluate<Function::silu, 1>(p), n);
      store_n<T, W>(of_s + channels_ + c, scalar * evaluate<Function::silu, 0>(p), n);
      store_n<T, W>(of_s + 2 * channels_ + c, sum * gate * (1 - gate), n);
    });
  }

 private:
  Layer layer_;
  std::int64_t channels_;

  // f(first channel, how many) of vectors.
  template <class F>
  EQK_HD void for_channels(const F& f) const {
    for (std::int64_t c = 0; c < channels_; c += W) f(c, std::min<std::int64_t>(W, channels_ - c));
  }
  template <class F>
  EQK_HD void for_degrees(const F& f) const {
    for (int l = 0; l <= layer_.lmax; ++l) for_channels([&](std::int64_t c, std::int64_t n) EQK_LAMBDA { f(l, c, n); });
  }
  // Of degree l, those of m and of -m.
  template <class F>
  EQK_HD void for_rows(int l, const F& f) const {
    for (int m = 0; m <= std::min(l, layer_.mmax); ++m) {
      const int row = layer_.first_row(m) + l - m;
      f(row);
      if (m) f(row + layer_.degrees(m));
    }
  }
};

}  // namespace EQK_ISA
}  // namespace eqk::so2_edge_message
