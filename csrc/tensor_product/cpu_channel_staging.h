#pragma once
// Moves rows between memory and scratch rows of padded segments, [channel tile][component][lane], and looks up the
// kernels of a plan's paths.
#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "tensor_product/cpu_channels.h"

namespace eqk::tensor_product {
inline namespace EQK_ISA {

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
        for (int k = 0; k < d; ++k) prefetch(from + s.memory.offset + u * d + k * W + kAhead<T>);
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

}  // namespace EQK_ISA
}  // namespace eqk::tensor_product
