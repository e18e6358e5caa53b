#pragma once
// Functions of vectors of lanes and their derivatives, as coefficients of Taylor series: a[n] = f^(n)(x) / n!.
#include <array>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <limits>
#include <numbers>
#include <type_traits>

#include "core/lanes.h"
#include "s2_activation/plan.h"

namespace eqk::s2_activation {
inline namespace EQK_ISA {

template <class T>
struct Bits;
template <>
struct Bits<float> {
  using Int = std::int32_t;
  static constexpr int kMantissa = 23, kBias = 127;
  // c of exp(r) - 1 = r + r^2 (c_0 + c_1 r + ...), |r| <= log(2) / 2: the largest error relative to it, 2e-8, is the
  // smallest that there is (a linear program on 4000 points).
  static constexpr float kSeries[] = {0x1.fffffep-2f, 0x1.5554bp-3f, 0x1.555674p-5f, 0x1.1227bp-7f, 0x1.6bebfcp-10f};
  static constexpr float kLimit = 87, kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;
};
template <>
struct Bits<double> {
  using Int = std::int64_t;
  static constexpr int kMantissa = 52, kBias = 1023;
  static constexpr double kSeries[] = {1.0 / 2,       1.0 / 6,        1.0 / 24,        1.0 / 120,
                                       1.0 / 720,     1.0 / 5040,     1.0 / 40320,     1.0 / 362880,
                                       1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};
  static constexpr double kLimit = 708, kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33;
};

// x between -limit and limit. What is no number stays so or, of an instruction less, becomes the limit.
template <class T, int W, bool kKeepsNan = true>
EQK_HD Vector<T, W> clamped(Vector<T, W> x, Vector<T, W> limit) {
#if defined(__AVX512DQ__)
  if constexpr (W * sizeof(T) == 64 && sizeof(T) == 4) {
    const auto a = __builtin_bit_cast(__m512, x), b = __builtin_bit_cast(__m512, limit);
    constexpr int kSmallerWithSignOfFirst = 2;
    return __builtin_bit_cast(Vector<T, W>, kKeepsNan
                                                ? _mm512_maskz_max_ps(0xffff, -b, _mm512_maskz_min_ps(0xffff, b, a))
                                                : _mm512_maskz_range_ps(0xffff, a, b, kSmallerWithSignOfFirst));
  }
#endif
  x = x > limit ? limit : x;
  return x < -limit ? -limit : x;
}

// 1 / x of normal numbers, to the last bit or two.
template <class T, int W>
EQK_HD Vector<T, W> reciprocal(Vector<T, W> x) {
#if defined(__AVX512F__)
  if constexpr (W * sizeof(T) == 64 && sizeof(T) == 4) {
    const auto r = __builtin_bit_cast(Vector<T, W>, _mm512_maskz_rcp14_ps(0xffff, __builtin_bit_cast(__m512, x)));
    return r + r * (1 - x * r);
  }
#endif
  return 1 / x;
}

// exp(x) = 2^n (1 + q) with q = exp(r) - 1 of |r| <= log(2) / 2. Beyond kLimit x is taken for it.
template <class T, int W>
struct Exponential {
  using V = Vector<T, W>;
  using B = Bits<T>;
  V power, q;

  EQK_HD explicit Exponential(V x) {
    x = clamped<T, W>(x, splat<T, W>(B::kLimit));
    // Adding this leaves the nearest integer in the last bits.
    const V magic = splat<T, W>(static_cast<T>(std::int64_t{3} << (B::kMantissa - 1)));
    const V shifted = x * static_cast<T>(std::numbers::log2e) + magic;
    const V n = shifted - magic;
#if defined(__FMA__)
    // One rounding, of the difference: what float's log(2) lacks is 2e-7 at most, at kLimit.
    const V r = sizeof(T) == 4 ? x - n * static_cast<T>(std::numbers::ln2) : (x - n * B::kLn2High) - n * B::kLn2Low;
#else
    const V r = (x - n * B::kLn2High) - n * B::kLn2Low;
#endif
    using I = Vector<typename B::Int, W>;
    const I bits = __builtin_bit_cast(I, shifted) - __builtin_bit_cast(I, magic);
    power = __builtin_bit_cast(V, (bits + B::kBias) << B::kMantissa);
    constexpr int kTerms = std::size(B::kSeries);
    V p = splat<T, W>(B::kSeries[kTerms - 1]);
    for (int k = kTerms - 2; k >= 0; --k) p = p * r + B::kSeries[k];
    q = r + r * r * p;
  }

  EQK_HD V exp() const { return power + power * q; }
  EQK_HD V exp_minus_one() const { return (power - 1) + power * q; }
};

// Roots of two for W floats that are a register's: exp(x) = 2^(n + k / kRoots) (1 + r c_1 + r^2 c_2 + ...), where one
// permutation, of one register or of two, finds 2^(k / kRoots).
template <int W>
struct Roots {
  static constexpr int kRoots = W == 16 ? 32 : 8;
  static constexpr int kShift = W == 16 ? 18 : 20;  // of n + k / kRoots to where a float has its exponent
  // The largest error relative to exp(r), |r| <= log(2) / (2 kRoots), is the smallest that there is (as Bits::kSeries):
  // 5.3e-8 of 32 roots, 2.7e-8 of 8.
  static constexpr auto kSeries = [] {
    if constexpr (W == 16)
      return std::array{0x1.0000f6p0f, 0x1.fffffep-2f};
    else
      return std::array{1.0f, 0x1.00087ep-1f, 0x1.5548eap-3f};
  }();

  // The bits of each rounded to float, less those that the shift leaves of k.
  static constexpr auto kBits = [] {
    constexpr float kOfTwo[] = {
        0x1p0f,        0x1.059b0ep0f, 0x1.0b5586p0f, 0x1.11301ep0f, 0x1.172b84p0f, 0x1.1d4874p0f, 0x1.2387a6p0f,
        0x1.29e9ep0f,  0x1.306fep0f,  0x1.371a74p0f, 0x1.3dea64p0f, 0x1.44e086p0f, 0x1.4bfdaep0f, 0x1.5342b6p0f,
        0x1.5ab07ep0f, 0x1.6247ecp0f, 0x1.6a09e6p0f, 0x1.71f75ep0f, 0x1.7a1148p0f, 0x1.82589ap0f, 0x1.8ace54p0f,
        0x1.93737cp0f, 0x1.9c4918p0f, 0x1.a5503cp0f, 0x1.ae89fap0f, 0x1.b7f77p0f,  0x1.c199bep0f, 0x1.cb720ep0f,
        0x1.d5818ep0f, 0x1.dfc974p0f, 0x1.ea4afap0f, 0x1.f50766p0f};
    std::array<std::array<std::int32_t, W>, kRoots / W> bits{};
    for (int k = 0; k < kRoots; ++k)
      bits[k / W][k % W] = __builtin_bit_cast(std::int32_t, kOfTwo[k * 32 / kRoots]) - (k << kShift);
    return bits;
  }();

  // At the last bits of each lane.
  EQK_HD static Vector<std::int32_t, W> at(Vector<std::int32_t, W> k) {
    using V = Vector<std::int32_t, W>;
    const V first = __builtin_bit_cast(V, kBits[0]);
#if defined(__AVX512F__)
    if constexpr (W == 16)
      return __builtin_bit_cast(
          V, _mm512_permutex2var_epi32(__builtin_bit_cast(__m512i, first), __builtin_bit_cast(__m512i, k),
                                       __builtin_bit_cast(__m512i, kBits[1])));
#endif
#if defined(__AVX2__)
    if constexpr (W == 8)
      return __builtin_bit_cast(
          V, _mm256_permutevar8x32_epi32(__builtin_bit_cast(__m256i, first), __builtin_bit_cast(__m256i, k)));
#endif
  }
};

#if defined(__AVX512F__)
inline constexpr int kRootLanes = 16;
#elif defined(__AVX2__)
inline constexpr int kRootLanes = 8;
#else
inline constexpr int kRootLanes = 0;
#endif

// addend + exp(-x); beyond kLimit as Exponential, and x is taken for it where it is no number and need not stay so.
template <class T, int W, bool kKeepsNan = true>
EQK_HD Vector<T, W> plus_exp_of_minus(T addend, Vector<T, W> x) {
  if constexpr (sizeof(T) == 4 && W == kRootLanes) {
    using V = Vector<T, W>;
    using R = Roots<W>;
    x = clamped<T, W, kKeepsNan>(x, splat<T, W>(Bits<T>::kLimit));
    const V magic = splat<T, W>(static_cast<T>((3 << 22) / R::kRoots));
    const V shifted = x * static_cast<T>(-std::numbers::log2e) + magic;
    const V r = -x - (shifted - magic) * static_cast<T>(std::numbers::ln2);
    const auto bits = __builtin_bit_cast(Vector<std::int32_t, W>, shifted);
    const V root = __builtin_bit_cast(V, R::at(bits) + (bits << R::kShift));
    V series = splat<T, W>(R::kSeries.back());
    for (std::size_t k = R::kSeries.size() - 1; k > 0; --k) series = series * r + R::kSeries[k - 1];
    return addend + root * (1 + r * series);
  } else {
    return addend + Exponential<T, W>(-x).exp();
  }
}

// f of each lane, for what has no loop of its own.
template <class T, int W, class F>
EQK_HD Vector<T, W> each_lane(Vector<T, W> x, const F& f) {
  for (int i = 0; i < W; ++i) x[i] = f(x[i]);
  return x;
}

// Coefficients of order 0 to K at x.
template <Function function, int K, class T, int W>
EQK_HD void taylor(Vector<T, W> x, Vector<T, W>* a) {
  using V = Vector<T, W>;
  const V zero{}, one = splat<T, W>(1);
  const auto inverse = [](int n) EQK_LAMBDA { return static_cast<T>(1.0 / n); };
  // y' = y (1 - y)
  const auto sigmoid = [&](V* s, int order) EQK_LAMBDA {
    // The products of silu and its derivatives with x keep what is no number.
    s[0] = reciprocal<T, W>(plus_exp_of_minus < T, W, function != Function::silu > (1, x));
    for (int n = 0; n < order; ++n) {
      V sum = s[n];
      for (int i = 0; i <= n; ++i) sum -= s[i] * s[n - i];
      s[n + 1] = sum * inverse(n + 1);
    }
  };
  for (int n = 0; n <= K; ++n) a[n] = zero;
  if constexpr (function == Function::identity) {
    a[0] = x;
    if (K > 0) a[1] = one;
  } else if constexpr (function == Function::square) {
    a[0] = x * x;
    if (K > 0) a[1] = 2 * x;
    if (K > 1) a[2] = one;
  } else if constexpr (function == Function::cube) {
    a[0] = x * x * x;
    if (K > 0) a[1] = 3 * (x * x);
    if (K > 1) a[2] = 3 * x;
    if (K > 2) a[3] = one;
  } else if constexpr (function == Function::quartic) {
    const V square = x * x;
    a[0] = square * square;
    if (K > 0) a[1] = 4 * (square * x);
    if (K > 1) a[2] = 6 * square;
    if (K > 2) a[3] = 4 * x;
    if (K > 3) a[4] = one;
  } else if constexpr (function == Function::relu) {
    a[0] = x < zero ? zero : x;  // not a number stays so
    if (K > 0) a[1] = x > zero ? one : zero;
  } else if constexpr (function == Function::abs) {
    a[0] = x < zero ? -x : x;
    if (K > 0) a[1] = x > zero ? one : x < zero ? -one : zero;
  } else if constexpr (function == Function::sigmoid) {
    sigmoid(a, K);
  } else if constexpr (function == Function::silu) {
    V s[K + 1];
    sigmoid(s, K);
    for (int n = 0; n <= K; ++n) a[n] = n ? x * s[n] + s[n - 1] : x * s[n];
  } else if constexpr (function == Function::tanh) {
    const V e = Exponential<T, W>(2 * x).exp_minus_one();  // no digits are lost where x is small
    a[0] = e / (e + 2);
    for (int n = 0; n < K; ++n) {  // y' = 1 - y^2
      V sum = n ? zero : one;
      for (int i = 0; i <= n; ++i) sum -= a[i] * a[n - i];
      a[n + 1] = sum * inverse(n + 1);
    }
  } else if constexpr (function == Function::gelu) {
    // x Phi with Phi' = phi the normal distribution, phi' = -x phi
    V phi[K + 1], distribution[K + 1];
    distribution[0] =
        each_lane<T, W>(x, [](T t) { return T(0.5) * std::erfc(-t * static_cast<T>(1 / std::numbers::sqrt2)); });
    phi[0] =
        plus_exp_of_minus<T, W>(0, x * x * T(0.5)) * static_cast<T>(std::numbers::inv_sqrtpi / std::numbers::sqrt2);
    for (int n = 0; n < K; ++n) {
      distribution[n + 1] = phi[n] * inverse(n + 1);
      phi[n + 1] = (x * phi[n] + (n ? phi[n - 1] : zero)) * -inverse(n + 1);
    }
    for (int n = 0; n <= K; ++n) a[n] = n ? x * distribution[n] + distribution[n - 1] : x * distribution[n];
  } else {
    // softplus, shifted by log(2): the derivative is the sigmoid
    a[0] = each_lane<T, W>(x, [](T t) {
      return std::max(t, T(0)) + std::log1p(std::exp(-std::abs(t))) -
             (function == Function::ssp ? static_cast<T>(std::numbers::ln2) : 0);
    });
    if constexpr (K > 0) {
      V s[K];
      sigmoid(s, K - 1);
      for (int n = 1; n <= K; ++n) a[n] = s[n - 1] * inverse(n);
    }
  }
}

// f^(K)(x)
template <Function function, int K, class T, int W>
EQK_HD Vector<T, W> derivative(Vector<T, W> x) {
  Vector<T, W> a[K + 1];
  taylor<function, K, T, W>(x, a);
  constexpr T factorial[] = {1, 1, 2, 6, 24};
  static_assert(K < 5);
  return a[K] * factorial[K];
}

}  // namespace EQK_ISA
}  // namespace eqk::s2_activation
