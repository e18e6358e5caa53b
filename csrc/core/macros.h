#pragma once
#include <cstddef>
#include <type_traits>
#include <utility>

#if defined(__CUDACC__)
#define EQK_HD __host__ __device__ __forceinline__
#define EQK_ROLLED _Pragma("unroll 1")  // a loop of which nvcc is not to make several
#else
#define EQK_HD inline __attribute__((always_inline))
#define EQK_ROLLED
#ifdef __clang__
#define EQK_UNROLL _Pragma("unroll")
#else
#define EQK_UNROLL _Pragma("GCC unroll 256")
#endif
#endif
#define EQK_LAMBDA __attribute__((always_inline))
// EQK_UNROLL, in code of the CPU, stands before a loop whose bounds are constants, for straight code where no index has
// to be a compile-time value: GCC takes half of the time that it takes for unroll(), each of whose steps is a function
// to inline.

namespace eqk {

template <int N>
using constant = std::integral_constant<int, N>;

template <class F, int... I>
EQK_HD constexpr void unroll_sequence(F&& f, std::integer_sequence<int, I...>) {
  (f(constant<I>{}), ...);
}

// Calls f(constant<0>{}), ..., f(constant<N - 1>{}): the index is a compile-time value inside f.
template <int N, class F>
EQK_HD constexpr void unroll(F&& f) {
  unroll_sequence(f, std::make_integer_sequence<int, N>{});
}

}  // namespace eqk
