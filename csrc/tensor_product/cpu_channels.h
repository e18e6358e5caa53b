#pragma once
// The fast kernel: SIMD lanes are channels. A block of rows shares the coefficients M[k, i] = coefficient sum_j C[i, j,
// k] y[j], formed once with lanes over rows; then each nonzero (k, i) costs one multiply-add for W channels of a row.
// Scratch rows keep the components of W channels adjacent, [channel tile][component][lane], so that every access is a
// constant offset.
#include "core/contract.h"
#include "core/interleave.h"
#include "tensor_product/lowered.h"

namespace eqk::tensor_product {
inline namespace EQK_ISA {

inline constexpr int kRows = 8;  // rows of a block: the lanes of M; 16 was slower, its M leaves L1

template <class T>
inline constexpr int kWidth = EQK_VECTOR_BYTES / sizeof(T);

// One row during the paths of a plan; "c" is the operand with channels. Null: not there, or not wanted.
template <class T>
struct ChannelRow {
  using V = Vector<T, kWidth<T>>;
  bool out_mul_ir, stream_out, stream_gw;
  bool add_gw;             // rows share one gradient of w
  const T *c, *c_tangent;  // scratch rows of padded segments
  const T *w, *w_tangent, *g;
  T *out, *out_scratch, *gw;
  T* gc;                    // scratch row
  V* gs;                    // [component of the shared operand], to be summed over lanes
  const T *ones, *zeros;    // stand for weights of paths without, and for tangents that are not there
  T *g_buffer, *wc_buffer;  // a path of one row, for the gradient of the shared operand
};

// M of one path for the rows of a block: lanes are rows.
template <class T>
using Couple = void (*)(const ChannelPath&, const Vector<T, kRows>* shared, Vector<T, kRows>* m);

// m, m_tangent: the first pair of the path in the lane of the row.
template <class T>
using ChannelKernel = void (*)(const ChannelPath&, const ChannelRow<T>&, const T* m, const T* m_tangent);

// Rows first to last of a block whose results are summed in one scratch row; of each, its channels and its weights.
template <class T>
struct SummedRows {
  int first, last;
  const T *c[kRows], *w[kRows];
  const T* w_ahead[kRows];  // the weights of rows that come a block later
  T* out_scratch;
  const T* ones;
};

template <class T>
using SummedRowsKernel = void (*)(const ChannelPath&, const SummedRows<T>&, const T* m);

template <class T>
struct ChannelKernels {
  int pairs;
  Couple<T> couple;
  ChannelKernel<T> forward, backward, dual;
  SummedRowsKernel<T> forward_summed;
};

// Kernels of the paths of one degree lc, [ls][lo]; defined in cpu_channels.cpp, once for each degree.
template <class T, int lc>
const ChannelKernels<T> (&channel_kernels())[EQK_LMAX + 1][EQK_LMAX + 1];

template <int D, class T>
EQK_HD void write_out(const ChannelPath& p, const ChannelRow<T>& r, std::int64_t u, std::int64_t n,
                      const Vector<T, kWidth<T>>* acc) {
  constexpr int W = kWidth<T>;
  if (p.out_scratch < 0) {
    store_channels<D, T, W>(r.out + p.out.offset + u * p.out.channel, r.out_mul_ir, p.out.component, n, acc,
                            r.stream_out && n == W);
    return;
  }
  T* const o = r.out_scratch + p.out_scratch + u * D;
  unroll<D>([&](auto k) EQK_LAMBDA { store<T, W>(o + k * W, p.first ? acc[k] : load<T, W>(o + k * W) + acc[k]); });
}

// A row is read from its first to its last byte over all paths, and the next row follows it in memory: asks for what
// lies a fixed distance ahead, past the end of the row or not. Into L2, not L1: L1 has too few misses under way to hide
// memory behind arithmetic (half the time of a backward), and L2's own latency is short enough.
template <int kVectors, class T>
EQK_HD void prefetch(const T* p) {
  constexpr int kAhead = 8192 / sizeof(T), kIntoL2 = 2;
  for (int k = 0; k < kVectors; ++k) __builtin_prefetch(p + kAhead + k * kWidth<T>, 0, kIntoL2);
}

template <class C, class T>
void couple_path(const ChannelPath& p, const Vector<T, kRows>* shared, Vector<T, kRows>* m) {
  contract_y<C>(shared + p.shared.offset, static_cast<T>(p.coefficient), m);
}

template <class C, class T>
void forward_path(const ChannelPath& p, const ChannelRow<T>& r, const T* m, const T*) {
  constexpr int W = kWidth<T>, d1 = 2 * C::l1 + 1, d3 = 2 * C::l3 + 1;
  using V = Vector<T, W>;
  const T* const w = p.weighted ? r.w + p.weight_offset : r.ones;
  const T* const c = r.c + p.c_scratch;
  const auto m_of_row = [&](auto q) EQK_LAMBDA { return m[q * kRows]; };
  for (std::int64_t u = 0; u < p.channels; u += W) {
    prefetch<1>(w + u);
    const std::int64_t n = p.channels - u < W ? p.channels - u : W;
    const V weight = load_n<T, W>(w + u, n);
    V x[d1], acc[d3] = {};
    if constexpr (d1 <= d3) {
      unroll<d1>([&](auto i) EQK_LAMBDA { x[i] = weight * load<T, W>(c + u * d1 + i * W); });
      apply<C>(m_of_row, x, acc);
    } else {
      unroll<d1>([&](auto i) EQK_LAMBDA { x[i] = load<T, W>(c + u * d1 + i * W); });
      apply<C>(m_of_row, x, acc);
      unroll<d3>([&](auto k) EQK_LAMBDA { acc[k] = weight * acc[k]; });
    }
    write_out<d3>(p, r, u, n, acc);
  }
}

// Pairs [first, last) of a chunk of components i small enough for the sums over channels to stay in registers.
template <class C, int kFirstI, int kLastI>
struct PairRange {
  static constexpr int count_below(int i) {
    int n = 0;
    while (n < static_cast<int>(C::pairs) && C::pair_i[n] < i) ++n;
    return n;
  }
  static constexpr int first = count_below(kFirstI), last = count_below(kLastI);
};

// kTiles tiles of W channels from u on, the last of n; their sums stay in registers from row to row. Each number of M
// is read once for all tiles, and one component of x at a time lives in a register of each.
template <class C, class T, int kTiles>
EQK_HD void sum_tiles(const ChannelPath& p, const SummedRows<T>& r, const T* m, std::int64_t u, std::int64_t n) {
  constexpr int W = kWidth<T>, d1 = 2 * C::l1 + 1, d3 = 2 * C::l3 + 1, kIntoL2 = 2;
  using V = Vector<T, W>;
  T* const out = r.out_scratch + p.out_scratch + u * d3;
  V acc[kTiles][d3];
  unroll<kTiles>([&](auto t) EQK_LAMBDA {
    unroll<d3>([&](auto k) EQK_LAMBDA { acc[t][k] = load<T, W>(out + t * W * d3 + k * W); });
  });
  for (int e = r.first; e < r.last; ++e) {
    const T* const w = p.weighted ? r.w[e] + p.weight_offset + u : r.ones;
    const T* const c = r.c[e] + p.c_scratch + u * d1;
    const T* const m_of_row = m + e;
    V weight[kTiles], product[kTiles][d3] = {};
    unroll<kTiles>([&](auto t) EQK_LAMBDA {
      if (p.weighted) __builtin_prefetch(r.w_ahead[e] + p.weight_offset + u + t * W, 0, kIntoL2);
      weight[t] = kTiles > 1 ? load<T, W>(w + t * W) : load_n<T, W>(w, n);
    });
    unroll<d1>([&](auto i) EQK_LAMBDA {
      using Range = PairRange<C, i, i + 1>;
      V x[kTiles];
      unroll<kTiles>([&](auto t) EQK_LAMBDA {
        x[t] = load<T, W>(c + t * W * d1 + i * W);
        if constexpr (d1 <= d3) x[t] *= weight[t];
      });
      unroll<Range::last - Range::first>([&](auto q) EQK_LAMBDA {
        constexpr int pair = Range::first + q, k = C::pair_k[pair];
        const T s = m_of_row[pair * kRows];
        unroll<kTiles>([&](auto t) EQK_LAMBDA { (d1 <= d3 ? acc : product)[t][k] += s * x[t]; });
      });
    });
    if constexpr (d1 > d3)
      unroll<kTiles>(
          [&](auto t) EQK_LAMBDA { unroll<d3>([&](auto k) EQK_LAMBDA { acc[t][k] += weight[t] * product[t][k]; }); });
  }
  unroll<kTiles>([&](auto t) EQK_LAMBDA {
    unroll<d3>([&](auto k) EQK_LAMBDA { store<T, W>(out + t * W * d3 + k * W, acc[t][k]); });
  });
}

template <class C, class T>
void forward_summed_path(const ChannelPath& p, const SummedRows<T>& r, const T* m) {
  constexpr int W = kWidth<T>, d1 = 2 * C::l1 + 1, d3 = 2 * C::l3 + 1, kRegisters = EQK_VECTOR_BYTES == 64 ? 32 : 16;
  constexpr int kPerTile = (d1 <= d3 ? d3 : 2 * d3) + 2;
  constexpr int kTiles = 4 * kPerTile < kRegisters ? 4 : 2 * kPerTile < kRegisters ? 2 : 1;
  std::int64_t u = 0;
  if constexpr (kTiles > 1)
    for (; u + kTiles * W <= p.channels; u += kTiles * W) sum_tiles<C, T, kTiles>(p, r, m, u, W);
  for (; u < p.channels; u += W) sum_tiles<C, T, 1>(p, r, m, u, p.channels - u < W ? p.channels - u : W);
}

// gs[j] += coefficient sum C[i, j, k] sum_channels (w x_i) g_k, lanes not yet summed.
template <class C, class T>
EQK_HD void shared_gradient(const ChannelPath& p, const ChannelRow<T>& r, Vector<T, kWidth<T>>* gs) {
  constexpr int W = kWidth<T>, d1 = 2 * C::l1 + 1, d3 = 2 * C::l3 + 1;
  constexpr int kSums = EQK_VECTOR_BYTES == 64 ? 18 : 9, kPerI = (C::pairs + d1 - 1) / d1;
  constexpr int kChunk = kSums / kPerI < 1    ? 1
                         : kSums / kPerI < d1 ? kSums / kPerI
                                              : d1,
                kChunks = (d1 + kChunk - 1) / kChunk;
  using V = Vector<T, W>;
  unroll<kChunks>([&](auto chunk) EQK_LAMBDA {
    constexpr int i0 = chunk * kChunk, i1 = i0 + kChunk < d1 ? i0 + kChunk : d1;
    using Range = PairRange<C, i0, i1>;
    constexpr int n = Range::last - Range::first;
    if constexpr (n > 0) {
      V s[n] = {};
      for (std::int64_t u = 0; u < p.channels; u += W) {
        V g[d3], x[i1 - i0];
        unroll<d3>([&](auto k) EQK_LAMBDA { g[k] = load<T, W>(r.g_buffer + u * d3 + k * W); });
        unroll<i1 - i0>([&](auto i) EQK_LAMBDA { x[i] = load<T, W>(r.wc_buffer + u * d1 + (i0 + i) * W); });
        unroll<n>([&](auto q) EQK_LAMBDA {
          constexpr int pair = Range::first + q, i = C::pair_i[pair] - i0, k = C::pair_k[pair];
          s[q] += x[i] * g[k];
        });
      }
      contract_s<C, Range::first, Range::last>(s, static_cast<T>(p.coefficient), gs);
    }
  });
}

// kDual: the eps part of the same sums for x + eps x', y + eps y', w + eps w', and of the forward.
template <class C, class T, bool kDual>
void backward_path(const ChannelPath& p, const ChannelRow<T>& r, const T* m, const T* m_tangent) {
  constexpr int W = kWidth<T>, d1 = 2 * C::l1 + 1, d3 = 2 * C::l3 + 1;
  using V = Vector<T, W>;
  using S = std::conditional_t<kDual, Dual<V>, V>;
  // Where registers suffice, the sums over channels for the shared operand are formed in the same pass over them.
  constexpr int kVectorRegisters = EQK_VECTOR_BYTES == 64 ? 32 : 16;
  constexpr bool kOnePass = C::pairs + d3 + (kDual ? 4 : 2) * d1 + 4 <= kVectorRegisters;
  const bool want_out = kDual && r.out, want_gs = r.gs, want_gw = r.gw && p.weighted, want_gc = r.gc;
  const bool want_h = want_gw || want_gc;
  const T* const w = p.weighted ? r.w + p.weight_offset : r.ones;
  const T* const w_tangent = kDual && p.weighted && r.w_tangent ? r.w_tangent + p.weight_offset : r.zeros;
  const T* const c = r.c + p.c_scratch;
  const T* const c_tangent = kDual ? r.c_tangent + p.c_scratch : nullptr;
  V s[kOnePass ? C::pairs : 1] = {};
  const auto m_of_row = [&](auto q) EQK_LAMBDA {
    if constexpr (kDual)
      return Dual<T>{m[q * kRows], m_tangent[q * kRows]};
    else
      return m[q * kRows];
  };
  for (std::int64_t u = 0; u < p.channels; u += W) {
    prefetch<1>(w + u);
    if (r.g) prefetch<d3>(r.g + p.out.offset + u * d3);
    if constexpr (kDual) prefetch<1>(w_tangent + u);
    const std::int64_t n = p.channels - u < W ? p.channels - u : W;
    S weight, x[d1];
    if constexpr (kDual) {
      weight = {load_n<T, W>(w + u, n), load_n<T, W>(w_tangent + u, n)};
      unroll<d1>([&](auto i)
                     EQK_LAMBDA { x[i] = {load<T, W>(c + u * d1 + i * W), load<T, W>(c_tangent + u * d1 + i * W)}; });
    } else {
      weight = load_n<T, W>(w + u, n);
      unroll<d1>([&](auto i) EQK_LAMBDA { x[i] = load<T, W>(c + u * d1 + i * W); });
    }
    V g[d3] = {};
    if (want_h || want_gs)
      load_channels<d3, T, W>(r.g + p.out.offset + u * p.out.channel, r.out_mul_ir, p.out.component, n, g);
    if (want_h) {
      S h[d1] = {};
      apply_transposed<C>(m_of_row, g, h);
      if (want_gw) {
        V sum{};
        unroll<d1>([&](auto i) EQK_LAMBDA { fma_part(sum, x[i], h[i]); });
        T* const gw = r.gw + p.weight_offset + u;
        if (r.add_gw)
          store_n<T, W>(gw, load_n<T, W>(gw, n) + sum, n);
        else if (r.stream_gw && n == W)
          stream<T, W>(gw, sum);
        else
          store_n<T, W>(gw, sum, n);
      }
      if (want_gc) {
        T* const gc = r.gc + p.c_scratch + u * d1;
        unroll<d1>([&](auto i) EQK_LAMBDA {
          V sum = load<T, W>(gc + i * W);
          fma_part(sum, weight, h[i]);
          store<T, W>(gc + i * W, sum);
        });
      }
    }
    if (!want_gs && !want_out) continue;
    S wx[d1];
    unroll<d1>([&](auto i) EQK_LAMBDA { wx[i] = mul(weight, x[i]); });
    if (want_gs) {
      if constexpr (kOnePass) {
        unroll<C::pairs>([&](auto q) EQK_LAMBDA { s[q] += part(wx[C::pair_i[q]]) * g[C::pair_k[q]]; });
      } else {
        unroll<d3>([&](auto k) EQK_LAMBDA { store<T, W>(r.g_buffer + u * d3 + k * W, g[k]); });
        unroll<d1>([&](auto i) EQK_LAMBDA { store<T, W>(r.wc_buffer + u * d1 + i * W, part(wx[i])); });
      }
    }
    if constexpr (kDual) {
      if (want_out) {
        V acc[d3] = {};
        apply<C>(m_of_row, wx, acc);
        write_out<d3>(p, r, u, n, acc);
      }
    }
  }
  if (!want_gs) return;
  if constexpr (kOnePass)
    contract_s<C, 0, C::pairs>(s, static_cast<T>(p.coefficient), r.gs + p.shared.offset);
  else
    shared_gradient<C>(p, r, r.gs + p.shared.offset);
}

}  // namespace EQK_ISA
}  // namespace eqk::tensor_product
