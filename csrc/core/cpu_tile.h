#pragma once
// A tile of as many channels, or rows of one channel, as a vector has lanes.
#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "core/interleave.h"
#include "core/lanes.h"
#include "core/plan.h"

namespace eqk {
inline namespace EQK_ISA {

// Channels [first, first + count) of a row, between memory of any storage type and vectors of lanes.
template <class T>
class Tile {
 public:
  static constexpr int W = EQK_VECTOR_BYTES / static_cast<int>(sizeof(T));
  using V = Vector<T, W>;

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

  // Component i from and to v[i] where lanes are rows, `stride` elements apart, of one channel.
  void load_rows(const void* data, std::int64_t column, std::int64_t stride, int dim, V* v) const {
    with_storage(data, [&](const auto* base) { load_columns(base + column + first_ * stride, stride, dim, v, 1); });
  }

  void store_rows(void* data, std::int64_t column, std::int64_t stride, int dim, const V* v) const {
    with_storage(data, [&](auto* base) { store_columns(base + column + first_ * stride, stride, dim, v, 1); });
  }

  // v[i] as it is.
  void store_numbers(void* data, std::int64_t row, int dim, const T* v) const {
    with_storage(data, [&]<class Storage>(Storage* base) {
      for (int i = 0; i < dim; ++i) base[row + i] = as_storage<Storage>(v[i]);
    });
  }

  // The same number in all lanes.
  void load_same(const void* data, std::int64_t row, int dim, V* v) const {
    with_storage(data, [&](const auto* base) {
      for (int i = 0; i < dim; ++i) v[i] = splat<T, W>(from_storage<T>(base[row + i]));
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

}  // namespace EQK_ISA
}  // namespace eqk
