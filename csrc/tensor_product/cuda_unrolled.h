#pragma once
// The kernel for paths whose y has one channel and whose degrees are at most EQK_LMAX. A block computes M[k, i] of its
// rows once, in shared memory; then a thread owns one channel of one row, keeps the components of its result in
// registers, and each path is straight-line code over the nonzero pairs (k, i).
#include "cg_table.h"
#include "core/scalar.h"
#include "tensor_product/cuda_kernels.h"

namespace eqk::tensor_product {

template <class T, bool kDual, Slot slot>
class Unrolled {
  using S = std::conditional_t<kDual, Dual<T>, T>;
  // Four numbers at a time: a 16-byte load, the same for all threads of a row.
  struct alignas(16) Four {
    S s[4];
  };

 public:
  __device__ __forceinline__ Unrolled(const SlotArguments& arguments, S* m) : a_(arguments), m_(m) {}

  __device__ __forceinline__ void block(std::int64_t first) {
    first_ = first;
    rows_ = static_cast<int>(a_.rows - first < a_.block_rows ? a_.rows - first : a_.block_rows);
    contract_y();
    __syncthreads();
    if constexpr (slot == kW) {
      for (int n = 0; n < a_.table.weighted_paths; ++n) {
        const DevicePath& p = a_.table.path[a_.table.weighted[n]];
        degree<0>(p.components[2] / 2, [&](auto l3) { weights<decltype(l3)::value>(p); });
      }
    } else {
      constexpr int s = slot == kG ? 2 : 0;
      for (int n = 0; n < a_.table.segments[s]; ++n) {
        const DeviceSegment& segment = a_.table.segment[s][n];
        degree<0>(segment.components / 2, [&](auto l) { accumulate<decltype(l)::value>(segment, a_.table.path_of); });
      }
    }
    __syncthreads();
  }

 private:
  const SlotArguments& a_;
  S* m_;
  std::int64_t first_ = 0;
  int rows_ = 0;

  // Calls f with the run-time degree l as a compile-time constant.
  template <int l, class F>
  static __device__ __forceinline__ void degree(int wanted, F&& f) {
    if (wanted == l) return f(constant<l>{});
    if constexpr (l < EQK_LMAX) degree<l + 1>(wanted, f);
  }

  __device__ __forceinline__ S load(Slot from, std::int64_t row, std::int64_t column) const {
    const Operand& in = a_.in[from];
    const T v = static_cast<const T*>(in.value)[row * in.stride + column];
    if constexpr (!kDual)
      return v;
    else
      return {v, in.tangent ? static_cast<const T*>(in.tangent)[row * in.tangent_stride + column] : T{0}};
  }

  __device__ __forceinline__ void contract_y() {
    const auto* const terms = static_cast<const DeviceTerm<T>*>(a_.table.m_term);
    for (int n = threadIdx.x; n < rows_ * a_.table.m_size; n += blockDim.x) {
      const int row = n / a_.table.m_size, number = n % a_.table.m_size;
      S sum{};
      for (int t = a_.table.m_range[number]; t < a_.table.m_range[number + 1]; ++t)
        fma(sum, load(kY, first_ + row, terms[t].column), terms[t].c);
      m_[row * a_.m_stride + number] = sum;
    }
  }

  // f(row in the block, channel) for every channel of every row of the block, the rows of a warp as few as can be.
  template <class F>
  __device__ __forceinline__ void for_channels(std::int64_t mul, F&& f) const {
    for (std::int64_t n = threadIdx.x; n < rows_ * mul; n += blockDim.x) f(static_cast<int>(n / mul), n % mul);
  }

  template <int d>
  __device__ __forceinline__ void load_components(S (&to)[d], Slot from, const View& v, std::int64_t row,
                                                  std::int64_t channel) const {
    const std::int64_t at = v.offset + channel * v.channel;
#pragma unroll
    for (int c = 0; c < d; ++c) to[c] = load(from, row, at + c * v.component);
  }

  // Calls f(pair, M of the pair) over the nonzero pairs of a path.
  template <class C, class F>
  static __device__ __forceinline__ void for_pairs(const S* m, F&& f) {
    eqk::unroll<(C::pairs + 3) / 4>([&](auto q) {
      const Four four = reinterpret_cast<const Four*>(m)[q];
      eqk::unroll<4>([&](auto r) {
        if constexpr (4 * decltype(q)::value + decltype(r)::value < C::pairs)
          f(constant<4 * decltype(q)::value + decltype(r)::value>{}, four.s[r]);
      });
    });
  }

  // Calls f(Cg) for the degrees of a path, of which `known` is one already: that of out, or of x if slot is x.
  template <int known, class F>
  static __device__ __forceinline__ void coupling(const DevicePath& p, F&& f) {
    degree<0>(p.components[slot == kX ? 2 : 0] / 2, [&](auto other) {
      degree<0>(p.components[1] / 2, [&](auto l2) {
        constexpr int b = decltype(l2)::value, l1 = slot == kX ? known : decltype(other)::value,
                      l3 = slot == kX ? decltype(other)::value : known;
        if constexpr (b >= (l1 > l3 ? l1 - l3 : l3 - l1) && b <= l1 + l3) f(Cg<l1, b, l3>{});
      });
    });
  }

  template <int l>
  __device__ __forceinline__ void accumulate(const DeviceSegment& segment, const std::int32_t* path_of) const {
    for_channels(segment.mul, [&](int block_row, std::int64_t u) {
      const std::int64_t row = first_ + block_row;
      T sum[2 * l + 1] = {};
      for (int n = segment.path_begin; n < segment.path_end; ++n) {
        const DevicePath& p = a_.table.path[path_of[n]];
        S w{};
        if (p.weighted) w = load(kW, row, p.weight_offset + u);
        coupling<l>(p, [&](auto cg) {
          using C = decltype(cg);
          constexpr int d = 2 * (slot == kX ? C::l3 : C::l1) + 1;
          S in[d];
          load_components(in, slot == kX ? kG : kX, p.view[slot == kX ? 2 : 0], row, u);
          if (p.weighted) {
#pragma unroll
            for (int c = 0; c < d; ++c) in[c] = mul(in[c], w);
          }
          for_pairs<C>(m_ + block_row * a_.m_stride + p.m_begin, [&](auto pair, const S& m) {
            constexpr int i = C::pair_i[decltype(pair)::value], k = C::pair_k[decltype(pair)::value];
            fma_part(sum[slot == kX ? i : k], in[slot == kX ? k : i], m);
          });
        });
      }
      const std::int64_t at =
          row * a_.out_stride + segment.offset + u * (segment.channels_adjacent ? 1 : segment.components);
      const std::int64_t step = segment.channels_adjacent ? segment.mul : 1;
#pragma unroll
      for (int c = 0; c < 2 * l + 1; ++c) static_cast<T*>(a_.out)[at + c * step] = sum[c];
    });
  }

  template <int l3>
  __device__ __forceinline__ void weights(const DevicePath& p) const {
    coupling<l3>(p, [&](auto cg) {
      using C = decltype(cg);
      for_channels(p.m1, [&](int block_row, std::int64_t u) {
        const std::int64_t row = first_ + block_row;
        S x[2 * C::l1 + 1], g[2 * C::l3 + 1];
        load_components(x, kX, p.view[0], row, u);
        load_components(g, kG, p.view[2], row, u);
        // h_i = sum_k M[k, i] g_k before the product with x_i: one multiply-add a pair.
        S h[2 * C::l1 + 1] = {};
        for_pairs<C>(m_ + block_row * a_.m_stride + p.m_begin, [&](auto pair, const S& m) {
          constexpr int i = C::pair_i[decltype(pair)::value], k = C::pair_k[decltype(pair)::value];
          fma(h[i], m, g[k]);
        });
        T sum = 0;
#pragma unroll
        for (int i = 0; i < 2 * C::l1 + 1; ++i) fma_part(sum, x[i], h[i]);
        static_cast<T*>(a_.out)[row * a_.out_stride + p.weight_offset + u] = sum;
      });
    });
  }
};

template <class T, bool kDual, Slot slot>
__device__ __forceinline__ void unrolled(const SlotArguments& a) {
  extern __shared__ __align__(16) unsigned char memory[];
  using S = std::conditional_t<kDual, Dual<T>, T>;
  Unrolled<T, kDual, slot> kernel(a, reinterpret_cast<S*>(memory));
  for (std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * a.block_rows; first < a.rows;
       first += static_cast<std::int64_t>(gridDim.x) * a.block_rows)
    kernel.block(first);
}

}  // namespace eqk::tensor_product
