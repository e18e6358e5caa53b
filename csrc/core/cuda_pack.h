#pragma once
// What the lanes of CUDA kernels hold and move: vectors of adjacent elements.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace eqk {

// N adjacent elements of memory, moved by one instruction where they are aligned to their size.
template <class Storage, int N>
struct Pack {
  static constexpr int kBytes = sizeof(Storage) * N, kWords = kBytes / 4;
  std::uint32_t word[kWords];

  // The vector instructions are spelled out because nvcc splits the copy of a struct into scalar accesses.
  __device__ __forceinline__ void load(const Storage* p) {
    if constexpr (kWords == 4)
      asm("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
          : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
          : "l"(p));
    else if constexpr (kWords == 2)
      asm("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(word[0]), "=r"(word[1]) : "l"(p));
    else
      asm("ld.global.u32 %0, [%1];" : "=r"(word[0]) : "l"(p));
  }

  // Where `wanted` is zero, the pack stays as it is. The instruction is predicated: a branch would cost the warp more.
  __device__ __forceinline__ void load_if(std::uint32_t wanted, const Storage* p) {
    if constexpr (kWords == 4)
      asm volatile("{.reg .pred p;\n setp.ne.u32 p, %4, 0;\n @p ld.global.v4.u32 {%0, %1, %2, %3}, [%5];}"
                   : "+r"(word[0]), "+r"(word[1]), "+r"(word[2]), "+r"(word[3])
                   : "r"(wanted), "l"(p));
    else if constexpr (kWords == 2)
      asm volatile("{.reg .pred p;\n setp.ne.u32 p, %2, 0;\n @p ld.global.v2.u32 {%0, %1}, [%3];}"
                   : "+r"(word[0]), "+r"(word[1])
                   : "r"(wanted), "l"(p));
    else
      asm volatile("{.reg .pred p;\n setp.ne.u32 p, %1, 0;\n @p ld.global.u32 %0, [%2];}"
                   : "+r"(word[0])
                   : "r"(wanted), "l"(p));
  }

  __device__ __forceinline__ void store(Storage* p) const {
    if constexpr (kWords == 4)
      asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(word[0]), "r"(word[1]), "r"(word[2]),
                   "r"(word[3])
                   : "memory");
    else if constexpr (kWords == 2)
      asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(p), "r"(word[0]), "r"(word[1]) : "memory");
    else
      asm volatile("st.global.u32 [%0], %1;" ::"l"(p), "r"(word[0]) : "memory");
  }

  __device__ __forceinline__ void load_shared(const Storage* p) {
    if constexpr (kWords == 4) {
      const uint4 v = *reinterpret_cast<const uint4*>(p);
      word[0] = v.x, word[1] = v.y, word[2] = v.z, word[3] = v.w;
    } else if constexpr (kWords == 2) {
      const uint2 v = *reinterpret_cast<const uint2*>(p);
      word[0] = v.x, word[1] = v.y;
    } else {
      word[0] = *reinterpret_cast<const std::uint32_t*>(p);
    }
  }

  __device__ __forceinline__ void store_shared(Storage* p) const {
    const auto at = static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
    if constexpr (kWords == 4)
      asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(word[0]), "r"(word[1]), "r"(word[2]),
                   "r"(word[3])
                   : "memory");
    else if constexpr (kWords == 2)
      asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(at), "r"(word[0]), "r"(word[1]) : "memory");
    else
      asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(word[0]) : "memory");
  }

  __device__ __forceinline__ Storage element(int n) const {
    if constexpr (sizeof(Storage) == 2) {
      const auto bits = static_cast<unsigned short>(word[n / 2] >> 16 * (n % 2));
      if constexpr (std::is_same_v<Storage, __half>)
        return __ushort_as_half(bits);
      else
        return __ushort_as_bfloat16(bits);
    } else {
      return get<Storage>(n);
    }
  }

  template <class T>
  __device__ __forceinline__ T get(int n) const {
    if constexpr (std::is_same_v<Storage, float>)
      return __uint_as_float(word[n]);
    else if constexpr (std::is_same_v<Storage, double>)
      return __hiloint2double(static_cast<int>(word[2 * n + 1]), static_cast<int>(word[2 * n]));
    else if constexpr (std::is_same_v<Storage, __half>)
      return __half2float(__ushort_as_half(static_cast<unsigned short>(word[n / 2] >> 16 * (n % 2))));
    else
      return __uint_as_float(n % 2 ? word[n / 2] & 0xffff0000u : word[n / 2] << 16);
  }

  template <class T>
  __device__ __forceinline__ void add(const Pack& more) {
#pragma unroll
    for (int n = 0; n < N; ++n) set(n, get<T>(n) + more.template get<T>(n));
  }

  template <class T>
  __device__ __forceinline__ void set(int n, T v) {
    if constexpr (std::is_same_v<Storage, float>) {
      word[n] = __float_as_uint(v);
    } else if constexpr (std::is_same_v<Storage, double>) {
      word[2 * n] = static_cast<std::uint32_t>(__double2loint(v));
      word[2 * n + 1] = static_cast<std::uint32_t>(__double2hiint(v));
    } else {
      std::uint32_t bits;
      if constexpr (std::is_same_v<Storage, __half>)
        bits = __half_as_ushort(__float2half_rn(v));
      else
        bits = __bfloat16_as_ushort(__float2bfloat16_rn(v));
      word[n / 2] = n % 2 ? (word[n / 2] & 0xffffu) | bits << 16 : bits;  // n increases
    }
  }
};

template <class T>
struct alignas(16) Four {
  T s[4];
};

// Sums values [0, N) over N adjacent lanes, N a power of two: at each step a lane hands half of them to its partner and
// keeps the other half. A lane ends with value lane % N in the first place.
template <int N, class T>
__device__ __forceinline__ void sum_over_lanes(T* v, int lane) {
  if constexpr (N > 1) {
    const bool upper = lane & N / 2;
#pragma unroll
    for (int n = 0; n < N / 2; ++n) {
      const T given = upper ? v[n] : v[n + N / 2], kept = upper ? v[n + N / 2] : v[n];
      v[n] = kept + __shfl_xor_sync(~0u, given, N / 2);
    }
    sum_over_lanes<N / 2>(v, lane);
  }
}

// The same value, of which the compiler knows nothing: what is computed from it stays where it is used. It would move
// the addresses of all degrees out of the loops over paths, and spill them.
__device__ __forceinline__ int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

}  // namespace eqk
