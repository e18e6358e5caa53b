#pragma once
// The general kernel: SIMD lanes are rows. A block of W rows is transposed into vectors, after which every mode, any
// multiplicity and any degree is the same scalar program over vectors, driven by the coefficient tables.
#include <algorithm>
#include <cmath>

#include "core/aligned.h"
#include "core/lanes.h"
#include "tensor_product/cpu_kernels.h"

namespace eqk::tensor_product {
inline namespace EQK_ISA {

template <class T, class Storage, int W, bool kDual>
class RowLanes {
  using V = Vector<T, W>;
  using S = std::conditional_t<kDual, Dual<V>, V>;

 public:
  RowLanes(const Problem& problem, const Lowered& lowered, T* weight_partial)
      : problem_(problem), lowered_(lowered), partial_(weight_partial) {
    const auto& dim = problem.plan->dim;
    int pairs = 1, components = 1;
    std::int64_t collected = 0;
    for (const auto& path : lowered.paths) {
      pairs = std::max(pairs, static_cast<int>(path.cg->pairs.size()));
      components = std::max({components, 2 * path.l1 + 1, 2 * path.l2 + 1, 2 * path.l3 + 1});
      if (pairs_to_collect(path)) collected = std::max(collected, path.mo * (2 * path.l3 + 1));
    }
    const bool g = problem.in[kG].value != nullptr;
    const std::size_t inputs = dim[0] + dim[1] + (g ? dim[2] : 0) + pairs + 2 * components;
    const std::size_t outputs = (problem.out[kX].data ? dim[0] : 0) + (problem.out[kY].data ? dim[1] : 0) +
                                (problem.out[kG].data ? dim[2] + collected : 0) + 2 * components;
    memory_ = aligned_array<V>(inputs * (kDual ? 2 : 1) + outputs);
    S* s = reinterpret_cast<S*>(memory_.get());
    x_ = s, s += dim[0];
    y_ = s, s += dim[1];
    g_ = s, s += g ? dim[2] : 0;
    pair_ = s, s += pairs;
    t_ = s, s += components;
    h_ = s, s += components;
    V* v = reinterpret_cast<V*>(s);
    gx_ = v, v += problem.out[kX].data ? dim[0] : 0;
    gy_ = v, v += problem.out[kY].data ? dim[1] : 0;
    out_ = v, v += problem.out[kG].data ? dim[2] : 0;
    sum_out_ = v, v += problem.out[kG].data ? collected : 0;
    sum_x_ = v, v += components;
    sum_y_ = v;
  }

  void run(std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; row += W)
      block(row, static_cast<int>(std::min<std::int64_t>(W, end - row)));
  }

 private:
  const Problem& problem_;
  const Lowered& lowered_;
  T* partial_;
  AlignedArray<V> memory_;
  S *x_, *y_, *g_, *pair_, *t_, *h_;
  V *gx_, *gy_, *out_, *sum_out_, *sum_x_, *sum_y_;
  V w_[W], w_tangent_[kDual ? W : 1], gw_[W];
  std::int64_t w_begin_ = -W, gw_begin_ = 0;  // the columns of these tiles
  int gw_count_ = 0;
  std::int64_t row_ = 0;
  int rows_ = 0;

  static S constant_one() {
    if constexpr (kDual)
      return {splat<T, W>(1), V{}};
    else
      return splat<T, W>(1);
  }

  // Lanes beyond the last row repeat it: they compute something finite that is never stored.
  const Storage* row_pointer(const void* base, std::int64_t stride, int lane) const {
    return static_cast<const Storage*>(base) + (row_ + std::min(lane, rows_ - 1)) * stride;
  }

  // Columns [column, column + n) of the block, n <= W, one vector over rows each.
  void load_tile(const void* base, std::int64_t stride, std::int64_t column, std::int64_t n, V* tile) const {
    for (int lane = 0; lane < W; ++lane) tile[lane] = load_n<T, W>(row_pointer(base, stride, lane) + column, n);
    transpose<T, W>(tile);
  }

  void store_tile(void* base, std::int64_t stride, std::int64_t column, std::int64_t n, V* tile) const {
    transpose<T, W>(tile);
    for (int lane = 0; lane < rows_; ++lane)
      store_n<T, W>(static_cast<Storage*>(base) + (row_ + lane) * stride + column, tile[lane], n);
  }

  void load_operand(Slot slot, std::int64_t columns, S* to) const {
    const Operand& in = problem_.in[slot];
    V tile[W];
    for (std::int64_t c = 0; c < columns; c += W) {
      const std::int64_t n = std::min<std::int64_t>(W, columns - c);
      load_tile(in.value, in.stride, c, n, tile);
      if constexpr (!kDual) {
        for (int q = 0; q < n; ++q) to[c + q] = tile[q];
      } else {
        for (int q = 0; q < n; ++q) to[c + q] = {tile[q], V{}};
        if (!in.tangent) continue;
        load_tile(in.tangent, in.tangent_stride, c, n, tile);
        for (int q = 0; q < n; ++q) to[c + q].t = tile[q];
      }
    }
  }

  void store_result(Slot slot, std::int64_t columns, const V* from) const {
    if (!problem_.out[slot].data) return;
    V tile[W];
    for (std::int64_t c = 0; c < columns; c += W) {
      const std::int64_t n = std::min<std::int64_t>(W, columns - c);
      for (int q = 0; q < W; ++q) tile[q] = q < n ? from[c + q] : V{};
      store_tile(problem_.out[slot].data, problem_.out[slot].stride, c, n, tile);
    }
  }

  // Paths ask for their weights in order, most of them one after another in memory: W columns are read at a time, and
  // serve the paths that follow as well.
  S weight(std::int64_t q) {
    const Operand& in = problem_.in[kW];
    if (problem_.plan->weights == Weights::shared) {
      const auto read = [&](const void* base) {
        return base ? splat<T, W>(from_storage<T>(static_cast<const Storage*>(base)[q])) : V{};
      };
      if constexpr (kDual)
        return {read(in.value), read(in.tangent)};
      else
        return read(in.value);
    }
    if (q < w_begin_ || q >= w_begin_ + W) {
      w_begin_ = q;
      const std::int64_t n = std::min<std::int64_t>(W, problem_.plan->weight_numel - q);
      load_tile(in.value, in.stride, q, n, w_);
      if (kDual && in.tangent) load_tile(in.tangent, in.tangent_stride, q, n, w_tangent_);
    }
    if constexpr (kDual)
      return {w_[q - w_begin_], in.tangent ? w_tangent_[q - w_begin_] : V{}};
    else
      return w_[q - w_begin_];
  }

  // Gradients of weights, collected and written in the same way.
  void weight_gradient(std::int64_t q, V v) {
    if (q != gw_begin_ + gw_count_ || gw_count_ == W) {
      write_weight_gradients();
      gw_begin_ = q;
    }
    gw_[gw_count_++] = v;
  }

  void write_weight_gradients() {
    for (int q = gw_count_; q < W; ++q) gw_[q] = V{};
    if (gw_count_ && problem_.plan->weights == Weights::shared) {
      transpose<T, W>(gw_);
      V sum{};
      for (int lane = 0; lane < rows_; ++lane) sum += gw_[lane];
      for (int q = 0; q < gw_count_; ++q) partial_[gw_begin_ + q] += sum[q];
    } else if (gw_count_) {
      store_tile(problem_.out[kW].data, problem_.out[kW].stride, gw_begin_, gw_count_, gw_);
    }
    gw_count_ = 0;
  }

  void block(std::int64_t row, int rows) {
    row_ = row;
    rows_ = rows;
    const auto& dim = problem_.plan->dim;
    load_operand(kX, dim[0], x_);
    load_operand(kY, dim[1], y_);
    if (problem_.in[kG].value) load_operand(kG, dim[2], g_);
    if (problem_.out[kX].data)
      for (std::int64_t c = 0; c < dim[0]; ++c) gx_[c] = V{};
    if (problem_.out[kY].data)
      for (std::int64_t c = 0; c < dim[1]; ++c) gy_[c] = V{};
    if (problem_.out[kG].data)
      for (std::int64_t c = 0; c < dim[2]; ++c) out_[c] = V{};
    w_begin_ = -W;
    for (const auto& path : lowered_.paths) run_path(path);
    write_weight_gradients();
    store_result(kX, dim[0], gx_);
    store_result(kY, dim[1], gy_);
    store_result(kG, dim[2], out_);
  }

  // Calls f(u, v, first, count): the pair (u, v) feeds output channels [first, first + count), one weight each.
  template <class F>
  static void for_pairs(const Path& p, F&& f) {
    switch (p.mode) {
      case Mode::uvw:
        for (std::int64_t u = 0; u < p.m1; ++u)
          for (std::int64_t v = 0; v < p.m2; ++v) f(u, v, 0, p.mo);
        break;
      case Mode::uvu:
        for (std::int64_t u = 0; u < p.m1; ++u)
          for (std::int64_t v = 0; v < p.m2; ++v) f(u, v, u, 1);
        break;
      case Mode::uvv:
        for (std::int64_t u = 0; u < p.m1; ++u)
          for (std::int64_t v = 0; v < p.m2; ++v) f(u, v, v, 1);
        break;
      case Mode::uuw:
        for (std::int64_t u = 0; u < p.m1; ++u) f(u, u, 0, p.mo);
        break;
      case Mode::uuu:
        for (std::int64_t u = 0; u < p.m1; ++u) f(u, u, u, 1);
        break;
      case Mode::uvuv:
        for (std::int64_t u = 0; u < p.m1; ++u)
          for (std::int64_t v = 0; v < p.m2; ++v) f(u, v, u * p.m2 + v, 1);
        break;
      case Mode::uvu_lt_v:
        for (std::int64_t u = 0, q = 0; u < p.m1; ++u)
          for (std::int64_t v = u + 1; v < p.m2; ++v) f(u, v, q++, 1);
        break;
      case Mode::u_lt_vw:
        for (std::int64_t u = 0; u < p.m1; ++u)
          for (std::int64_t v = u + 1; v < p.m2; ++v) f(u, v, 0, p.mo);
        break;
    }
  }

  // Where every pair of channels feeds every channel of the output, one chain of additions over all of them would lose
  // digits: sums over so many pairs are collected first, about as many as there are such sums. 0: one sum is as good.
  static std::int64_t pairs_to_collect(const Path& p) {
    if (p.mode != Mode::uvw && p.mode != Mode::uuw && p.mode != Mode::u_lt_vw) return 0;
    constexpr std::int64_t kFew = 16;
    const double pairs = static_cast<double>(p.m1) * static_cast<double>(p.mode == Mode::uuw ? 1 : p.m2);
    return pairs > kFew ? std::max(kFew, static_cast<std::int64_t>(std::sqrt(pairs))) : 0;
  }

  void run_path(const Path& p) {
    const Coupling& cg = *p.cg;
    const int pairs = static_cast<int>(cg.pairs.size()), d1 = 2 * p.l1 + 1, d2 = 2 * p.l2 + 1, d3 = 2 * p.l3 + 1;
    const T coefficient = static_cast<T>(p.coefficient);
    const bool want_gx = problem_.out[kX].data, want_gy = problem_.out[kY].data, want_out = problem_.out[kG].data;
    const bool want_gw = problem_.out[kW].data && p.weighted, want_h = want_gx || want_gy;
    if (!want_h && !want_out && !want_gw) return;
    const S* const g = g_ + p.out.offset;
    V* const out = out_ + p.out.offset;
    const std::int64_t out_size = p.mo * d3, to_collect = want_out ? pairs_to_collect(p) : 0;
    V* const sum_out = to_collect ? sum_out_ : out;
    if (to_collect) std::fill_n(sum_out, out_size, V{});
    const auto add_collected = [&] {
      for (std::int64_t q = 0; q < out_size; ++q) {
        out[q] += sum_out[q];
        sum_out[q] = V{};
      }
    };
    std::int64_t next_weight = p.weight_offset, collected = 0;
    for_pairs(p, [&](std::int64_t u, std::int64_t v, std::int64_t first, std::int64_t count) {
      const S *x = x_ + p.x.offset + u * p.x.channel, *y = y_ + p.y.offset + v * p.y.channel;
      if (want_out || want_gw) {
        for (int q = 0; q < pairs; ++q)
          pair_[q] = mul(x[cg.pairs[q].i * p.x.component], y[cg.pairs[q].j * p.y.component]);
        for (int k = 0; k < d3; ++k) {
          S sum{};
          for (int e = cg.k_begin[k]; e < cg.k_begin[k + 1]; ++e)
            fma(sum, pair_[cg.by_k[e].at], static_cast<T>(cg.by_k[e].c));
          t_[k] = mul(sum, coefficient);
        }
      }
      if (want_h)
        for (int k = 0; k < d3; ++k) h_[k] = S{};
      for (std::int64_t c = first; c < first + count; ++c) {
        const S w = p.weighted ? weight(next_weight) : constant_one();
        const std::int64_t at = c * p.out.channel;
        if (want_out)
          for (int k = 0; k < d3; ++k) fma_part(sum_out[at + k * p.out.component], w, t_[k]);
        if (want_gw) {
          V sum{};
          for (int k = 0; k < d3; ++k) fma_part(sum, t_[k], g[at + k * p.out.component]);
          weight_gradient(next_weight, sum);
        }
        if (want_h)
          for (int k = 0; k < d3; ++k) fma(h_[k], w, g[at + k * p.out.component]);
        ++next_weight;
      }
      if (to_collect && ++collected == to_collect) {
        add_collected();
        collected = 0;
      }
      if (!want_h) return;
      for (int k = 0; k < d3; ++k) h_[k] = mul(h_[k], coefficient);
      // Summed for this pair of channels first: one chain of additions over all of them would lose digits.
      for (int i = 0; i < d1; ++i) sum_x_[i] = V{};
      for (int j = 0; j < d2; ++j) sum_y_[j] = V{};
      for (int q = 0; q < pairs; ++q) {
        S r{};
        for (int e = cg.pair_begin[q]; e < cg.pair_begin[q + 1]; ++e)
          fma(r, h_[cg.by_pair[e].at], static_cast<T>(cg.by_pair[e].c));
        const auto [i, j] = cg.pairs[q];
        if (want_gx) fma_part(sum_x_[i], r, y[j * p.y.component]);
        if (want_gy) fma_part(sum_y_[j], r, x[i * p.x.component]);
      }
      if (want_gx)
        for (int i = 0; i < d1; ++i) gx_[p.x.offset + u * p.x.channel + i * p.x.component] += sum_x_[i];
      if (want_gy)
        for (int j = 0; j < d2; ++j) gy_[p.y.offset + v * p.y.channel + j * p.y.component] += sum_y_[j];
    });
    if (collected) add_collected();
  }
};

}  // namespace EQK_ISA
}  // namespace eqk::tensor_product
