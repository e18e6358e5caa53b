#pragma once
// Drives the kernels of cpu_channels.h over rows. The rows of a block share the making of M; each row then runs through
// all paths while its channels and their gradient lie in L1, and reads and writes memory from its first byte to its
// last.
#include <algorithm>
#include <cstdint>

#include "core/arena.h"
#include "core/interleave.h"
#include "tensor_product/cpu_channel_staging.h"
#include "tensor_product/cpu_kernels.h"

namespace eqk::tensor_product {
inline namespace EQK_ISA {

template <class T>
class ChannelLanes {
  static constexpr int W = kWidth<T>;
  using V = Vector<T, W>;
  using R = Vector<T, kRows>;

 public:
  // Whether this kernel is right for the problem, and better than the general one.
  static bool can_run(const Problem& problem, const Lowered& lowered) {
    return !lowered.channels.paths.empty() && !problem.in[kG].tangent && lane_utilisation(lowered.channels, W) > 0.25;
  }

  ChannelLanes(const Problem& problem, const Lowered& lowered, T* weight_partial)
      : problem_(problem), plan_(lowered.channels), weight_partial_(weight_partial) {
    c_slot_ = plan_.mirrored ? kY : kX;
    s_slot_ = plan_.mirrored ? kX : kY;
    const auto& dim = problem.plan->dim;
    s_dim_ = dim[s_slot_];
    const bool gc = problem.out[c_slot_].data, gs = problem.out[s_slot_].data, out = problem.out[kG].data;
    const std::int64_t duals = problem.dual ? 2 : 1;
    const bool forward = !problem.dual && !problem.in[kG].value;
    std::int64_t pairs = 0;
    for (const auto& p : plan_.paths) {
      const ChannelKernels<T>& k = kernels_of<T>(p);
      steps_.push_back({&p, k.couple, forward ? k.forward : problem.dual ? k.dual : k.backward, pairs});
      pairs += k.pairs;
    }
    T *ones, *zeros;
    memory_ = arena_memory([&](Arena& a) {
      m_ = a.template take<R>(duals * pairs);
      c_ = a.template take<T>(duals * plan_.c_size);
      shared_ = a.template take<R>(duals * s_dim_);
      gs_ = a.template take<V>(gs ? padded(kRows * s_dim_) : 0);
      row_.gc = a.template take<T>(gc ? plan_.c_size : 0);
      row_.out_scratch = a.template take<T>(out ? plan_.out_size : 0);
      g_ = a.template take<T>(problem.in[kG].value ? plan_.g_size : 0);
      row_.unwanted = a.template take<T>(forward ? 0 : plan_.max_channels * (2 * EQK_LMAX + 1));
      row_.ones = ones = a.template take<T>(plan_.max_channels);
      row_.zeros = zeros = a.template take<T>(plan_.max_channels);
    });
    std::fill_n(ones, plan_.max_channels, T{1});
    std::fill_n(zeros, plan_.max_channels, T{0});
    if (row_.unwanted) std::fill_n(row_.unwanted, plan_.max_channels * (2 * EQK_LMAX + 1), T{0});

    m_tangent_ = problem.dual ? m_ + pairs : m_;
    row_.out_mul_ir = problem.plan->layout[2] == Layout::mul_ir;
    row_.c = c_;
    row_.c_tangent = c_ + plan_.c_size;
    row_.g = g_;
    row_.ahead = kAhead<T>;
    row_.add_gw = weight_partial != nullptr;
    bool aligned_out = true, aligned_gw = true;
    for (const auto& p : plan_.paths) {
      aligned_out = aligned_out && p.channels % W == 0 && p.out.offset % W == 0;
      aligned_gw = aligned_gw && p.channels % W == 0 && p.weight_offset % W == 0;
    }
    row_.stream_out = aligned_out && streams(kG, dim[2]);
    row_.stream_gw = aligned_gw && !weight_partial && streams(kW, problem.plan->weight_numel);
    stream_gc_ = streams(c_slot_, dim[c_slot_]);
    for (const auto& s : plan_.c_segments) stream_gc_ = stream_gc_ && s.mul % W == 0 && s.memory.offset % W == 0;
  }

  void run(std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; row += kRows) {
      const int rows = static_cast<int>(end - row < kRows ? end - row : kRows);
      couple(row, rows);
      for (int e = 0; e < rows; ++e) {
        stage(row + e, e);
        const T *const m = reinterpret_cast<const T*>(m_) + e, *const mt = reinterpret_cast<const T*>(m_tangent_) + e;
        for (const Step& s : steps_) s.kernel(*s.path, row_, m + s.m * kRows, mt + s.m * kRows);
        finish(row + e);
      }
      // Rows of gs are adjacent in the result too.
      if (gs_) reduce_lanes<T>(gs_, rows * s_dim_, row_of_result(s_slot_, row));
    }
    stream_fence();
  }

 private:
  const Problem& problem_;
  const ChannelPlan& plan_;
  T* weight_partial_;
  AlignedArray<std::byte> memory_;
  Slot c_slot_, s_slot_;
  std::int64_t s_dim_;
  struct Step {
    const ChannelPath* path;
    Couple<T> couple;
    ChannelKernel<T> kernel;
    std::int64_t m;  // its first pair
  };
  std::vector<Step> steps_;
  R *m_, *m_tangent_;
  T *c_, *g_;
  R* shared_;
  V* gs_;
  bool stream_gc_;
  ChannelRow<T> row_{};

  bool streams(Slot slot, std::int64_t columns) const {
    const Result& r = problem_.out[slot];
    return r.data && reinterpret_cast<std::uintptr_t>(r.data) % sizeof(V) == 0 && r.stride % W == 0 &&
           problem_.rows * columns * static_cast<std::int64_t>(sizeof(T)) >= kStreamBytes;
  }

  static const T* row_of(const void* base, std::int64_t stride, std::int64_t row) {
    return static_cast<const T*>(base) + row * stride;
  }

  void stage_shared(const void* base, std::int64_t stride, std::int64_t row, int rows, R* to) {
    for (std::int64_t j = 0; j < s_dim_; ++j) to[j] = R{};
    if (!base) return;
    T* const t = reinterpret_cast<T*>(to);
    for (int e = 0; e < rows; ++e) {
      const T* const from = row_of(base, stride, row + e);
      for (std::int64_t j = 0; j < s_dim_; ++j) t[j * kRows + e] = from[j];
    }
  }

  void couple(std::int64_t row, int rows) {
    const Operand& s = problem_.in[s_slot_];
    stage_shared(s.value, s.stride, row, rows, shared_);
    for (const Step& step : steps_) step.couple(*step.path, shared_, m_ + step.m);
    if (problem_.dual) {
      stage_shared(s.tangent, s.tangent_stride, row, rows, shared_);
      for (const Step& step : steps_) step.couple(*step.path, shared_, m_tangent_ + step.m);
    }
    if (gs_)
      for (std::int64_t q = 0; q < padded(kRows * s_dim_); ++q) gs_[q] = V{};
  }

  void stage(std::int64_t row, int e) {
    const Operand &c = problem_.in[c_slot_], &w = problem_.in[kW], &g = problem_.in[kG];
    const bool mul_ir = problem_.plan->layout[c_slot_] == Layout::mul_ir;
    tensor_product::stage(plan_.c_segments, row_of(c.value, c.stride, row), mul_ir, c_);
    if (problem_.dual) {
      T* const tangent = c_ + plan_.c_size;
      if (c.tangent)
        tensor_product::stage(plan_.c_segments, row_of(c.tangent, c.tangent_stride, row), mul_ir, tangent);
      else
        for (std::int64_t q = 0; q < plan_.c_size; ++q) tangent[q] = 0;
    }
    if (g_) tensor_product::stage(plan_.g_segments, row_of(g.value, g.stride, row), row_.out_mul_ir, g_);
    row_.w = w.value ? row_of(w.value, w.stride, row) : nullptr;
    row_.w_tangent = w.tangent ? row_of(w.tangent, w.tangent_stride, row) : nullptr;
    row_.out = row_of_result(kG, row);
    row_.gw = weight_partial_ ? weight_partial_ : row_of_result(kW, row);
    row_.gs = gs_ ? gs_ + e * s_dim_ : nullptr;
    if (row_.gc)
      for (std::int64_t q = 0; q < plan_.c_size; ++q) row_.gc[q] = 0;
  }

  T* row_of_result(Slot slot, std::int64_t row) const {
    const Result& r = problem_.out[slot];
    return r.data ? static_cast<T*>(r.data) + row * r.stride : nullptr;
  }

  void finish(std::int64_t row) {
    const auto& layout = problem_.plan->layout;
    if (row_.out) {
      unstage(plan_.out_segments, row_.out_scratch, row_.out, row_.out_mul_ir, row_.stream_out);
      clear(plan_.out_untouched, row_.out);
    }
    if (row_.gc) {
      T* const to = row_of_result(c_slot_, row);
      unstage(plan_.c_segments, row_.gc, to, layout[c_slot_] == Layout::mul_ir, stream_gc_);
      clear(plan_.c_untouched, to);
    }
  }
};

}  // namespace EQK_ISA
}  // namespace eqk::tensor_product
