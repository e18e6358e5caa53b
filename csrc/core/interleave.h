#pragma once
// Registers <-> memory for W channels of D components, D odd: mul_ir (components adjacent) against one vector for each
// component. Since D is coprime to W, lane L of the D memory vectors meets each component once: a rotation of the
// registers by L, done in log2(D) blends, and one permutation of lanes replace a gather.
#include <algorithm>
#include <cstdint>

#include "core/lanes.h"

namespace eqk {
inline namespace EQK_ISA {

template <class T>
inline constexpr int kWidth = EQK_VECTOR_BYTES / sizeof(T);  // lanes of a register

// f(constant<2 l + 1>) where degree l is unrolled, and whether it is.
template <class F>
bool with_components(int l, const F& f) {
  bool found = false;
  unroll<EQK_LMAX + 1>([&](auto degree) {
    if (l == degree) f(constant<2 * degree + 1>{}), found = true;
  });
  return found;
}

// A result of at least so many bytes probably is no longer in a cache when it is read: storing past the caches saves
// reading it first.
inline constexpr std::int64_t kStreamBytes = 8 << 20;

// A store that bypasses the caches; p is aligned to the vector.
template <class T, int W>
EQK_HD void stream(T* p, Vector<T, W> v) {
#if defined(__AVX512F__)
  if constexpr (W * sizeof(T) == 64)
    return _mm512_stream_si512(reinterpret_cast<__m512i*>(p), __builtin_bit_cast(__m512i, v));
#endif
#if defined(__AVX__)
  if constexpr (W * sizeof(T) == 32)
    return _mm256_stream_si256(reinterpret_cast<__m256i*>(p), __builtin_bit_cast(__m256i, v));
#endif
#if defined(__x86_64__)
  if constexpr (W * sizeof(T) == 16)
    return _mm_stream_si128(reinterpret_cast<__m128i*>(p), __builtin_bit_cast(__m128i, v));
#endif
  store<T, W>(p, v);
}

EQK_HD void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

template <class T, int W, int D>
struct Interleave {
  using V = Vector<T, W>;
  static_assert(D % 2 == 1);

  // Memory vector r holds component (component_of(r) + L) mod D in lane L.
  static constexpr int component_of(int r) { return W * r % D; }
  static constexpr int steps() {
    int s = 0;
    while ((1 << s) < D) ++s;
    return s;
  }
  static constexpr int channel_at(int component, int lane) {
    for (int u = 0; u < W; ++u)
      if ((u * D + component) % W == lane) return u;
    return 0;
  }
  template <int S, int... L>
  static EQK_HD V blend(V keep, V rotated, std::integer_sequence<int, L...>) {
    return __builtin_shufflevector(keep, rotated, ((((L % D) >> S) & 1) ? W + L : L)...);
  }
  template <int C, int... U>
  static EQK_HD V gather_channels(V v, std::integer_sequence<int, U...>) {
    return __builtin_shufflevector(v, v, ((U * D + C) % W)...);
  }
  template <int C, int... L>
  static EQK_HD V scatter_channels(V v, std::integer_sequence<int, L...>) {
    return __builtin_shufflevector(v, v, channel_at(C, L)...);
  }

  template <class Load>
  static EQK_HD void load(const T* p, V* out, Load&& get) {
    constexpr auto lanes = std::make_integer_sequence<int, W>{};
    V a[D], b[D];
    unroll<D>([&](auto r) EQK_LAMBDA { a[component_of(r)] = get(p + r * W, r * W); });
    unroll<steps()>([&](auto s) EQK_LAMBDA {
      EQK_UNROLL for (int c = 0; c < D; ++c) b[c] = blend<s>(a[c], a[((c - (1 << s)) % D + D) % D], lanes);
      EQK_UNROLL for (int c = 0; c < D; ++c) a[c] = b[c];
    });
    unroll<D>([&](auto c) EQK_LAMBDA { out[c] = gather_channels<c>(a[c], lanes); });
  }

  template <class Store>
  static EQK_HD void store(T* p, const V* in, Store&& put) {
    constexpr auto lanes = std::make_integer_sequence<int, W>{};
    V a[D], b[D];
    unroll<D>([&](auto c) EQK_LAMBDA { a[c] = scatter_channels<c>(in[c], lanes); });
    unroll<steps()>([&](auto s) EQK_LAMBDA {
      EQK_UNROLL for (int c = 0; c < D; ++c) b[c] = blend<s>(a[c], a[(c + (1 << s)) % D], lanes);
      EQK_UNROLL for (int c = 0; c < D; ++c) a[c] = b[c];
    });
    unroll<D>([&](auto r) EQK_LAMBDA { put(p + r * W, a[component_of(r)], r * W); });
  }
};

template <class T, int W>
struct Interleave<T, W, 1> {
  using V = Vector<T, W>;
  template <class Load>
  static EQK_HD void load(const T* p, V* out, Load&& get) {
    out[0] = get(p, 0);
  }
  template <class Store>
  static EQK_HD void store(T* p, const V* in, Store&& put) {
    put(p, in[0], 0);
  }
};

// n <= W channels of D components at p, either layout; lanes beyond n are zero. ir_mul: components are `pitch` apart.
template <int D, class T, int W>
EQK_HD void load_channels(const T* p, bool mul_ir, std::int64_t pitch, std::int64_t n, Vector<T, W>* out) {
  using Rows = Interleave<T, W, D>;
  if (!mul_ir)
    EQK_UNROLL for (int c = 0; c < D; ++c) out[c] = load_n<T, W>(p + c * pitch, n);
  else if (n >= W) [[likely]]
    Rows::load(p, out, [](const T* q, int) EQK_LAMBDA { return eqk::load<T, W>(q); });
  else
    Rows::load(p, out, [&](const T* q, int first) EQK_LAMBDA {
      return load_n<T, W>(q, std::clamp<std::int64_t>(n * D - first, 0, W));
    });
}

template <int D, class T, int W>
EQK_HD void store_channels(T* p, bool mul_ir, std::int64_t pitch, std::int64_t n, const Vector<T, W>* in,
                           bool streamed) {
  using V = Vector<T, W>;
  using Rows = Interleave<T, W, D>;
  if (!mul_ir)
    unroll<D>([&](auto c) EQK_LAMBDA {
      if (streamed)
        stream<T, W>(p + c * pitch, in[c]);
      else
        store_n<T, W>(p + c * pitch, in[c], n);
    });
  else if (streamed)
    Rows::store(p, in, [](T* q, V v, int) EQK_LAMBDA { stream<T, W>(q, v); });
  else if (n >= W) [[likely]]
    Rows::store(p, in, [](T* q, V v, int) EQK_LAMBDA { eqk::store<T, W>(q, v); });
  else
    Rows::store(p, in, [&](T* q, V v, int first) EQK_LAMBDA {
      store_n<T, W>(q, v, std::clamp<std::int64_t>(n * D - first, 0, W));
    });
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
}  // namespace eqk
