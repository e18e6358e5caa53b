#pragma once
// PanelProduct on SIMD vectors. Compiled once per instruction set.
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "core/cpu_tile_product.h"
#include "core/lanes.h"
#include "core/panel_product.h"
#include "core/scalar.h"

namespace eqk {
inline namespace EQK_ISA {

// Accumulators, the vectors of a row of a panel and a broadcast fill the registers: 32 of AVX-512, 16 elsewhere.
inline constexpr int kPanelVectors = 3, kPanelRows = EQK_VECTOR_BYTES == 64 ? 8 : 4;
template <class T>
inline constexpr int kPanelColumns = kPanelVectors * EQK_VECTOR_BYTES / static_cast<int>(sizeof(T));

namespace detail {

template <class T, int Rows, int Vectors>
void multiply_panel(const PanelProduct<T>& p, const T* a, const T* b, T* c, std::int64_t depth, std::int64_t columns,
                    bool add, std::int64_t copy) {
  constexpr int W = EQK_VECTOR_BYTES / static_cast<int>(sizeof(T));
  using V = Vector<T, W>;
  V sum[Rows][Vectors];
  const auto each = [](const auto& f) EQK_LAMBDA {
    unroll<Rows>([&](auto r) EQK_LAMBDA { EQK_UNROLL for (int v = 0; v < Vectors; ++v) f(r, v); });
  };
  // What is added to is read after the sums, when it has come.
  unroll<Rows>([&](auto r) EQK_LAMBDA {
    if (add) __builtin_prefetch(c + r * p.c_row, 1), __builtin_prefetch(c + r * p.c_row + columns - 1, 1);
  });
  each([&](auto r, auto v) EQK_LAMBDA { sum[r][v] = V{}; });
  for (std::int64_t d = 0; d < depth; ++d, b += p.b_depth) {
    V row[Vectors];
    EQK_UNROLL for (int v = 0; v < Vectors; ++v) row[v] = load<T, W>(b + v * W);
    unroll<Rows>([&](auto r) EQK_LAMBDA {
      const V s = splat<T, W>(a[r * p.a_row + d * p.a_depth]);
      EQK_UNROLL for (int v = 0; v < Vectors; ++v) sum[r][v] += s * row[v];
    });
  }
  if (columns == Vectors * W)
    each([&](auto r, auto v) EQK_LAMBDA {
      T* const to = c + r * p.c_row + v * W;
      const V result = add ? load<T, W>(to) + sum[r][v] : sum[r][v];
      store<T, W>(to, result);
      if (copy) store<T, W>(to + copy, result);
    });
  else
    each([&](auto r, auto v) EQK_LAMBDA {
      T* const to = c + r * p.c_row + v * W;
      const std::int64_t n = columns - v * W;
      const V result = add ? load_n<T, W>(to, n) + sum[r][v] : sum[r][v];
      store_n<T, W>(to, result, n);
      if (copy) store_n<T, W>(to + copy, result, n);
    });
}

template <class T, int Rows, int Vectors>
void multiply_rows(const PanelProduct<T>& p, const T* a, const T* b, T* c, std::int64_t rows, std::int64_t depth,
                   std::int64_t columns, bool add, std::int64_t copy) {
  for (; rows >= Rows; rows -= Rows, a += Rows * p.a_row, c += Rows * p.c_row)
    multiply_panel<T, Rows, Vectors>(p, a, b, c, depth, columns, add, copy);
  if constexpr (Rows > 1)
    if (rows > 0) multiply_rows<T, Rows / 2, Vectors>(p, a, b, c, rows, depth, columns, add, copy);
}

// No more vectors of a row than have columns.
template <class T, int Vectors = kPanelVectors>
void multiply_columns(const PanelProduct<T>& p, const T* a, const T* b, T* c, std::int64_t depth, std::int64_t columns,
                      bool add, std::int64_t copy) {
  constexpr std::int64_t kFewer = (Vectors - 1) * EQK_VECTOR_BYTES / static_cast<int>(sizeof(T));
  if constexpr (Vectors > 1)
    if (columns <= kFewer) return multiply_columns<T, Vectors - 1>(p, a, b, c, depth, columns, add, copy);
  multiply_rows<T, kPanelRows, Vectors>(p, a, b, c, p.rows, depth, columns, add, copy);
}

}  // namespace detail

template <class T>
void multiply_panels(const PanelProduct<T>& p) {
  if constexpr (std::is_same_v<T, float>)
    if (multiply_on_tiles(p, kPanelColumns<T>)) return;
  // Of a panel: more of it would not stay in the caches while all rows use it, less would add to c more often.
  constexpr std::int64_t kDepth = 256;
  std::int64_t d = 0;
  do {
    const std::int64_t depth = std::min(kDepth, p.depth - d);
    for (std::int64_t q = 0; q < p.columns; q += kPanelColumns<T>)
      detail::multiply_columns<T>(p, p.a + d * p.a_depth, p.b + q / kPanelColumns<T> * p.b_panel + d * p.b_depth,
                                  p.c + q, depth, std::min<std::int64_t>(kPanelColumns<T>, p.columns - q),
                                  p.add || d > 0, d + depth < p.depth ? 0 : p.copy);
    d += depth;
  } while (d < p.depth);
}

// What owners of right factors call.
template <class T>
constexpr PanelSplit<T> panel_split() {
  if constexpr (std::is_same_v<T, float>)
    return {&split_bytes, &split_panel};
  else
    return {[](std::int64_t, std::int64_t) { return std::int64_t{0}; },
            [](const T*, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::byte*) {}};
}

}  // namespace EQK_ISA
}  // namespace eqk
