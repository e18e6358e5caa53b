#pragma once
// SIMD vectors for the CPU kernels: the vector extension of gcc and clang. Included by code compiled once per
// instruction set, inside that instruction set's namespace, so that the linker never mixes two versions of a function.
#include <cstdint>
#include <type_traits>

#include "core/dtype.h"
#include "core/macros.h"
#include "core/scalar.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace eqk {
inline namespace EQK_ISA {

template <class T, int W>
struct VectorOf {
  typedef T type __attribute__((vector_size(W * sizeof(T))));
  typedef T unaligned __attribute__((vector_size(W * sizeof(T)), aligned(sizeof(T)), may_alias));
};
template <class T, int W>
using Vector = typename VectorOf<T, W>::type;

template <class T, int W>
EQK_HD Vector<T, W> load(const T* p) {
  return *reinterpret_cast<const typename VectorOf<T, W>::unaligned*>(p);
}

template <class T, int W>
EQK_HD void store(T* p, Vector<T, W> v) {
  *reinterpret_cast<typename VectorOf<T, W>::unaligned*>(p) = v;
}

template <class T, int W>
EQK_HD Vector<T, W> splat(T s) {
  return s - Vector<T, W>{};
}

// 16-bit storage types; arithmetic happens in float.
struct Half {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};

EQK_HD float to_float(BFloat16 b) { return __builtin_bit_cast(float, static_cast<std::uint32_t>(b.bits) << 16); }

EQK_HD float to_float(Half h) {
  const std::uint32_t sign = (h.bits & 0x8000u) << 16, magnitude = h.bits & 0x7fffu;
  // Exponent and mantissa shifted into place, and the bias of the exponent corrected: by 112, twice for infinity and
  // NaN. A subnormal is what 1/2 plus it exceeds 1/2 by. No operand is subnormal in float, where the machine may read
  // such a number as zero.
  const std::uint32_t normal = (magnitude << 13) + ((magnitude < 0x7c00u ? 112u : 224u) << 23);
  const float subnormal = __builtin_bit_cast(float, 0x3f000000u + magnitude) - 0.5f;
  return __builtin_bit_cast(float, (magnitude < 0x400u ? __builtin_bit_cast(std::uint32_t, subnormal) : normal) | sign);
}

EQK_HD BFloat16 to_storage(float f, BFloat16) {
  const std::uint32_t u = __builtin_bit_cast(std::uint32_t, f);
  const std::uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;  // round to nearest even
  return {static_cast<std::uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : rounded)};
}

EQK_HD Half to_storage(float f, Half) {
  const std::uint32_t u = __builtin_bit_cast(std::uint32_t, f), sign = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<std::uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {static_cast<std::uint16_t>(sign | 0x7c00u)};
  if (magnitude < 0x38800000u) {  // subnormal in half: adding 1/2 aligns the last place of the sum with half's
    const float sum = __builtin_bit_cast(float, magnitude) + 0.5f;
    return {static_cast<std::uint16_t>(sign | (__builtin_bit_cast(std::uint32_t, sum) - 0x3f000000u))};
  }
  const std::uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23);
  return {static_cast<std::uint16_t>(sign | (rounded >> 13))};
}

EQK_HD float to_float(float f) { return f; }

template <class T, class Storage>
EQK_HD T from_storage(Storage s) {
  if constexpr (std::is_same_v<T, Storage>)
    return s;
  else
    return to_float(s);
}

template <class Storage, class T>
EQK_HD Storage as_storage(T value) {
  if constexpr (std::is_same_v<T, Storage>)
    return value;
  else
    return to_storage(value, Storage{});
}

// f(T{}, Storage{}) of the types in which a dtype is computed and stored.
template <class F>
void with_types(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::float32:
      return f(float{}, float{});
    case Dtype::float64:
      return f(double{}, double{});
    case Dtype::float16:
      return f(float{}, Half{});
    case Dtype::bfloat16:
      return f(float{}, BFloat16{});
  }
}

// All bits of lane i are set where i < n.
template <class T, int W>
EQK_HD auto first_lanes(std::int64_t n) {
  using I = std::conditional_t<sizeof(T) == 8, std::int64_t, std::int32_t>;
  Vector<I, W> lane;
  for (int i = 0; i < W; ++i) lane[i] = i;
  return lane < splat<I, W>(static_cast<I>(n));
}

// The first n <= W elements at p, zero beyond, where nothing is read.
template <class T, int W, class Storage>
EQK_HD Vector<T, W> load_n(const Storage* p, std::int64_t n) {
  using V = Vector<T, W>;
  if constexpr (std::is_same_v<T, Storage>) {
    if (n >= W) [[likely]]
      return load<T, W>(p);
#if defined(__AVX512F__)
    if constexpr (W * sizeof(T) == 64) {
      const unsigned mask = (1u << n) - 1u;
      if constexpr (sizeof(T) == 8)
        return __builtin_bit_cast(V, _mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), p));
      else
        return __builtin_bit_cast(V, _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), p));
    }
#endif
#if defined(__AVX2__)
    if constexpr (W * sizeof(T) == 32) {
      const auto mask = __builtin_bit_cast(__m256i, first_lanes<T, W>(n));
      if constexpr (sizeof(T) == 8)
        return __builtin_bit_cast(V, _mm256_maskload_pd(p, mask));
      else
        return __builtin_bit_cast(V, _mm256_maskload_ps(p, mask));
    }
#endif
  }
  alignas(V) T tmp[W] = {};
  for (int i = 0; i < W; ++i)
    if (i < n) tmp[i] = from_storage<T>(p[i]);
  return load<T, W>(tmp);
}

template <class T, int W, class Storage>
EQK_HD void store_n(Storage* p, Vector<T, W> v, std::int64_t n) {
  if constexpr (std::is_same_v<T, Storage>) {
    if (n >= W) [[likely]]
      return store<T, W>(p, v);
#if defined(__AVX512F__)
    if constexpr (W * sizeof(T) == 64) {
      const unsigned mask = (1u << n) - 1u;
      if constexpr (sizeof(T) == 8)
        return _mm512_mask_storeu_pd(p, static_cast<__mmask8>(mask), __builtin_bit_cast(__m512d, v));
      else
        return _mm512_mask_storeu_ps(p, static_cast<__mmask16>(mask), __builtin_bit_cast(__m512, v));
    }
#endif
#if defined(__AVX2__)
    if constexpr (W * sizeof(T) == 32) {
      const auto mask = __builtin_bit_cast(__m256i, first_lanes<T, W>(n));
      if constexpr (sizeof(T) == 8)
        return _mm256_maskstore_pd(p, mask, __builtin_bit_cast(__m256d, v));
      else
        return _mm256_maskstore_ps(p, mask, __builtin_bit_cast(__m256, v));
    }
#endif
  }
  for (int i = 0; i < W; ++i)
    if (i < n) p[i] = as_storage<Storage>(v[i]);
}

namespace detail {
// One butterfly of the transposition: swaps the off-diagonal H x H blocks of rows a and b.
template <int H, bool High, class V, int... L>
EQK_HD V exchange(V a, V b, std::integer_sequence<int, L...>) {
  constexpr int W = sizeof...(L);
  return __builtin_shufflevector(a, b, (High ? ((L & H) ? W + L : L + H) : ((L & H) ? W + L - H : L))...);
}
template <int H, int W, class V>
EQK_HD void transpose_stage(V* r) {
  constexpr auto lanes = std::make_integer_sequence<int, W>{};
  unroll<W>([&](auto i) EQK_LAMBDA {
    if constexpr (!(i & H)) {
      const V a = r[i], b = r[i + H];
      r[i] = exchange<H, false>(a, b, lanes);
      r[i + H] = exchange<H, true>(a, b, lanes);
    }
  });
  if constexpr (H > 1) transpose_stage<H / 2, W>(r);
}
}  // namespace detail

// r[i][j] <-> r[j][i]
template <class T, int W>
EQK_HD void transpose(Vector<T, W>* r) {
  if constexpr (W > 1) detail::transpose_stage<W / 2, W>(r);
}

}  // namespace EQK_ISA
}  // namespace eqk
