#pragma once
// The general kernel: SIMD lanes are rows. A block of W rows is transposed into vectors, after which every mode, any
// multiplicity and any degree is the same scalar program over vectors, driven by the coefficient tables.
#include <algorithm>
#include <cstdlib>

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
    for (const auto& path : lowered.paths) {
      pairs = std::max(pairs, static_cast<int>(path.cg->pairs.size()));
      components = std::max({components, 2 * path.l1 + 1, 2 * path.l2 + 1, 2 * path.l3 + 1});
    }
    const bool g = problem.in[kG].value != nullptr;
    const std::size_t inputs = dim[0] + dim[1] + (g ? dim[2] : 0) + pairs + 2 * components;
    const std::size_t outputs = (problem.out[kX].data ? dim[0] : 0) + (problem.out[kY].data ? dim[1] : 0) +
                                (problem.out[kG].data ? dim[2] : 0) + 2 * components;
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
  V *gx_, *gy_, *out_, *sum_x_, *sum_y_;
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

  // The weights of one path in their order in memory, W at a time.
  class WeightReader {
   public:
    WeightReader(const RowLanes& k, const Path& path, std::int64_t numel)
        : k_(k),
          in_(k.problem_.in[kW]),
          at_(path.weight_offset),
          end_(path.weight_offset + numel),
          weighted_(path.weighted),
          shared_(k.problem_.plan->weights == Weights::shared) {}

    S next() {
      if (!weighted_) return constant_one();
      if (shared_) {
        const std::int64_t q = at_++;
        const V v = splat<T, W>(from_storage<T>(static_cast<const Storage*>(in_.value)[q]));
        if constexpr (!kDual)
          return v;
        else
          return {v, in_.tangent ? splat<T, W>(from_storage<T>(static_cast<const Storage*>(in_.tangent)[q])) : V{}};
      }
      if (used_ == W) {
        const std::int64_t n = std::min<std::int64_t>(W, end_ - at_);
        k_.load_tile(in_.value, in_.stride, at_, n, value_);
        if constexpr (kDual) {
          if (in_.tangent)
            k_.load_tile(in_.tangent, in_.tangent_stride, at_, n, tangent_);
          else
            for (V& t : tangent_) t = V{};
        }
        used_ = 0;
      }
      ++at_;
      const int q = used_++;
      if constexpr (!kDual)
        return value_[q];
      else
        return {value_[q], tangent_[q]};
    }

   private:
    const RowLanes& k_;
    const Operand& in_;
    std::int64_t at_, end_;
    bool weighted_, shared_;
    int used_ = W;
    V value_[W], tangent_[kDual ? W : 1];
  };

  // Gradients of the weights of one path, in the same order.
  class WeightWriter {
   public:
    WeightWriter(const RowLanes& k, const Path& path)
        : k_(k),
          out_(k.problem_.out[kW]),
          at_(path.weight_offset),
          shared_(k.problem_.plan->weights == Weights::shared) {}

    void push(V v) {
      tile_[used_++] = v;
      if (used_ == W) flush();
    }

    void flush() {
      if (!used_) return;
      for (int q = used_; q < W; ++q) tile_[q] = V{};
      if (!shared_) {
        k_.store_tile(out_.data, out_.stride, at_, used_, tile_);
      } else {
        transpose<T, W>(tile_);
        V sum{};
        for (int lane = 0; lane < k_.rows_; ++lane) sum += tile_[lane];
        for (int q = 0; q < used_; ++q) k_.partial_[at_ + q] += sum[q];
      }
      at_ += used_;
      used_ = 0;
    }

   private:
    const RowLanes& k_;
    const Result& out_;
    std::int64_t at_;
    bool shared_;
    int used_ = 0;
    V tile_[W];
  };

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
    for (const auto& path : lowered_.paths) run_path(path);
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

  void run_path(const Path& p) {
    const Coupling& cg = *p.cg;
    const int pairs = static_cast<int>(cg.pairs.size()), d1 = 2 * p.l1 + 1, d2 = 2 * p.l2 + 1, d3 = 2 * p.l3 + 1;
    const T coefficient = static_cast<T>(p.coefficient);
    const bool want_gx = problem_.out[kX].data, want_gy = problem_.out[kY].data, want_out = problem_.out[kG].data;
    const bool want_gw = problem_.out[kW].data && p.weighted, want_h = want_gx || want_gy;
    if (!want_h && !want_out && !want_gw) return;
    std::int64_t weights = 0;
    if (p.weighted) for_pairs(p, [&](std::int64_t, std::int64_t, std::int64_t, std::int64_t n) { weights += n; });
    WeightReader reader(*this, p, weights);
    WeightWriter writer(*this, p);
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
        const S w = reader.next();
        const std::int64_t at = p.out.offset + c * p.out.channel;
        if (want_out)
          for (int k = 0; k < d3; ++k) fma_part(out_[at + k * p.out.component], w, t_[k]);
        if (want_gw) {
          V sum{};
          for (int k = 0; k < d3; ++k) fma_part(sum, t_[k], g_[at + k * p.out.component]);
          writer.push(sum);
        }
        if (want_h)
          for (int k = 0; k < d3; ++k) fma(h_[k], w, g_[at + k * p.out.component]);
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
    writer.flush();
  }
};

}  // namespace EQK_ISA
}  // namespace eqk::tensor_product
