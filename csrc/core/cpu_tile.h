#pragma once
// A tile of as many channels, or rows of one channel, as a vector has lanes.
#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "core/cpu_tasks.h"
#include "core/interleave.h"
#include "core/lanes.h"
#include "core/plan.h"

namespace eqk {
inline namespace EQK_ISA {

// Channels [first, first + count) of a row, or so many rows of one channel, between memory of any storage type and
// vectors of lanes.
template <class T>
class Tile {
 public:
  static constexpr int W = EQK_VECTOR_BYTES / static_cast<int>(sizeof(T));
  using V = Vector<T, W>;

  // Where the only channel would leave all lanes but one idle.
  static bool over_rows(std::int64_t channels) { return channels == 1; }
  // Of work that needs all channels of a row together.
  static std::int64_t tasks(std::int64_t rows, std::int64_t channels) {
    return over_rows(channels) ? (rows + W - 1) / W : rows;
  }
  // f(tile, row) for each tile of such a task.
  template <class F>
  static void for_tiles(Dtype dtype, std::int64_t task, std::int64_t rows, std::int64_t channels, const F& f) {
    if (over_rows(channels)) {
      Tile tile(dtype, rows, task * W);
      tile.rows_ = true;
      return f(tile, 0);
    }
    for (std::int64_t first = 0; first < channels; first += W) f(Tile(dtype, channels, first), task);
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
    else
      load_irreps(data, row * stride, irreps, v, 1);
  }

  void store_signals(void* data, std::int64_t row, std::int64_t stride, Layout layout,
                     const std::vector<Segment>& irreps, int components, const V* v) const {
    if (rows_ || layout == Layout::ir_mul)
      store_numbers(data, row, stride, 0, components, v);
    else
      store_irreps(data, row * stride, irreps, v, 1);
  }

  // Numbers [first, first + count) of those of each channel, channels adjacent.
  void load_numbers(const void* data, std::int64_t row, std::int64_t stride, std::int64_t first, int count,
                    V* v) const {
    if (!rows_) return load_matrix(data, row * stride + first * channels_, count, false, v, 1);
    with_storage(data, [&](const auto* base) { load_columns(base + first + first_ * stride, stride, count, v, 1); });
  }

  void store_numbers(void* data, std::int64_t row, std::int64_t stride, std::int64_t first, int count,
                     const V* v) const {
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
  bool rows_ = false;

  // Lane c is at p + c * stride, where its components are adjacent.
  template <class Storage>
  void load_columns(const Storage* p, std::int64_t stride, int dim, V* v, std::int64_t pitch) const {
    for (int i = 0; i < dim; i += W) {
      V block[W];
      for (int c = 0; c < W; ++c) block[c] = c < count_ ? load_n<T, W>(p + c * stride + i, std::min(W, dim - i)) : V{};
      transpose<T, W>(block);
      for (int j = 0; j < std::min(W, dim - i); ++j) v[(i + j) * pitch] = block[j];
    }
  }

  template <class Storage>
  void store_columns(Storage* p, std::int64_t stride, int dim, const V* v, std::int64_t pitch) const {
    for (int i = 0; i < dim; i += W) {
      V block[W];
      for (int j = 0; j < W; ++j) block[j] = i + j < dim ? v[(i + j) * pitch] : V{};
      transpose<T, W>(block);
      for (int c = 0; c < count_; ++c) store_n<T, W>(p + c * stride + i, block[c], std::min(W, dim - i));
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
