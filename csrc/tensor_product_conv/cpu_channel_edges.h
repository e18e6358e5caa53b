#pragma once
// Drives the kernels of tensor_product/cpu_channels.h over the edges of a graph, in the order of their destinations:
// the edges of a row of the result are summed in registers and in a scratch row, which goes to memory once.
#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "core/arena.h"
#include "core/cpu_sums.h"
#include "core/interleave.h"
#include "tensor_product/cpu_channel_staging.h"
#include "tensor_product_conv/cpu_edge_tiles.h"
#include "tensor_product_conv/cpu_kernels.h"
#include "tensor_product_conv/cpu_node_sums.h"

namespace eqk::tensor_product_conv {
inline namespace EQK_ISA {

using namespace tensor_product::EQK_ISA;
using tensor_product::ChannelPath;
using tensor_product::padded;

template <class T>
class EdgeLanes {
  static constexpr int W = kWidth<T>;
  using V = Vector<T, W>;
  using R = Vector<T, kRows>;

 public:
  static bool can_run(const Problem& problem, const ChannelPlan& plan) {
    return !plan.paths.empty() && !plan.mirrored && !problem.in[kG].tangent && lane_utilisation(plan, W) > 0.25;
  }

  static void stage_nodes(const Problem& problem, const ChannelPlan& plan, std::int64_t begin, std::int64_t end, T* x,
                          T* x_tangent) {
    const bool mul_ir = problem.plan->layout[0] == Layout::mul_ir;
    const Operand& in = problem.in[kX];
    for (std::int64_t n = begin; n < end; ++n) {
      stage(plan.c_segments, row_of(in.value, in.stride, n), mul_ir, x + n * plan.c_size);
      if (x_tangent)
        stage(plan.c_segments, row_of(in.tangent, in.tangent_stride, n), mul_ir, x_tangent + n * plan.c_size);
    }
  }

  static void collect(const Problem& problem, const ChannelPlan& plan, const std::vector<Part>& parts,
                      std::int64_t begin, std::int64_t end) {
    const bool mul_ir = problem.plan->layout[0] == Layout::mul_ir;
    for (std::int64_t n = begin; n < end; ++n) {
      T* const sum = static_cast<T*>(parts[0].gx[0]) + n * plan.c_size;
      for (const Part& part : parts)
        for (const void* rows : part.gx)
          if (rows && rows != parts[0].gx[0]) add_row(static_cast<const T*>(rows) + n * plan.c_size, plan.c_size, sum);
      T* const to = static_cast<T*>(problem.out[kX].data) + n * problem.out[kX].stride;
      unstage(plan.c_segments, sum, to, mul_ir, false);
      clear(plan.c_untouched, to);
    }
  }

  EdgeLanes(const Problem& problem, const ChannelPlan& plan, const Staged& staged, const Part& part)
      : problem_(problem),
        plan_(plan),
        edges_(*problem.edges),
        part_(part),
        x_(static_cast<const T*>(staged.x)),
        x_tangent_(static_cast<const T*>(staged.x_tangent)),
        gx_(part),
        tiles_(part.weights, problem.edges->row[part.end]) {
    const auto& dim = problem.plan->dim;
    const bool gy = problem.out[kY].data, out = problem.out[kG].data;
    const std::int64_t duals = problem.dual ? 2 : 1;
    summed_ = !problem.dual && !problem.in[kG].value;
    y_dim_ = dim[1];
    std::int64_t pairs = 0;
    steps_.reserve(plan_.paths.size());
    for (const auto& p : plan_.paths) {
      const ChannelKernels<T>& k = kernels_of<T>(p);
      steps_.push_back({&p, k.couple, problem.dual ? k.dual : k.backward, k.backward, k.forward_summed, pairs});
      pairs += k.pairs;
    }
    T *ones, *zeros, *no_tangent, *sums;
    memory_ = arena_memory([&](Arena& a) {
      m_ = a.template take<R>(duals * pairs);
      y_ = a.template take<R>(y_dim_);
      gy_lanes_ = a.template take<V>(gy ? padded(kRows * y_dim_) : 0);
      gy_ = a.template take<T>(gy ? padded(kRows * y_dim_) : 0);
      g_ = a.template take<T>(problem.in[kG].value ? plan_.g_size : 0);
      sums = a.template take<T>(out ? 3 * plan_.out_size : 0);
      row_.unwanted = a.template take<T>(summed_ ? 0 : plan_.max_channels * (2 * EQK_LMAX + 1));
      ones = a.template take<T>(plan_.max_channels);
      zeros = a.template take<T>(plan_.max_channels);
      no_tangent = a.template take<T>(problem.dual && !x_tangent_ ? plan_.c_size : 0);
    });
    std::fill_n(ones, plan_.max_channels, T{1});
    std::fill_n(zeros, plan_.max_channels, T{0});
    if (row_.unwanted) std::fill_n(row_.unwanted, plan_.max_channels * (2 * EQK_LMAX + 1), T{0});
    if (no_tangent) std::fill_n(no_tangent, plan_.c_size, T{0});
    no_tangent_ = no_tangent;
    m_tangent_ = problem.dual ? m_ + pairs : m_;
    row_.ones = ones;
    row_.zeros = zeros;
    row_.g = g_;
    if (sums) out_ = {sums, plan_.out_size};
    row_.out = row_.out_scratch = sums;
    block_.ones = ones;
    block_.out_scratch = sums;
    if (part.gw) {
      gw_.emplace(*problem.plan);
      row_.add_gw = true;
      row_.gw = gw_->few();
    } else if (const Result& gw = problem.out[kW]; gw.data) {
      bool aligned = reinterpret_cast<std::uintptr_t>(gw.data) % sizeof(V) == 0 && gw.stride % W == 0;
      for (const auto& p : plan_.paths) aligned = aligned && p.channels % W == 0 && p.weight_offset % W == 0;
      row_.stream_gw =
          aligned && edges_.count * problem.plan->weight_numel * static_cast<std::int64_t>(sizeof(T)) >= kStreamBytes;
    }
  }

  void run() {
    gx_.start(edges_.num_src, plan_.c_size, part_.add);
    if (part_.begin == part_.end) return;
    std::int64_t node = part_.begin;
    open(node);
    const std::int64_t end = edges_.row[part_.end];
    for (std::int64_t place = edges_.row[part_.begin]; place < end; place += kRows) {
      const int count = static_cast<int>(std::min<std::int64_t>(kRows, end - place));
      tiles_.at(place);
      couple(place, count);
      for (int e = 0; e < count;) {
        while (place + e == edges_.row[node + 1]) {
          close(node);
          open(++node);
        }
        const int last = static_cast<int>(std::min<std::int64_t>(count, edges_.row[node + 1] - place));
        if (summed_)
          sum(place, e, last);
        else
          differentiate(place, e, last);
        if (row_.out) out_.added(last - e);
        e = last;
      }
      if (gy_) put_gy(place, count);
      if (gw_) gw_->added(count);
    }
    tiles_.finish();
    close(node);
    while (++node < part_.end) {
      open(node);
      close(node);
    }
    if (gw_) gw_->add_to(static_cast<T*>(part_.gw));
    stream_fence();
  }

 private:
  struct Step {
    const ChannelPath* path;
    Couple<T> couple;
    ChannelKernel<T> kernel, value;
    SummedRowsKernel<T> sum;
    std::int64_t m;  // its first pair
  };

  const Problem& problem_;
  const ChannelPlan& plan_;
  const Edges& edges_;
  const Part& part_;
  const T *x_, *x_tangent_, *no_tangent_;
  NodeSums<T> gx_;
  bool summed_;  // the forward
  std::int64_t y_dim_;
  std::vector<Step> steps_;
  AlignedArray<std::byte> memory_;
  R *m_, *m_tangent_, *y_;
  V* gy_lanes_;
  T *gy_, *g_;
  Sum<T> out_;
  ChannelRow<T> row_{}, rows_[kRows];  // what all edges have in common, and edges of a block
  SummedRows<T> block_{};
  std::optional<WeightSum<T>> gw_;
  EdgeTiles<T> tiles_;

  static const T* row_of(const void* base, std::int64_t stride, std::int64_t row) {
    return base ? static_cast<const T*>(base) + row * stride : nullptr;
  }

  void open(std::int64_t node) {
    if (g_)
      stage(plan_.g_segments, row_of(problem_.in[kG].value, problem_.in[kG].stride, node),
            problem_.plan->layout[2] == Layout::mul_ir, g_);
    if (row_.out) out_.start();
  }

  void close(std::int64_t node) {
    if (!row_.out) return;
    T* const to = static_cast<T*>(problem_.out[kG].data) + node * problem_.out[kG].stride;
    unstage(plan_.out_segments, out_.total(), to, problem_.plan->layout[2] == Layout::mul_ir, false);
    clear(plan_.out_untouched, to);
  }

  void stage_y(const void* base, std::int64_t stride, std::int64_t place, int count) {
    for (std::int64_t j = 0; j < y_dim_; ++j) y_[j] = R{};
    if (!base) return;
    T* const t = reinterpret_cast<T*>(y_);
    for (int e = 0; e < count; ++e) {
      const T* const from = row_of(base, stride, edges_.edge_at(place + e));
      for (std::int64_t j = 0; j < y_dim_; ++j) t[j * kRows + e] = from[j];
    }
  }

  void couple(std::int64_t place, int count) {
    const Operand& y = problem_.in[kY];
    stage_y(y.value, y.stride, place, count);
    for (const Step& s : steps_) s.couple(*s.path, y_, m_ + s.m);
    if (problem_.dual) {
      stage_y(y.tangent, y.tangent_stride, place, count);
      for (const Step& s : steps_) s.couple(*s.path, y_, m_tangent_ + s.m);
    }
    if (gy_lanes_)
      for (std::int64_t q = 0; q < padded(kRows * y_dim_); ++q) gy_lanes_[q] = V{};
  }

  const T* weights(std::int64_t place) const {
    if (tiles_) return tiles_.w(place);
    const Operand& w = problem_.in[kW];
    return row_of(w.value, w.stride, edges_.edge_at(place));
  }

  // Those of the edge that comes a block later.
  const T* weights_ahead(std::int64_t place) const {
    const std::int64_t end = tiles_ ? tiles_.end() : edges_.count;
    return weights(std::min(place + kRows, end - 1));
  }

  // Edges first to last of the block at `place`, which lead to one node.
  void sum(std::int64_t place, int first, int last) {
    block_.first = first;
    block_.last = last;
    for (int e = first; e < last; ++e) {
      block_.c[e] = x_ + edges_.src[place + e] * plan_.c_size;
      block_.w[e] = weights(place + e);
      block_.w_ahead[e] = weights_ahead(place + e);
    }
    const T* const m = reinterpret_cast<const T*>(m_);
    for (const Step& s : steps_) s.sum(*s.path, block_, m + s.m * kRows);
  }

  // Of edges first to last of the block at `place`, which lead to one node: path by path for all of them, so that a
  // path's code, its numbers of M and its part of the cotangent come from the nearest caches.
  void differentiate(std::int64_t place, int first, int last) {
    for (int e = first; e < last; ++e) {
      const std::int64_t edge = edges_.edge_at(place + e), src = edges_.src[place + e];
      ChannelRow<T>& row = rows_[e];
      row = row_;
      row.c = x_ + src * plan_.c_size;
      row.c_tangent = x_tangent_ ? x_tangent_ + src * plan_.c_size : no_tangent_;
      row.w = weights(place + e);
      row.ahead = weights_ahead(place + e) - row.w;
      if (tiles_) {
        row.w_tangent = tiles_.w_tangent(place + e);
        row.gw = tiles_.gw(place + e);
      } else {
        row.w_tangent = row_of(problem_.in[kW].tangent, problem_.in[kW].tangent_stride, edge);
        if (!row_.add_gw && problem_.out[kW].data)
          row.gw = static_cast<T*>(problem_.out[kW].data) + edge * problem_.out[kW].stride;
      }
      row.gs = gy_lanes_ ? gy_lanes_ + e * y_dim_ : nullptr;
      row.gc = gx_.row(src);
    }
    const T *const m = reinterpret_cast<const T*>(m_), *const mt = reinterpret_cast<const T*>(m_tangent_);
    for (const Step& s : steps_)
      for (int e = first; e < last; ++e) s.kernel(*s.path, rows_[e], m + s.m * kRows + e, mt + s.m * kRows + e);
    if (tiles_ && tiles_.gw_value(place)) {
      for (int e = first; e < last; ++e) {
        rows_[e].gw = tiles_.gw_value(place + e);
        rows_[e].gc = nullptr, rows_[e].gs = nullptr;
      }
      for (const Step& s : steps_)
        for (int e = first; e < last; ++e) s.value(*s.path, rows_[e], m + s.m * kRows + e, nullptr);
    }
    for (int e = first; e < last; ++e) gx_.added(edges_.src[place + e]);
  }

  void put_gy(std::int64_t place, int count) {
    const Result& r = problem_.out[kY];
    T* const to = static_cast<T*>(r.data);
    if (edges_.in_order() && !part_.add) return reduce_lanes<T>(gy_lanes_, count * y_dim_, to + place * r.stride);
    reduce_lanes<T>(gy_lanes_, count * y_dim_, gy_);
    for (int e = 0; e < count; ++e) {
      T* const row = to + edges_.edge_at(place + e) * r.stride;
      if (part_.add)
        add_row(gy_ + e * y_dim_, y_dim_, row);
      else
        std::copy_n(gy_ + e * y_dim_, y_dim_, row);
    }
  }
};

}  // namespace EQK_ISA
}  // namespace eqk::tensor_product_conv
