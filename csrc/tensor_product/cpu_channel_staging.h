#pragma once
// Moves rows between memory and scratch rows of padded segments, [channel tile][component][lane], and looks up the
// kernels of a plan's paths.
#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/aligned.h"
#include "tensor_product/cpu_channels.h"

namespace eqk::tensor_product {
inline namespace EQK_ISA {

// A result of at least so many bytes probably is no longer in a cache when it is read: storing past the caches saves
// reading it first.
inline constexpr std::int64_t kStreamBytes = 8 << 20;

// Hands out aligned pieces; with a null base it only adds up their sizes.
struct Arena {
  std::byte* base;
  std::size_t used = 0;
  template <class U>
  U* take(std::int64_t count) {
    U* const p = base && count ? reinterpret_cast<U*>(base + used) : nullptr;
    used += (static_cast<std::size_t>(count) * sizeof(U) + 63) / 64 * 64;
    return p;
  }
};

// Calls take(arena) twice: to add up the sizes, and to hand out pieces of the memory that it returns.
template <class F>
AlignedArray<std::byte> arena_memory(F&& take) {
  Arena sizes{nullptr};
  take(sizes);
  auto memory = aligned_array<std::byte>(sizes.used);
  Arena arena{memory.get()};
  take(arena);
  return memory;
}

template <class T>
const ChannelKernels<T>& kernels_of(const ChannelPath& p) {
  const ChannelKernels<T>* k = nullptr;
  unroll<EQK_LMAX + 1>([&](auto l) {
    if (p.lc == l) k = &channel_kernels<T, l>()[p.ls][p.lo];
  });
  return *k;
}

template <class T>
void stage(const std::vector<PaddedSegment>& segments, const T* from, bool mul_ir, T* to) {
  constexpr int W = kWidth<T>;
  for (const auto& s : segments)
    with_components(s.l, [&](auto d) {
      for (std::int64_t u = 0; u < s.pitch; u += W) {
        Vector<T, W> v[d];
        const std::int64_t n = s.mul - u;
        prefetch<d>(from + s.memory.offset + u * d);
        if (n > 0)
          load_channels<d, T, W>(from + s.memory.offset + u * s.memory.channel, mul_ir, s.mul, n < W ? n : W, v);
        else
          for (auto& zero : v) zero = Vector<T, W>{};
        for (int i = 0; i < d; ++i) store<T, W>(to + s.scratch + u * d + i * W, v[i]);
      }
    });
}

template <class T>
void unstage(const std::vector<PaddedSegment>& segments, const T* from, T* to, bool mul_ir, bool streamed) {
  constexpr int W = kWidth<T>;
  for (const auto& s : segments)
    with_components(s.l, [&](auto d) {
      const T* const f = from + s.scratch;
      for (std::int64_t u = 0; u < s.mul; u += W) {
        Vector<T, W> v[d];
        for (int i = 0; i < d; ++i) v[i] = load<T, W>(f + u * d + i * W);
        const std::int64_t n = s.mul - u < W ? s.mul - u : W;
        store_channels<d, T, W>(to + s.memory.offset + u * s.memory.channel, mul_ir, s.mul, n, v, streamed && n == W);
      }
    });
}

template <class T>
void clear(const std::vector<std::pair<std::int64_t, std::int64_t>>& ranges, T* row) {
  for (const auto& [offset, size] : ranges) std::fill_n(row + offset, size, T{});
}

// to[q] = sum of the lanes of sums[q], W at a time by one transposition; sums has padding up to a multiple of W.
template <class T>
void reduce_lanes(const Vector<T, kWidth<T>>* sums, std::int64_t count, T* to) {
  constexpr int W = kWidth<T>;
  for (std::int64_t q = 0; q < count; q += W) {
    Vector<T, W> tile[W], sum{};
    for (int r = 0; r < W; ++r) tile[r] = sums[q + r];
    transpose<T, W>(tile);
    for (int r = 0; r < W; ++r) sum += tile[r];
    store_n<T, W>(to + q, sum, count - q < W ? count - q : W);
  }
}

}  // namespace EQK_ISA
}  // namespace eqk::tensor_product
