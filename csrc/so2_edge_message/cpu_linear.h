#pragma once
// SO(2) linear layers on the rows of a tile. For each order from 1, with P and Q the rows of m and of -m, three
// products: with K = (P + Q) A, P' = K - Q (A + B) and Q' = K - P (A - B); of the transpose, with A^T and -B^T.
// python/eqk/so2_conv.py has the derivation.
#include <algorithm>
#include <cstdint>

#include "core/arena.h"
#include "core/cpu_panel_product.h"
#include "core/cpu_sums.h"
#include "so2_edge_message/plan.h"

namespace eqk::so2_edge_message {
inline namespace EQK_ISA {

// The right factor of a product, [depth, columns], packed from of_a a + of_b b of two matrices with the same strides.
template <class T>
struct Matrix {
  static constexpr std::int64_t kPanel = kPanelColumns<T>;
  T* panels = nullptr;
  std::int64_t depth = 0, columns = 0;
  const T *a = nullptr, *b = nullptr;
  T of_a = 0, of_b = 0;
  std::int64_t row = 0, column = 0;  // strides
  std::byte* split = nullptr;        // as products want it, where they do

  std::int64_t count() const { return (columns + kPanel - 1) / kPanel; }
  void take_panels(Arena& arena) {
    panels = arena.take<T>(count() * kPanel * depth);
    split = arena.take<std::byte>(panel_split<T>().bytes(depth, columns));
  }

  void pack(std::int64_t panel) const {
    T* const to = panels + panel * depth * kPanel;
    const std::int64_t first = panel * kPanel, width = std::min(kPanel, columns - first);
    if (width < kPanel) std::fill_n(to, depth * kPanel, T{});
    // The inner loop along what is adjacent in memory.
    if (column == 1) {
      for (std::int64_t d = 0; d < depth; ++d)
        for (std::int64_t c = 0; c < width; ++c) to[d * kPanel + c] = element(d * row + first + c);
    } else {
      for (std::int64_t c = 0; c < width; ++c)
        for (std::int64_t d = 0; d < depth; ++d) to[d * kPanel + c] = element(d * row + (first + c) * column);
    }
    if (split) panel_split<T>().split(to, kPanel, depth, first, width, split);
  }

  // c (+)= x times this; stored once more so far from c, if not 0.
  void times(std::int64_t rows, const T* x, std::int64_t x_row, T* c, std::int64_t c_row, bool add,
             std::int64_t copy = 0) const {
    multiply_panels<T>({rows, depth, columns, x, x_row, 1, panels, depth * kPanel, kPanel, c, c_row, add, copy, split});
  }

 private:
  T element(std::int64_t at) const { return b ? of_a * a[at] + of_b * b[at] : of_a * a[at]; }
};

template <class T>
class Linear {
 public:
  // Takes the memory of matrices of the products that are wanted from the arena.
  Linear(const Layer& layer, const T* parameters, bool plain, bool transposed, Arena& arena) : s_(layer) {
    if (plain) make<false>(parameters, plain_, arena);
    if (transposed) make<true>(parameters, transposed_, arena);
    bias_ = parameters + s_.bias();
  }

  template <class F>
  void for_matrices(const F& f) const {
    for (const auto& matrices : {plain_, transposed_})
      for (int n = 0; n < 2 + 3 * s_.mmax; ++n) f(matrices[n]);
  }

  // Of numbers of a row of x or of y, the most that an order from 1 has.
  std::int64_t widest() const { return s_.mmax ? s_.degrees(1) * std::max(s_.in, s_.out) : 0; }

  // [count, rows, in] -> [count, rows, out], [count, extra]. sum: [count, widest].
  void apply(std::int64_t count, const T* x, T* y, T* extra, T* sum) const {
    const std::int64_t x_row = s_.rows() * s_.in, y_row = s_.rows() * s_.out, first = s_.degrees(0) * s_.out;
    for (std::int64_t e = 0; e < count; ++e) {
      std::copy_n(bias_, s_.extra, extra + e * s_.extra);
      std::copy_n(bias_ + s_.extra, first, y + e * y_row);
    }
    plain_[0].times(count, x, x_row, extra, s_.extra, true);
    plain_[1].times(count, x, x_row, y, y_row, true);
    for (int m = 1; m <= s_.mmax; ++m) three_products(plain_, m, count, x, s_.in, y, s_.out, sum);
  }

  // The gradient of x from those of both results.
  void apply_transposed(std::int64_t count, const T* g, const T* g_extra, T* x, T* sum) const {
    const std::int64_t x_row = s_.rows() * s_.in, g_row = s_.rows() * s_.out;
    if (s_.extra) transposed_[0].times(count, g_extra, s_.extra, x, x_row, false);
    transposed_[1].times(count, g, g_row, x, x_row, s_.extra > 0);
    for (int m = 1; m <= s_.mmax; ++m) three_products(transposed_, m, count, g, s_.out, x, s_.in, sum);
  }

  // The gradients of the parameters are sums of: those of order 0 as they are; of each order from 1 three matrices, of
  // which the third is to be added to both others.
  std::int64_t sums_numel() const {
    std::int64_t numel = s_.order(1);
    for (int m = 1; m <= s_.mmax; ++m) numel += 3 * s_.half(m);
    return numel;
  }

  // sum: [count, widest]; panels: [count, columns of the widest of x, up to a whole panel].
  void add_gradient(std::int64_t count, const T* x, const T* g, const T* g_extra, T* to, T* sum, T* panels) const {
    const std::int64_t x_row = s_.rows() * s_.in, g_row = s_.rows() * s_.out;
    const std::int64_t ins = s_.degrees(0) * s_.in, outs = s_.degrees(0) * s_.out;
    pack_rows(count, ins, x, nullptr, x_row, panels);
    add_product(count, g_extra, s_.extra, s_.extra, panels, ins, to);
    add_product(count, g, g_row, outs, panels, ins, to + s_.extra * ins);
    T* const bias = to + s_.bias();
    for (std::int64_t e = 0; e < count; ++e) {
      add_row(g_extra + e * s_.extra, s_.extra, bias);
      add_row(g + e * g_row, outs, bias + s_.extra);
    }
    to += s_.order(1);
    for (int m = 1; m <= s_.mmax; ++m, to += 3 * s_.half(m - 1)) {
      const std::int64_t in = s_.degrees(m) * s_.in, out = s_.degrees(m) * s_.out;
      const T *const xp = x + s_.first_row(m) * s_.in, *const xq = xp + in;
      const T *const p = g + s_.first_row(m) * s_.out, *const q = p + out;
      // p^T xp + q^T xq and q^T xp - p^T xq, with p^T (xp - xq) in common.
      pack_rows(count, in, xp, xq, x_row, panels);
      add_product(count, p, g_row, out, panels, in, to + 2 * s_.half(m));
      pack_rows(count, in, xq, nullptr, x_row, panels);
      combine(count, out, p, q, T{1}, g_row, sum);
      add_product(count, sum, out, out, panels, in, to);
      pack_rows(count, in, xp, nullptr, x_row, panels);
      combine(count, out, q, p, T{-1}, g_row, sum);
      add_product(count, sum, out, out, panels, in, to + s_.half(m));
    }
  }

  void finish_gradient(const T* sums, T* to) const {
    to = std::copy_n(sums, s_.order(1), to);
    sums += s_.order(1);
    for (int m = 1; m <= s_.mmax; ++m) {
      const std::int64_t half = s_.half(m);
      for (std::int64_t n = 0; n < 2 * half; ++n) *to++ = sums[n] + sums[2 * half + n % half];
      sums += 3 * half;
    }
  }

  // to += g^T x with x in panels.
  static void add_product(std::int64_t count, const T* g, std::int64_t g_row, std::int64_t outs, const T* x,
                          std::int64_t ins, T* to) {
    constexpr std::int64_t kPanel = Matrix<T>::kPanel;
    multiply_panels<T>({outs, count, ins, g, 1, g_row, x, count * kPanel, kPanel, to, ins, true});
  }

  // x - minus, or x, [count, columns], in panels.
  static void pack_rows(std::int64_t count, std::int64_t columns, const T* x, const T* minus, std::int64_t x_row,
                        T* panels) {
    Matrix<T> matrix{panels, count, columns, x, minus, T{1}, T{-1}, x_row, 1};
    for (std::int64_t n = 0; n < matrix.count(); ++n) matrix.pack(n);
  }

 private:
  static constexpr int kMatrices = 2 + 3 * kMaxDegree;  // of the extra rows, of the others of order 0, then 3 an order
  Layer s_;
  const T* bias_;
  Matrix<T> plain_[kMatrices], transposed_[kMatrices];

  template <bool kTransposed>
  void make(const T* parameters, Matrix<T>* to, Arena& arena) {
    const auto add = [&](const T* a, const T* b, T of_a, T of_b, std::int64_t outs, std::int64_t ins) {
      *to = kTransposed ? Matrix<T>{nullptr, outs, ins, a, b, of_a, of_b, ins, 1}
                        : Matrix<T>{nullptr, ins, outs, a, b, of_a, of_b, 1, ins};
      to->take_panels(arena);
      ++to;
    };
    const std::int64_t ins = s_.degrees(0) * s_.in;
    add(parameters, nullptr, 1, 0, s_.extra, ins);
    add(parameters + s_.extra * ins, nullptr, 1, 0, s_.degrees(0) * s_.out, ins);
    for (int m = 1; m <= s_.mmax; ++m) {
      const T *const a = parameters + s_.order(m), *const b = a + s_.half(m);
      const T sign = kTransposed ? -1 : 1;
      add(a, nullptr, 1, 0, s_.degrees(m) * s_.out, s_.degrees(m) * s_.in);
      for (const T of_b : {-sign, sign}) add(a, b, -1, of_b, s_.degrees(m) * s_.out, s_.degrees(m) * s_.in);
    }
  }

  // to = p + factor q of rows.
  static void combine(std::int64_t count, std::int64_t columns, const T* p, const T* q, T factor, std::int64_t row,
                      T* to) {
    for (std::int64_t e = 0; e < count; ++e)
      for (std::int64_t c = 0; c < columns; ++c) to[e * columns + c] = p[e * row + c] + factor * q[e * row + c];
  }

  void three_products(const Matrix<T>* matrices, int m, std::int64_t count, const T* x, std::int64_t ins, T* y,
                      std::int64_t outs, T* sum) const {
    const Matrix<T>* const of = matrices + 2 + 3 * (m - 1);
    const std::int64_t in = s_.degrees(m) * ins, out = s_.degrees(m) * outs;
    const std::int64_t x_row = s_.rows() * ins, y_row = s_.rows() * outs;
    const T *const p = x + s_.first_row(m) * ins, *const q = p + in;
    T *const first = y + s_.first_row(m) * outs, *const second = first + out;
    combine(count, in, p, q, T{1}, x_row, sum);
    of[0].times(count, sum, in, first, y_row, false, out);
    of[1].times(count, q, x_row, first, y_row, true);
    of[2].times(count, p, x_row, second, y_row, true);
  }
};

}  // namespace EQK_ISA
}  // namespace eqk::so2_edge_message
