#pragma once
// The fast kernel: SIMD lanes are channels. A block of rows shares the coefficients M[k, i] = coefficient sum_j C[i, j,
// k] y[j], formed once with lanes over rows; then each nonzero (k, i) costs one multiply-add for W channels of a row.
// Scratch rows keep the components of W channels adjacent, [channel tile][component][lane], so that every access is a
// constant offset.
#include "core/contract.h"
#include "core/interleave.h"
#include "core/prefetch.h"
#include "tensor_product/lowered.h"

namespace eqk::tensor_product {
inline namespace EQK_ISA {

inline constexpr int kRows = 8;  // rows of a block: the lanes of M; 16 was slower, its M leaves L1

// One row during the paths of a plan; "c" is the operand with channels. Null: not there, or not wanted.
template <class T>
struct ChannelRow {
  using V = Vector<T, kWidth<T>>;
  bool out_mul_ir, stream_out, stream_gw;
  bool add_gw;                 // rows share one gradient of w
  const T *c, *c_tangent, *g;  // scratch rows of padded segments
  const T *w, *w_tangent;
  std::int64_t ahead;  // to weights that are prefetched
  T *out, *out_scratch, *gw;
  T* gc;                  // scratch row
  V* gs;                  // [component of the shared operand], to be summed over lanes
  const T *ones, *zeros;  // stand for weights of paths without, and for tangents that are not there
  T* unwanted;            // a path of one row, for what is made along with something wanted
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

// A row that is read from its first to its last byte over all paths, while the next row follows it in memory: what to
// prefetch lies this far ahead, past the end of the row or not.
template <class T>
inline constexpr std::int64_t kAhead = 8192 / sizeof(T);

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
    prefetch(w + u + r.ahead);
    const std::int64_t n = p.channels - u < W ? p.channels - u : W;
    const V weight = load_n<T, W>(w + u, n);
    V x[d1], acc[d3] = {};
    if constexpr (d1 <= d3) {
      EQK_UNROLL for (int i = 0; i < d1; ++i) x[i] = weight * load<T, W>(c + u * d1 + i * W);
      apply<C>(m_of_row, x, acc);
    } else {
      EQK_UNROLL for (int i = 0; i < d1; ++i) x[i] = load<T, W>(c + u * d1 + i * W);
      apply<C>(m_of_row, x, acc);
      EQK_UNROLL for (int k = 0; k < d3; ++k) acc[k] = weight * acc[k];
    }
    write_out<d3>(p, r, u, n, acc);
  }
}

inline constexpr int kRegisters = EQK_VECTOR_BYTES == 64 ? 32 : 16;

// Tiles of channels that a loop takes at a time where each needs so many vector registers.
constexpr int tiles_at_once(int registers) {
  return 4 * registers <= kRegisters ? 4 : 2 * registers <= kRegisters ? 2 : 1;
}

// f(constant<tiles>, u, n): tiles of W channels from u on, each of n.
template <int kTiles, int W, class F>
EQK_HD void for_tiles(std::int64_t channels, F&& f) {
  std::int64_t u = 0;
  if constexpr (kTiles > 1)
    for (; u + kTiles * W <= channels; u += kTiles * W) f(constant<kTiles>{}, u, std::int64_t{W});
  for (; u < channels; u += W) f(constant<1>{}, u, channels - u < W ? channels - u : W);
}

// W channels of a scratch row and, on duals, of that of the tangent.
template <class T, bool kDual>
EQK_HD auto load_channel(const T* p, const T* tangent) {
  constexpr int W = kWidth<T>;
  if constexpr (kDual)
    return Dual<Vector<T, W>>{load<T, W>(p), load<T, W>(tangent)};
  else
    return load<T, W>(p);
}

// Weights of kTiles tiles and, on duals, their tangents, which the path may lack.
template <class T, bool kDual>
struct PathWeights {
  static constexpr int W = kWidth<T>;
  const T *w, *w_tangent;
  std::int64_t next;

  EQK_HD PathWeights(const ChannelPath& p, const ChannelRow<T>& r)
      : w(p.weighted ? r.w + p.weight_offset : r.ones),
        w_tangent(p.weighted && r.w_tangent ? r.w_tangent + p.weight_offset : r.zeros),
        next(r.ahead) {}

  template <int kTiles>
  EQK_HD auto load(constant<kTiles>, std::int64_t u, std::int64_t n, int t) const {
    const auto get = [&](const T* p)
                         EQK_LAMBDA { return kTiles > 1 ? eqk::load<T, W>(p + u + t * W) : load_n<T, W>(p + u, n); };
    if constexpr (kDual)
      return Dual<Vector<T, W>>{get(w), get(w_tangent)};
    else
      return get(w);
  }

  EQK_HD void ahead(std::int64_t u) const {
    prefetch(w + u + next);
    if constexpr (kDual) prefetch(w_tangent + u + next);
  }
};

// kTiles tiles of W channels from u on, the last of n; their sums stay in registers from row to row. Each number of M
// is read once for all tiles, and one component of x at a time lives in a register of each.
template <class C, class T, int kTiles>
EQK_HD void sum_tiles(const ChannelPath& p, const SummedRows<T>& r, const T* m, std::int64_t u, std::int64_t n) {
  constexpr int W = kWidth<T>, d1 = 2 * C::l1 + 1, d3 = 2 * C::l3 + 1;
  using V = Vector<T, W>;
  T* const out = r.out_scratch + p.out_scratch + u * d3;
  V acc[kTiles][d3];
  EQK_UNROLL for (int t = 0; t < kTiles; ++t) {
    EQK_UNROLL for (int k = 0; k < d3; ++k) acc[t][k] = load<T, W>(out + t * W * d3 + k * W);
  }
  for (int e = r.first; e < r.last; ++e) {
    const T* const w = p.weighted ? r.w[e] + p.weight_offset + u : r.ones;
    const T* const c = r.c[e] + p.c_scratch + u * d1;
    const T* const m_of_row = m + e;
    V weight[kTiles], product[kTiles][d3] = {};
    EQK_UNROLL for (int t = 0; t < kTiles; ++t) {
      if (p.weighted) prefetch(r.w_ahead[e] + p.weight_offset + u + t * W);
      weight[t] = kTiles > 1 ? load<T, W>(w + t * W) : load_n<T, W>(w, n);
    }
    unroll<d1>([&](auto i) EQK_LAMBDA {
      constexpr auto& pairs = kPairsByI<C>;
      V x[kTiles];
      EQK_UNROLL for (int t = 0; t < kTiles; ++t) {
        x[t] = load<T, W>(c + t * W * d1 + i * W);
        if constexpr (d1 <= d3) x[t] *= weight[t];
      }
      EQK_UNROLL for (int pair = pairs.begin[i]; pair < pairs.begin[i + 1]; ++pair) {
        const int k = C::pair_k[pair];
        const T s = m_of_row[pair * kRows];
        EQK_UNROLL for (int t = 0; t < kTiles; ++t)(d1 <= d3 ? acc : product)[t][k] += s * x[t];
      }
    });
    if constexpr (d1 > d3)
      unroll<kTiles>(
          [&](auto t) EQK_LAMBDA { EQK_UNROLL for (int k = 0; k < d3; ++k) acc[t][k] += weight[t] * product[t][k]; });
  }
  EQK_UNROLL for (int t = 0; t < kTiles; ++t) {
    EQK_UNROLL for (int k = 0; k < d3; ++k) store<T, W>(out + t * W * d3 + k * W, acc[t][k]);
  }
}

template <class C, class T>
void forward_summed_path(const ChannelPath& p, const SummedRows<T>& r, const T* m) {
  constexpr int W = kWidth<T>, d1 = 2 * C::l1 + 1, d3 = 2 * C::l3 + 1;
  for_tiles<tiles_at_once((d1 <= d3 ? d3 : 2 * d3) + 3), W>(p.channels,
                                                            [&](auto tiles, std::int64_t u, std::int64_t n)
                                                                EQK_LAMBDA { sum_tiles<C, T, tiles>(p, r, m, u, n); });
}

// Components [kFirst, kLast) of i or, by k, of k.
template <bool kByK, int kFirst, int kLast>
struct Components {
  static constexpr bool has(int i, int k) { return (kByK ? k : i) >= kFirst && (kByK ? k : i) < kLast; }
};

// How many components i have their sums for the shared operand in registers beside those of gradients().
template <class C, bool kDual>
constexpr int summed_components() {
  constexpr int kOthers = kDual ? 2 * (2 * C::l3 + 1) + 8 : 2 * C::l3 + 6;  // g, the output, and of w, x, h and gw
  int i = 0;
  while (i <= 2 * C::l1 && kPairsByI<C>.begin[i + 1] + kOthers <= kRegisters) ++i;
  return i;
}

// Tiles at a time where all sums for the shared operand are beside them.
template <class C, bool kDual>
constexpr int summed_tiles() {
  constexpr int kOfTile = 2 * C::l3 + 6;
  return !kDual && C::pairs + 2 * kOfTile <= kRegisters ? 2 : 1;
}

// With h[i] = sum_k M[k, i] g[k]: the gradients of w, sum_i x_i h_i, and of the operand with channels, w h. Each number
// of M is read once for all tiles; of i and k that one is the outer loop which takes fewer registers. kAll: in the same
// loop what shared_gradient() sums, for as many i as registers hold, and tangent_output().
template <class C, class T, bool kDual, bool kAll>
EQK_HD void gradients(const ChannelPath& p, const ChannelRow<T>& r, const T* m, const T* m_tangent) {
  constexpr int W = kWidth<T>, d1 = 2 * C::l1 + 1, d3 = 2 * C::l3 + 1, kDuals = kDual ? 2 : 1;
  constexpr int kIfByK = kDuals * d1 + 2, kIfByI = d3 + 2 * kDuals + 1;  // registers of a tile
  constexpr bool kByK = !kAll && kIfByK <= kIfByI;
  constexpr int kTiles = kAll ? summed_tiles<C, kDual>() : tiles_at_once(kByK ? kIfByK : kIfByI);
  constexpr int kSummed = kAll ? summed_components<C, kDual>() : 0;
  using V = Vector<T, W>;
  using S = std::conditional_t<kDual, Dual<V>, V>;
  const PathWeights<T, kDual> weights(p, r);
  const bool want_gw = r.gw && p.weighted, add_gw = want_gw && r.add_gw, stream_gw = want_gw && r.stream_gw;
  T* const gw = want_gw ? r.gw + p.weight_offset : r.unwanted;
  T* const gc = r.gc ? r.gc + p.c_scratch : r.unwanted;
  const auto m_of_row = [&](int pair) EQK_LAMBDA {
    if constexpr (kDual)
      return Dual<T>{m[pair * kRows], m_tangent[pair * kRows]};
    else
      return m[pair * kRows];
  };
  V s[C::pairs] = {};
  for_tiles<kTiles, W>(p.channels, [&](auto tiles, std::int64_t u, std::int64_t n) EQK_LAMBDA {
    constexpr int kCount = tiles;
    const T *const c = r.c + p.c_scratch + u * d1, *const c_tangent =
                                                       kDual ? r.c_tangent + p.c_scratch + u * d1 : nullptr;
    const T* const g = r.g + p.g_scratch + u * d3;
    S weight[kCount];
    V sum[kCount] = {};
    EQK_UNROLL for (int t = 0; t < kCount; ++t) {
      weights.ahead(u + t * W);
      weight[t] = weights.load(tiles, u, n, t);
    }
    const auto channel = [&](int t, int i) EQK_LAMBDA {
      const int at = t * W * d1 + i * W;
      return load_channel<T, kDual>(c + at, c_tangent + at);
    };
    const auto put = [&](auto i, const S(&h)[kCount]) EQK_LAMBDA {
      EQK_UNROLL for (int t = 0; t < kCount; ++t) {
        T* const to = gc + u * d1 + t * W * d1 + i * W;
        fma_part(sum[t], channel(t, i), h[t]);
        V total = load<T, W>(to);
        fma_part(total, weight[t], h[t]);
        store<T, W>(to, total);
      }
    };
    if constexpr (kByK) {
      constexpr auto& pairs = kPairsByK<C>;
      S h[d1][kCount] = {};
      unroll<d3>([&](auto k) EQK_LAMBDA {
        V g_k[kCount];
        EQK_UNROLL for (int t = 0; t < kCount; ++t) g_k[t] = load<T, W>(g + t * W * d3 + k * W);
        EQK_UNROLL for (int q = pairs.begin[k]; q < pairs.begin[k + 1]; ++q) {
          const int pair = pairs.pair[q];
          const auto number = m_of_row(pair);
          EQK_UNROLL for (int t = 0; t < kCount; ++t) fma(h[C::pair_i[pair]][t], number, g_k[t]);
        }
      });
      unroll<d1>([&](auto i) EQK_LAMBDA { put(i, h[i]); });
    } else {
      constexpr auto& pairs = kPairsByI<C>;
      V g_k[d3][kCount], out[d3] = {};
      unroll<d3>([&](auto k) EQK_LAMBDA {
        EQK_UNROLL for (int t = 0; t < kCount; ++t) g_k[k][t] = load<T, W>(g + t * W * d3 + k * W);
      });
      unroll<d1>([&](auto i) EQK_LAMBDA {
        S h[kCount] = {}, weighted[kCount];
        if constexpr (kAll) EQK_UNROLL for (int t = 0; t < kCount; ++t) weighted[t] = mul(weight[t], channel(t, i));
        EQK_UNROLL for (int pair = pairs.begin[i]; pair < pairs.begin[i + 1]; ++pair) {
          const int k = C::pair_k[pair];
          const auto number = m_of_row(pair);
          EQK_UNROLL for (int t = 0; t < kCount; ++t) fma(h[t], number, g_k[k][t]);
          if constexpr (i < kSummed)
            EQK_UNROLL for (int t = 0; t < kCount; ++t) s[pair] += part(weighted[t]) * g_k[k][t];
          if constexpr (kAll && kDual) fma_part(out[k], number, weighted[0]);
        }
        put(i, h);
      });
      if constexpr (kAll && kDual) write_out<d3>(p, r, u, n, out);
    }
    EQK_UNROLL for (int t = 0; t < kCount; ++t) {
      T* const to = gw + u + t * W;
      if (add_gw)
        store_n<T, W>(to, load_n<T, W>(to, n) + sum[t], n);
      else if (stream_gw && n == W)
        stream<T, W>(to, sum[t]);
      else
        store_n<T, W>(to, sum[t], n);
    }
  });
  if constexpr (kSummed > 0)
    contract_s<C>(s, static_cast<T>(p.coefficient), r.gs + p.shared.offset, Components<false, 0, kSummed>{});
}

// gs[j] += coefficient sum C[i, j, k] sum_channels (w x_i) g_k over i from kFrom on, lanes not yet summed: over all
// channels for as many components of the longer one of i and k as have their sums in registers.
template <class C, class T, bool kDual, int kFrom>
EQK_HD void shared_gradient(const ChannelPath& p, const ChannelRow<T>& r) {
  constexpr int W = kWidth<T>, d1 = 2 * C::l1 + 1, d3 = 2 * C::l3 + 1;
  constexpr bool kByK = d1 <= d3 && kFrom == 0;
  constexpr int kLong = kByK ? d3 : d1, kEach = (C::pairs + kLong - 1) / kLong, kSums = EQK_VECTOR_BYTES == 64 ? 21 : 9;
  constexpr int kChunk = kSums / kEach < 1 ? 1 : kSums / kEach < kLong ? kSums / kEach : kLong;
  constexpr int kTiles = kChunk * kEach <= kSums / 2 ? 2 : 1;  // few sums would wait for each other
  using V = Vector<T, W>;
  const PathWeights<T, kDual> weights(p, r);
  unroll<(kLong - kFrom + kChunk - 1) / kChunk>([&](auto chunk) EQK_LAMBDA {
    constexpr int first = kFrom + chunk * kChunk, last = first + kChunk < kLong ? first + kChunk : kLong;
    using Wanted = Components<kByK, first, last>;
    V s[kTiles][C::pairs] = {};
    for_tiles<kTiles, W>(p.channels, [&](auto tiles, std::int64_t u, std::int64_t n) EQK_LAMBDA {
      const T *const c = r.c + p.c_scratch + u * d1, *const c_tangent =
                                                         kDual ? r.c_tangent + p.c_scratch + u * d1 : nullptr;
      const T* const g = r.g + p.g_scratch + u * d3;
      unroll<static_cast<int>(tiles)>([&](auto t) EQK_LAMBDA {
        const auto weight = weights.load(tiles, u, n, t);
        const auto weighted = [&](int i) EQK_LAMBDA {
          const int at = t * W * d1 + i * W;
          return part(mul(weight, load_channel<T, kDual>(c + at, c_tangent + at)));
        };
        V x[d1];
        if constexpr (kByK) {
          constexpr auto& pairs = kPairsByK<C>;
          EQK_UNROLL for (int i = 0; i < d1; ++i) x[i] = weighted(i);
          unroll<last - first>([&](auto k) EQK_LAMBDA {
            const V g_k = load<T, W>(g + t * W * d3 + (first + k) * W);
            EQK_UNROLL for (int q = pairs.begin[first + k]; q < pairs.begin[first + k + 1]; ++q) {
              const int pair = pairs.pair[q];
              s[t][pair] += x[C::pair_i[pair]] * g_k;
            }
          });
        } else {
          constexpr auto& pairs = kPairsByI<C>;
          V g_k[d3];
          EQK_UNROLL for (int k = 0; k < d3; ++k) g_k[k] = load<T, W>(g + t * W * d3 + k * W);
          unroll<last - first>([&](auto i) EQK_LAMBDA {
            const V x_i = weighted(first + i);
            EQK_UNROLL for (int pair = pairs.begin[first + i]; pair < pairs.begin[first + i + 1]; ++pair) {
              s[t][pair] += x_i * g_k[C::pair_k[pair]];
            }
          });
        }
      });
    });
    EQK_UNROLL for (int pair = 0; pair < C::pairs; ++pair) {
      if (kTiles > 1 && Wanted::has(C::pair_i[pair], C::pair_k[pair])) s[0][pair] += s[kTiles - 1][pair];
    }
    contract_s<C>(s[0], static_cast<T>(p.coefficient), r.gs + p.shared.offset, Wanted{});
  });
}

// The forward's eps part on duals.
template <class C, class T>
EQK_HD void tangent_output(const ChannelPath& p, const ChannelRow<T>& r, const T* m, const T* m_tangent) {
  constexpr int W = kWidth<T>, d1 = 2 * C::l1 + 1, d3 = 2 * C::l3 + 1;
  constexpr bool kWeightFirst = 2 * C::pairs + 3 * d1 <= 3 * C::pairs + 2 * d3;
  using V = Vector<T, W>;
  using R = std::conditional_t<kWeightFirst, V, Dual<V>>;
  const PathWeights<T, true> weights(p, r);
  for_tiles<tiles_at_once((kWeightFirst ? d3 : 2 * d3) + 3), W>(
      p.channels, [&](auto tiles, std::int64_t u, std::int64_t n) EQK_LAMBDA {
        constexpr int kCount = tiles;
        const T *const c = r.c + p.c_scratch + u * d1, *const c_tangent = r.c_tangent + p.c_scratch + u * d1;
        Dual<V> weight[kCount];
        R acc[kCount][d3] = {};
        EQK_UNROLL for (int t = 0; t < kCount; ++t) weight[t] = weights.load(tiles, u, n, t);
        unroll<d1>([&](auto i) EQK_LAMBDA {
          constexpr auto& pairs = kPairsByI<C>;
          Dual<V> x[kCount];
          EQK_UNROLL for (int t = 0; t < kCount; ++t) {
            const int at = t * W * d1 + i * W;
            x[t] = load_channel<T, true>(c + at, c_tangent + at);
            if constexpr (kWeightFirst) x[t] = mul(weight[t], x[t]);
          }
          EQK_UNROLL for (int pair = pairs.begin[i]; pair < pairs.begin[i + 1]; ++pair) {
            const Dual<T> s{m[pair * kRows], m_tangent[pair * kRows]};
            EQK_UNROLL for (int t = 0; t < kCount; ++t) {
              if constexpr (kWeightFirst)
                fma_part(acc[t][C::pair_k[pair]], s, x[t]);
              else
                fma(acc[t][C::pair_k[pair]], s, x[t]);
            }
          }
        });
        EQK_UNROLL for (int t = 0; t < kCount; ++t) {
          V out[d3];
          unroll<d3>([&](auto k) EQK_LAMBDA {
            if constexpr (kWeightFirst)
              out[k] = acc[t][k];
            else
              out[k] = part(mul(weight[t], acc[t][k]));
          });
          write_out<d3>(p, r, u + t * W, n, out);
        }
      });
}

// All results in one loop, which reads operands once: where registers hold it. With sixteen it is no faster.
inline constexpr bool kAllAtOnce = EQK_VECTOR_BYTES == 64;

// kDual: the eps part of the same sums for x + eps x', y + eps y', w + eps w', and of the forward. Gradients of weights
// may be written where the weights are: they come last.
template <class C, class T, bool kDual>
void backward_path(const ChannelPath& p, const ChannelRow<T>& r, const T* m, const T* m_tangent) {
  const bool of_inputs = r.gc || (r.gw && p.weighted);
  if constexpr (kAllAtOnce) {
    if (of_inputs && r.gs && (!kDual || r.out)) {
      constexpr int kSummed = summed_components<C, kDual>();
      if constexpr (kSummed <= 2 * C::l1) shared_gradient<C, T, kDual, kSummed>(p, r);
      gradients<C, T, kDual, true>(p, r, m, m_tangent);
      return;
    }
  }
  if (r.gs) shared_gradient<C, T, kDual, 0>(p, r);
  if constexpr (kDual)
    if (r.out) tangent_output<C, T>(p, r, m, m_tangent);
  if (of_inputs) gradients<C, T, kDual, false>(p, r, m, m_tangent);
}

}  // namespace EQK_ISA
}  // namespace eqk::tensor_product
