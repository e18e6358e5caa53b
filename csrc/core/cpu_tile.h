#pragma once
// A tile of as many channels as a vector has lanes, or of rows of few channels.
#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "core/cpu_tasks.h"
#include "core/interleave.h"
#include "core/lanes.h"
#include "core/plan.h"
#include "core/prefetch.h"

namespace eqk {
inline namespace EQK_ISA {

// Channels [first, first + count) of a row, or rows of few channels, lane r * channels + c being channel c of the r-th,
// between memory of any storage type and vectors of lanes.
template <class T>
class Tile {
 public:
  static constexpr int W = EQK_VECTOR_BYTES / static_cast<int>(sizeof(T));
  using V = Vector<T, W>;

  // Of work that needs all channels of a row together: rows of a task. One row of few channels would leave half of the
  // lanes idle, or more. alone: whether rows are not to share a tile.
  static std::int64_t rows_of_task(std::int64_t channels, bool alone = false) {
    return channels == 1 ? W : alone || channels == 0 ? 1 : std::max<std::int64_t>(1, W / channels);
  }
  static std::int64_t tasks(std::int64_t rows, std::int64_t channels, bool alone = false) {
    const auto together = rows_of_task(channels, alone);
    return (rows + together - 1) / together;
  }
  // f(tile, row) for each tile of such a task.
  template <class F>
  static void for_tiles(Dtype dtype, std::int64_t task, std::int64_t rows, std::int64_t channels, bool alone,
                        const F& f) {
    const auto together = rows_of_task(channels, alone), row = task * together;
    if (channels == 1) {
      Tile tile(dtype, rows, row);
      tile.rows_ = true;
      return f(tile, 0);
    }
    if (together > 1) {
      Tile tile(dtype, channels, 0);
      tile.together_ = std::min(together, rows - row);
      tile.count_ = tile.together_ * channels;
      return f(tile, row);
    }
    for (std::int64_t first = 0; first < channels; first += W) f(Tile(dtype, channels, first), row);
  }

  Tile(Dtype dtype, std::int64_t channels, std::int64_t first)
      : dtype_(dtype), channels_(channels), first_(first), count_(std::min<std::int64_t>(W, channels - first)) {}

  // Component i of [channels, dim] or [dim, channels] from and to v[i * pitch].
  void load_matrix(const void* data, std::int64_t row, int dim, bool channels_first, V* v, std::int64_t pitch) const {
    with_storage(data, [&](const auto* base) {
      const auto* const p = base + row;
      if (channels_first) return load_columns(p + first_ * dim, dim, dim, v, pitch);
      for (int i = 0; i < dim; ++i) v[i * pitch] = load_n<T, W>(p + i * channels_ + first_, count_);
    });
  }

  void store_matrix(void* data, std::int64_t row, int dim, bool channels_first, const V* v, std::int64_t pitch) const {
    with_storage(data, [&](auto* base) {
      auto* const p = base + row;
      if (channels_first) return store_columns(p + first_ * dim, dim, dim, v, pitch);
      for (int i = 0; i < dim; ++i) store_n<T, W>(p + i * channels_ + first_, v[i * pitch], count_);
    });
  }

  // The same of irreps, one after another, each [channels, 2 l + 1].
  void load_irreps(const void* data, std::int64_t row, const std::vector<Segment>& irreps, V* v,
                   std::int64_t pitch) const {
    for (const Segment& s : irreps)
      with_storage(data, [&]<class Storage>(const Storage* base) {
        const Storage* const p = base + row + s.offset * channels_ + first_ * s.dim();
        V* const to = v + s.offset * pitch;
        if constexpr (std::is_same_v<T, Storage>) {
          if (with_components(s.l, [&](auto d) {
                V part[d];
                load_channels<d, T, W>(p, true, channels_, count_, part);
                for (int i = 0; i < d; ++i) to[i * pitch] = part[i];
              }))
            return;
        }
        for (int i = 0; i < s.dim(); ++i) {
          V lanes{};
          for (int c = 0; c < count_; ++c) lanes[c] = from_storage<T>(p[c * s.dim() + i]);
          to[i * pitch] = lanes;
        }
      });
  }

  void store_irreps(void* data, std::int64_t row, const std::vector<Segment>& irreps, const V* v,
                    std::int64_t pitch) const {
    for (const Segment& s : irreps)
      with_storage(data, [&]<class Storage>(Storage* base) {
        Storage* const p = base + row + s.offset * channels_ + first_ * s.dim();
        const V* const from = v + s.offset * pitch;
        if constexpr (std::is_same_v<T, Storage>) {
          if (with_components(s.l, [&](auto d) {
                V part[d];
                for (int i = 0; i < d; ++i) part[i] = from[i * pitch];
                store_channels<d, T, W>(p, true, channels_, count_, part, false);
              }))
            return;
        }
        for (int i = 0; i < s.dim(); ++i)
          for (int c = 0; c < count_; ++c) p[c * s.dim() + i] = as_storage<Storage>(from[i * pitch][c]);
      });
  }

  // Signals on the sphere, of degrees 0, 1, ... with so many components: component i from and to v[i], in a row of
  // `stride` elements.
  void load_signals(const void* data, std::int64_t row, std::int64_t stride, Layout layout,
                    const std::vector<Segment>& irreps, int components, V* v) const {
    if (rows_ || layout == Layout::ir_mul)
      load_numbers(data, row, stride, 0, components, v);
    else if (together_ > 1)
      for_irreps(irreps, [&](int i, std::int64_t first, std::int64_t of_channel) {
        v[i] = load_rows(data, row * stride + first, stride, of_channel);
      });
    else
      load_irreps(data, row * stride, irreps, v, 1);
    fetch_next(data, row, stride, layout, irreps, components);
  }

  void store_signals(void* data, std::int64_t row, std::int64_t stride, Layout layout,
                     const std::vector<Segment>& irreps, int components, const V* v) const {
    if (rows_ || layout == Layout::ir_mul)
      store_numbers(data, row, stride, 0, components, v);
    else if (together_ > 1)
      for_irreps(irreps, [&](int i, std::int64_t first, std::int64_t of_channel) {
        store_rows(data, row * stride + first, stride, of_channel, v[i]);
      });
    else
      store_irreps(data, row * stride, irreps, v, 1);
    fetch_next(data, row, stride, layout, irreps, components);
  }

  // Numbers [first, first + count) of those of each channel, channels adjacent.
  void load_numbers(const void* data, std::int64_t row, std::int64_t stride, std::int64_t first, int count,
                    V* v) const {
    if (together_ > 1) {
      for (int i = 0; i < count; ++i) v[i] = load_rows(data, row * stride + (first + i) * channels_, stride, 1);
      return;
    }
    if (!rows_) return load_matrix(data, row * stride + first * channels_, count, false, v, 1);
    with_storage(data, [&](const auto* base) { load_columns(base + first + first_ * stride, stride, count, v, 1); });
  }

  void store_numbers(void* data, std::int64_t row, std::int64_t stride, std::int64_t first, int count,
                     const V* v) const {
    if (together_ > 1) {
      for (int i = 0; i < count; ++i) store_rows(data, row * stride + (first + i) * channels_, stride, 1, v[i]);
      return;
    }
    if (!rows_) return store_matrix(data, row * stride + first * channels_, count, false, v, 1);
    with_storage(data, [&](auto* base) { store_columns(base + first + first_ * stride, stride, count, v, 1); });
  }

  // The same number in all lanes.
  void load_same(const void* data, std::int64_t row, int dim, V* v) const {
    with_storage(data, [&](const auto* base) {
      for (int i = 0; i < dim; ++i) v[i] = splat<T, W>(from_storage<T>(base[row + i]));
    });
  }

  void store_same(void* data, std::int64_t row, int dim, const T* v) const {
    with_storage(data, [&]<class Storage>(Storage* base) {
      for (int i = 0; i < dim; ++i) base[row + i] = as_storage<Storage>(v[i]);
    });
  }

  V load_channels_at(const void* data, std::int64_t row) const {
    V v;
    load_matrix(data, row, 1, false, &v, 1);
    return v;
  }

  std::int64_t first() const { return first_; }
  std::int64_t count() const { return count_; }

 private:
  Dtype dtype_;
  std::int64_t channels_, first_, count_;
  bool rows_ = false;          // of one channel
  std::int64_t together_ = 1;  // rows, of more

  // What the next task reads or writes, into the second-level cache: the rows behind these, or the same channels of the
  // next row, of which a tile takes few lines of each component, in steps that no machine sees coming. No address need
  // be one of the operand's.
  EQK_HD void fetch_next(const void* data, std::int64_t row, std::int64_t stride, Layout layout,
                         const std::vector<Segment>& irreps, int components) const {
    with_storage(data, [&](const auto* base) EQK_LAMBDA {
      if (rows_ || together_ > 1) {
        const std::int64_t rows = rows_ ? W : together_, next = ((rows_ ? first_ : row) + rows) * stride;
        const std::int64_t columns = components * (rows_ ? 1 : channels_);
        if (stride == columns) return fetch_run(base, next, rows * stride);
        for (std::int64_t r = 0; r < rows; ++r) fetch_run(base, next + r * stride, columns);
        return;
      }
      const std::int64_t next = (row + 1) * stride;
      if (layout == Layout::ir_mul)
        for (int i = 0; i < components; ++i) fetch_run(base, next + i * channels_ + first_, count_);
      else
        for (const Segment& s : irreps)
          fetch_run(base, next + s.offset * channels_ + first_ * s.dim(), count_ * s.dim());
    });
  }

  template <class Storage>
  EQK_HD static void fetch_run(const Storage* base, std::int64_t first, std::int64_t numbers) {
    constexpr int kLine = 64, kBytes = sizeof(Storage);
    const auto start = reinterpret_cast<std::intptr_t>(base);
    for (std::int64_t at = first * kBytes; at < (first + numbers) * kBytes; at += kLine)
      prefetch(reinterpret_cast<const void*>(start + at));
    asm volatile("");  // GCC takes a prefetch for no effect at all, and drops calls of functions that do nothing else
  }

  // f(component, where it starts in a row, from channel to channel) of irreps [channels, 2 l + 1].
  template <class F>
  void for_irreps(const std::vector<Segment>& irreps, const F& f) const {
    for (const Segment& s : irreps)
      for (int i = 0; i < s.dim(); ++i) f(static_cast<int>(s.offset) + i, s.offset * channels_ + i, s.dim());
  }

  // Channels `step` apart of rows `stride` apart.
  V load_rows(const void* data, std::int64_t first, std::int64_t stride, std::int64_t step) const {
    V lanes{};
    with_storage(data, [&]<class Storage>(const Storage* base) {
      const Storage* p = base + first;
#if defined(__AVX512F__)
      if constexpr (std::is_same_v<T, Storage> && sizeof(V) == 64)
        if (step == 1) return for_masks(p, stride, [&](const T* q, unsigned mask) { load_masked(lanes, mask, q); });
#endif
      alignas(V) T values[W]{};
      for (std::int64_t r = 0; r < together_; ++r, p += stride)
        for (std::int64_t c = 0; c < channels_; ++c) values[r * channels_ + c] = from_storage<T>(p[c * step]);
      lanes = load<T, W>(values);
    });
    return lanes;
  }

  void store_rows(void* data, std::int64_t first, std::int64_t stride, std::int64_t step, V lanes) const {
    with_storage(data, [&]<class Storage>(Storage* base) {
      Storage* p = base + first;
#if defined(__AVX512F__)
      if constexpr (std::is_same_v<T, Storage> && sizeof(V) == 64)
        if (step == 1) return for_masks(p, stride, [&](T* q, unsigned mask) { store_masked(q, mask, lanes); });
#endif
      alignas(V) T values[W];
      store<T, W>(values, lanes);
      for (std::int64_t r = 0; r < together_; ++r, p += stride)
        for (std::int64_t c = 0; c < channels_; ++c) p[c * step] = as_storage<Storage>(values[r * channels_ + c]);
    });
  }

#if defined(__AVX512F__)
  // f(pointer, lanes) of each row, whose lanes are in their place behind the pointer; the others are not touched.
  template <class Pointer, class F>
  void for_masks(Pointer p, std::int64_t stride, const F& f) const {
    unsigned mask = (1u << channels_) - 1u;
    for (std::int64_t r = 0; r < together_; ++r, p += stride - channels_, mask <<= channels_) f(p, mask);
  }
  static void load_masked(V& lanes, unsigned mask, const T* p) {
    if constexpr (sizeof(T) == 8)
      lanes = __builtin_bit_cast(
          V, _mm512_mask_loadu_pd(__builtin_bit_cast(__m512d, lanes), static_cast<__mmask8>(mask), p));
    else
      lanes = __builtin_bit_cast(
          V, _mm512_mask_loadu_ps(__builtin_bit_cast(__m512, lanes), static_cast<__mmask16>(mask), p));
  }
  static void store_masked(T* p, unsigned mask, V lanes) {
    if constexpr (sizeof(T) == 8)
      _mm512_mask_storeu_pd(p, static_cast<__mmask8>(mask), __builtin_bit_cast(__m512d, lanes));
    else
      _mm512_mask_storeu_ps(p, static_cast<__mmask16>(mask), __builtin_bit_cast(__m512, lanes));
  }
#endif

  // Lane c is at p + c * stride, where its components are adjacent. Unrolled, so that blocks stay in registers.
  template <class Storage>
  void load_columns(const Storage* p, std::int64_t stride, int dim, V* v, std::int64_t pitch) const {
    const auto count = count_;
    for (int i = 0; i < dim; i += W) {
      const int n = std::min(W, dim - i);
      V block[W];
      if (count == W)
        EQK_UNROLL for (int c = 0; c < W; ++c) block[c] = load_n<T, W>(p + c * stride + i, n);
      else
        for (int c = 0; c < W; ++c) block[c] = c < count ? load_n<T, W>(p + c * stride + i, n) : V{};
      transpose<T, W>(block);
      unroll<W>([&](auto j) EQK_LAMBDA {
        if (j < n) v[(i + j) * pitch] = block[j];
      });
    }
  }

  template <class Storage>
  void store_columns(Storage* p, std::int64_t stride, int dim, const V* v, std::int64_t pitch) const {
    const auto count = count_;
    for (int i = 0; i < dim; i += W) {
      const int n = std::min(W, dim - i);
      V block[W];
      unroll<W>([&](auto j) EQK_LAMBDA { block[j] = j < n ? v[(i + j) * pitch] : V{}; });
      transpose<T, W>(block);
      unroll<W>([&](auto c) EQK_LAMBDA {
        if (c < count) store_n<T, W>(p + c * stride + i, block[c], n);
      });
    }
  }

  template <class Void, class F>
  void with_storage(Void* data, const F& f) const {
    const auto typed = [&]<class Storage>(Storage) {
      f(static_cast<std::conditional_t<std::is_const_v<Void>, const Storage, Storage>*>(data));
    };
    if constexpr (sizeof(T) == 8)
      typed(double{});
    else if (dtype_ == Dtype::float32)
      typed(float{});
    else if (dtype_ == Dtype::float16)
      typed(Half{});
    else
      typed(BFloat16{});
  }
};

// Of a template Kernel<T>(problem), T float or double.
template <template <class> class Kernel, class Problem>
constexpr TaskKernels<Problem> task_kernels() {
  return {[](const Problem& problem) {
            return problem.dtype == Dtype::float64 ? Kernel<double>::tasks(problem) : Kernel<float>::tasks(problem);
          },
          [](const Problem& problem, std::int64_t begin, std::int64_t end) {
            if (problem.dtype == Dtype::float64)
              Kernel<double>(problem).run(begin, end);
            else
              Kernel<float>(problem).run(begin, end);
          }};
}

}  // namespace EQK_ISA
}  // namespace eqk
