#pragma once
// The kernel: lanes are channels, scalars are nested duals with one eps for each tangent. A task has nodes of one
// species and one tile of channels: it forms T (lowered.h) once, and then runs over its nodes, some at a time, so that
// each number of T and each index is read once for all of them.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "core/aligned.h"
#include "core/cpu_tile.h"
#include "core/lanes.h"
#include "symmetric_contraction/cpu_kernels.h"

namespace eqk::symmetric_contraction {
inline namespace EQK_ISA {

template <class V, int Tangents>
struct NestedOf {
  using type = Dual<typename NestedOf<V, Tangents - 1>::type>;
};
template <class V>
struct NestedOf<V, 0> {
  using type = V;
};
template <class V, int Tangents>
using Nested = typename NestedOf<V, Tangents>::type;

// Tangents: how many. TangentOfW: whether the weights may have one.
template <class T, int Tangents, bool TangentOfW>
class Contraction {
  static constexpr int W = Tile<T>::W, kParts = 1 << Tangents;
  static constexpr int kBatch = Tangents == 0 ? 8 : Tangents == 1 ? 4 : 1;  // nodes that registers have room for
  using V = Vector<T, W>;
  using S = Nested<V, Tangents>;
  using Weight = std::conditional_t<TangentOfW, S, V>;

 public:
  Contraction(const Problem& problem, const Lowered& lowered)
      : problem_(problem),
        plan_(lowered),
        want_gx_(problem.out[kX]),
        want_gw_(problem.out[kW]),
        want_out_(problem.out[kG]),
        x_(aligned_array<S>(kBatch * lowered.dim_in)),
        g_(aligned_array<S>(kBatch * lowered.dim_out)),
        z_(aligned_array<S>(kBatch * lowered.products.size())),
        h_(aligned_array<S>(kBatch * lowered.rows.size())),
        gz_(aligned_array<S>(kBatch * lowered.parents)),
        gx_(aligned_array<V>(kBatch * lowered.dim_in)),
        out_(aligned_array<V>(kBatch * lowered.dim_out)),
        w_(aligned_array<Weight>(lowered.groups)),
        t_(aligned_array<Weight>(lowered.entries())),
        gt_(aligned_array<V>(lowered.entries())),
        gg_(aligned_array<V>(lowered.groups)) {}

  void run(const Chunk& chunk, std::int64_t first_channel) {
    const Tile<T> tile(problem_.dtype, problem_.channels, first_channel);
    if (want_gx_ || want_out_) form_t(tile, chunk.weights);
    if (want_gw_) std::fill_n(gt_.get(), plan_.entries(), V{});
    std::int64_t n = 0;
    const auto run_all = [&](auto batch) {
      for (; n + batch <= chunk.count; n += batch) run_nodes<batch>(tile, chunk.nodes + n);
    };
    run_all(constant<kBatch>{});
    if constexpr (kBatch > 2) run_all(constant<2>{});
    if constexpr (kBatch > 1) run_all(constant<1>{});
    if (want_gw_) store_gw(tile, static_cast<T*>(chunk.gw));
  }

 private:
  const Problem& problem_;
  const Lowered& plan_;
  const bool want_gx_, want_gw_, want_out_;
  // [component or product or row][node]
  AlignedArray<S> x_, g_, z_, h_, gz_;
  AlignedArray<V> gx_, out_;
  AlignedArray<Weight> w_, t_;
  AlignedArray<V> gt_, gg_;

  // f(operand, part): the value, part 0, and the tangents. All other parts of an operand are zero.
  template <class F>
  void for_parts(Slot slot, const F& f) const {
    f(problem_.in[slot], 0);
    for (int t = 0; t < Tangents; ++t) f(problem_.tangents[t][slot], 1 << t);
  }

  template <class Scalar>
  static V* parts(Scalar* s) {
    return reinterpret_cast<V*>(s);
  }

  void form_t(const Tile<T>& tile, std::int64_t species) {
    std::fill_n(w_.get(), plan_.groups, Weight{});
    for_parts(kW, [&](const Operand& w, int part) {
      if (!w.data || (part && !TangentOfW)) return;
      for (std::size_t p = 0; p < plan_.paths.size(); ++p)
        if (const auto& c = plan_.paths[p]; c.at >= 0)
          parts(&w_[c.at])[part] +=
              c.template as<T>() *
              tile.load_channels_at(w.data, species * w.stride + static_cast<std::int64_t>(p) * w.path_stride);
    });
    const auto& u = plan_.by_entry;
    for (int e = 0; e < plan_.entries(); ++e) {
      Weight sum{};
      for (int q = u.begin[e]; q < u.begin[e + 1]; ++q) fma(sum, u.values[q].template as<T>(), w_[u.values[q].at]);
      t_[e] = sum;
    }
  }

  void store_gw(const Tile<T>& tile, T* gw) const {
    const auto& u = plan_.by_group;
    for (int n = 0; n < plan_.groups; ++n) {
      V sum{};
      for (int q = u.begin[n]; q < u.begin[n + 1]; ++q) sum += u.values[q].template as<T>() * gt_[u.values[q].at];
      gg_[n] = sum;
    }
    for (std::size_t p = 0; p < plan_.paths.size(); ++p) {
      const auto& c = plan_.paths[p];
      const V sum = c.at < 0 ? V{} : c.template as<T>() * gg_[c.at];
      store_n<T, W>(gw + static_cast<std::int64_t>(p) * problem_.channels + tile.first(), sum, tile.count());
    }
  }

  // Not inlined: registers are for one of its loops at a time.
  template <int N>
  __attribute__((noinline)) void run_nodes(const Tile<T>& tile, const std::int64_t* nodes) {
    load<N>(tile, nodes);
    form_products<N>();
    if (want_gx_) std::fill_n(gx_.get(), N * plan_.dim_in, V{});
    if (want_out_) std::fill_n(out_.get(), N * plan_.dim_out, V{});
    for (int r = 0; r < static_cast<int>(plan_.rows.size()); ++r) run_row<N>(r);
    if (want_gx_) gradient_of_products<N>();
    store<N>(tile, nodes);
  }

  template <int N>
  void load(const Tile<T>& tile, const std::int64_t* nodes) {
    std::fill_n(x_.get(), N * plan_.dim_in, S{});
    for_parts(kX, [&](const Operand& x, int part) {
      for (int b = 0; x.data && b < N; ++b)
        tile.load_matrix(x.data, nodes[b] * x.stride, plan_.dim_in, plan_.layout_in == Layout::mul_ir,
                         parts(&x_[b]) + part, N * kParts);
    });
    if (!want_gx_ && !want_gw_) return;
    std::fill_n(g_.get(), N * plan_.dim_out, S{});
    for_parts(kG, [&](const Operand& g, int part) {
      for (int b = 0; g.data && b < N; ++b) {
        V* const to = parts(&g_[b]) + part;
        if (plan_.layout_out == Layout::mul_ir)
          tile.load_irreps(g.data, nodes[b] * g.stride, plan_.out, to, N * kParts);
        else
          tile.load_matrix(g.data, nodes[b] * g.stride, plan_.dim_out, false, to, N * kParts);
      }
    });
  }

  template <int N>
  void form_products() {
    for (int b = 0; b < N; ++b) {
      z_[b] = S{};
      *parts(&z_[b]) = splat<T, W>(1);
    }
    for (std::size_t m = 1; m < plan_.products.size(); ++m) {
      const auto [parent, last] = plan_.products[m];
      const S *const z = &z_[parent * N], *const x = &x_[last * N];
      S* const to = &z_[m * N];
      if (parent)
        EQK_UNROLL for (int b = 0; b < N; ++b) to[b] = mul(z[b], x[b]);
      else
        EQK_UNROLL for (int b = 0; b < N; ++b) to[b] = x[b];
    }
  }

  template <int N>
  void run_row(int r) {
    const Row row = plan_.rows[r];
    const S *const x = &x_[row.last * N], *const g = &g_[row.out * N], *const z = z_.get();
    const int* const column = plan_.column.data();
    const Weight* const t = t_.get();
    if (want_gx_ || want_gw_) EQK_UNROLL for (int b = 0; b < N; ++b) h_[r * N + b] = mul(g[b], x[b]);
    if (want_gx_ || want_out_) {
      S s[N]{};
      for (int e = row.begin; e < row.end; ++e) {
        const Weight te = t[e];
        const S* const ze = z + column[e] * N;
        EQK_UNROLL for (int b = 0; b < N; ++b) fma(s[b], te, ze[b]);
      }
      if (want_out_) EQK_UNROLL for (int b = 0; b < N; ++b) fma_part(out_[row.out * N + b], x[b], s[b]);
      if (want_gx_) EQK_UNROLL for (int b = 0; b < N; ++b) fma_part(gx_[row.last * N + b], g[b], s[b]);
    }
    if (want_gw_) {
      S h[N];
      EQK_UNROLL for (int b = 0; b < N; ++b) h[b] = h_[r * N + b];
      for (int e = row.begin; e < row.end; ++e) {
        const S* const ze = z + column[e] * N;
        V sum{};
        EQK_UNROLL for (int b = 0; b < N; ++b) fma_part(sum, h[b], ze[b]);
        gt_[e] += sum;
      }
    }
  }

  // Children come after their parents: each product is complete when its turn comes.
  template <int N>
  void gradient_of_products() {
    const int* const begin = plan_.by_column.begin.data();
    const Use* const uses = plan_.by_column.values.data();
    const S *const h = h_.get(), *const z = z_.get();
    std::fill_n(gz_.get(), N * plan_.parents, S{});
    for (int m = static_cast<int>(plan_.products.size()) - 1; m > 0; --m) {
      const auto [parent, last] = plan_.products[m];
      S sum[N]{};
      if (m < plan_.parents) EQK_UNROLL for (int b = 0; b < N; ++b) sum[b] = gz_[m * N + b];
      for (int q = begin[m]; q < begin[m + 1]; ++q) {
        const Weight t = t_[uses[q].entry];
        const S* const hq = h + uses[q].row * N;
        EQK_UNROLL for (int b = 0; b < N; ++b) fma(sum[b], t, hq[b]);
      }
      V* const gx = &gx_[last * N];
      if (parent == 0) {
        EQK_UNROLL for (int b = 0; b < N; ++b) gx[b] += part(sum[b]);
        continue;
      }
      const S *const zp = z + parent * N, *const x = &x_[last * N];
      S* const gz = &gz_[parent * N];
      unroll<N>([&](auto b) EQK_LAMBDA {
        fma_part(gx[b], sum[b], zp[b]);
        fma(gz[b], sum[b], x[b]);
      });
    }
  }

  template <int N>
  void store(const Tile<T>& tile, const std::int64_t* nodes) const {
    const std::int64_t x_row = problem_.channels * plan_.dim_in, out_row = problem_.channels * plan_.dim_out;
    for (int b = 0; b < N; ++b) {
      if (want_gx_)
        tile.store_matrix(problem_.out[kX], nodes[b] * x_row, plan_.dim_in, plan_.layout_in == Layout::mul_ir, &gx_[b],
                          N);
      if (!want_out_) continue;
      if (plan_.layout_out == Layout::mul_ir)
        tile.store_irreps(problem_.out[kG], nodes[b] * out_row, plan_.out, &out_[b], N);
      else
        tile.store_matrix(problem_.out[kG], nodes[b] * out_row, plan_.dim_out, false, &out_[b], N);
    }
  }
};

template <class T, int Tangents, bool TangentOfW>
void run_contraction(const Problem& problem, const Lowered& lowered, const std::vector<Chunk>& chunks,
                     std::int64_t begin, std::int64_t end) {
  const std::int64_t tile = Tile<T>::W, tiles = (problem.channels + tile - 1) / tile;
  Contraction<T, Tangents, TangentOfW> contraction(problem, lowered);
  for (std::int64_t task = begin; task < end; ++task) contraction.run(chunks[task / tiles], task % tiles * tile);
}

}  // namespace EQK_ISA
}  // namespace eqk::symmetric_contraction
