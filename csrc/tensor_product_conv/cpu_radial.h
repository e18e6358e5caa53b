#pragma once
// Weights w = h a of some edges at a time, and what their gradient gives h and a. With the cotangent gw of w:
// gh = gw a^T, ga = sum h^T gw. On duals each splits into two by the rule of Leibniz.
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/aligned.h"
#include "core/lanes.h"
#include "core/panel_product.h"
#include "tensor_product_conv/cpu_kernels.h"
#include "tensor_product_conv/problem.h"

namespace eqk::tensor_product_conv {
inline namespace EQK_ISA {

// Columns of the matrix, or of its tangent, in the accumulation type and in the panels of a product.
template <class T, class Storage>
class RadialMatrix {
 public:
  // data null: nothing is read of this matrix.
  RadialMatrix(const RadialProblem& p, const void* data, std::int64_t stride, const std::vector<std::int64_t>& columns,
               const PanelKernel<T>& kernel)
      : depth_(p.hidden), columns_(static_cast<std::int64_t>(columns.size())), kernel_(kernel), there_(data) {
    const auto* const from = static_cast<const Storage*>(data);
    if (!data) return;
    plain_ = packed(depth_, columns_, [&](auto row, auto column) { return from[row * stride + columns[column]]; });
    if (p.out[kHidden].data)
      transposed_ =
          packed(columns_, depth_, [&](auto row, auto column) { return from[column * stride + columns[row]]; });
  }

  explicit operator bool() const { return there_; }
  std::int64_t columns() const { return columns_; }

  // c (+)= b a of rows of hidden features b; both with rows that are adjacent up to a stride.
  void times(std::int64_t rows, const T* b, T* c, std::int64_t c_row, bool add) const {
    multiply(plain_, rows, depth_, columns_, b, depth_, c, c_row, add);
  }

  // c (+)= b a^T of rows of weights b.
  void transposed_times(std::int64_t rows, const T* b, std::int64_t b_row, T* c, bool add) const {
    multiply(transposed_, rows, columns_, depth_, b, b_row, c, depth_, add);
  }

 private:
  // In panels or, where products want it, split.
  struct Packed {
    AlignedArray<T> panels;
    AlignedArray<std::byte> split;
  };
  std::int64_t depth_, columns_;
  const PanelKernel<T>& kernel_;
  bool there_;
  Packed plain_, transposed_;

  void multiply(const Packed& right, std::int64_t rows, std::int64_t depth, std::int64_t columns, const T* b,
                std::int64_t b_row, T* c, std::int64_t c_row, bool add) const {
    const std::int64_t panel = kernel_.columns;
    kernel_.multiply({rows, depth, columns, b, b_row, 1, right.panels.get(), depth * panel, panel, c, c_row, add, 0,
                      right.split.get()});
  }

  // at(row, column) of a matrix.
  template <class At>
  Packed packed(std::int64_t rows, std::int64_t columns, const At& at) const {
    const std::int64_t panel = kernel_.columns, bytes = kernel_.split.bytes(rows, columns);
    const std::int64_t panels = (columns + panel - 1) / panel;
    Packed to;
    if (bytes) to.split = aligned_array<std::byte>(bytes);
    to.panels = aligned_array<T>((bytes ? 1 : panels) * panel * rows + 1);
    T* p = to.panels.get();
    for (std::int64_t first = 0; first < columns; first += panel) {
      // A few rows at a time, so that a line is read once whether it runs along them or across.
      constexpr std::int64_t kLine = 16;
      const std::int64_t there = std::min(panel, columns - first);
      if (there < panel) std::fill_n(p, rows * panel, T{0});
      for (std::int64_t r = 0; r < rows; r += kLine)
        for (std::int64_t q = 0; q < there; ++q)
          for (std::int64_t n = r; n < std::min(r + kLine, rows); ++n)
            p[n * panel + q] = from_storage<T>(at(n, first + q));
      if (bytes)
        kernel_.split.split(p, panel, rows, first, there, to.split.get());
      else
        p += rows * panel;
    }
    if (bytes) to.panels = nullptr;
    return to;
  }
};

// Those of these columns that one part of the edges has.
template <class T, class Storage>
class RadialWeights {
 public:
  // ga: these columns of [hidden, weight_numel], this part of the gradient of the matrix, which finish() completes;
  // null: not wanted. add: to the gradient of the hidden features, which other columns have been to.
  RadialWeights(const RadialProblem& problem, const PanelKernel<T>& kernel, const RadialMatrix<T, Storage>& matrix,
                const RadialMatrix<T, Storage>& matrix_tangent, T* ga, bool in_lanes, bool add)
      : problem_(problem), kernel_(kernel), matrix_(matrix), matrix_tangent_(matrix_tangent), ga_(ga), add_(add) {
    const bool gradient = problem.out[kHidden].data || ga;
    w_tangent_ = problem.dual && (problem.in[kHidden].tangent || matrix_tangent);
    // Whole panels, and lines of an odd number, so that a column of a tile spreads over the sets of a cache.
    constexpr std::int64_t kLine = 64 / sizeof(T);
    const std::int64_t panels = (columns() + kernel.columns - 1) / kernel.columns;
    tile_.pitch = ((panels * kernel.columns + kLine - 1) / kLine | 1) * kLine;
    take(h_, hidden(), true);
    take(h_part_, hidden(), problem.in[kHidden].tangent);
    take(gh_, hidden(), problem.out[kHidden].data);
    tile_.w = take(w_, tile_.pitch, true);
    tile_.w_tangent = take(w_part_, tile_.pitch, w_tangent_);
    // Kernels whose lanes are channels write an edge's gradients last: over its weights, so that a cache has to hold
    // one array of this size less.
    tile_.gw = in_lanes && !problem.dual && gradient ? w_.get() : take(gw_, tile_.pitch, gradient);
    tile_.gw_value = take(gw_value_, tile_.pitch, gradient && w_tangent_);
    tile_.self = this;
    tile_.begin = [](void* self, std::int64_t place, std::int64_t count) {
      static_cast<RadialWeights*>(self)->begin(place, count);
    };
    tile_.end = [](void* self, std::int64_t place, std::int64_t count) {
      static_cast<RadialWeights*>(self)->end(place, count);
    };
  }

  const EdgeWeights& tile() const { return tile_; }

  // After all edges, of which there may be none.
  void finish() {
    if (!ga_ || ga_begun_) return;
    for (std::int64_t k = 0; k < hidden(); ++k) std::fill_n(ga_ + k * ga_row(), columns(), T{0});
  }

 private:
  const RadialProblem& problem_;
  const PanelKernel<T>& kernel_;
  const RadialMatrix<T, Storage>&matrix_, &matrix_tangent_;
  T* ga_;
  bool add_, w_tangent_, ga_begun_ = false;
  EdgeWeights tile_;
  AlignedArray<T> h_, h_part_, gh_, w_, w_part_, gw_, gw_value_;

  std::int64_t hidden() const { return problem_.hidden; }
  std::int64_t columns() const { return matrix_.columns(); }
  std::int64_t ga_row() const { return problem_.plan->weight_numel; }
  const T* gw() const { return static_cast<const T*>(tile_.gw); }

  static T* take(AlignedArray<T>& memory, std::int64_t columns, bool wanted) {
    if (wanted) memory = aligned_array<T>(EdgeWeights::kEdges * columns + 1);
    return memory.get();
  }

  void gather(const void* data, std::int64_t stride, std::int64_t place, std::int64_t count, T* to) const {
    const auto* const from = static_cast<const Storage*>(data);
    for (std::int64_t e = 0; e < count; ++e) {
      const Storage* const row = from + problem_.edges->edge_at(place + e) * stride;
      for (std::int64_t k = 0; k < hidden(); ++k) to[e * hidden() + k] = from_storage<T>(row[k]);
    }
  }

  void begin(std::int64_t place, std::int64_t count) {
    const Operand& h = problem_.in[kHidden];
    gather(h.value, h.stride, place, count, h_.get());
    if (h.tangent) gather(h.tangent, h.tangent_stride, place, count, h_part_.get());
    matrix_.times(count, h_.get(), w_.get(), tile_.pitch, false);
    if (!w_tangent_) return;
    if (h.tangent) matrix_.times(count, h_part_.get(), w_part_.get(), tile_.pitch, false);
    if (matrix_tangent_) matrix_tangent_.times(count, h_.get(), w_part_.get(), tile_.pitch, h.tangent != nullptr);
  }

  void end(std::int64_t place, std::int64_t count) {
    if (gh_) {
      matrix_.transposed_times(count, gw(), tile_.pitch, gh_.get(), false);
      if (matrix_tangent_) matrix_tangent_.transposed_times(count, gw_value_.get(), tile_.pitch, gh_.get(), true);
      scatter(place, count);
    }
    if (!ga_) return;
    add_to_matrix(h_.get(), gw(), count);
    if (h_part_) add_to_matrix(h_part_.get(), gw_value_.get(), count);
  }

  void add_to_matrix(const T* h, const T* gw, std::int64_t count) {
    kernel_.multiply(
        {hidden(), count, columns(), h, 1, hidden(), gw, kernel_.columns, tile_.pitch, ga_, ga_row(), ga_begun_});
    ga_begun_ = true;
  }

  void scatter(std::int64_t place, std::int64_t count) const {
    const Result& gh = problem_.out[kHidden];
    for (std::int64_t e = 0; e < count; ++e) {
      Storage* const to = static_cast<Storage*>(gh.data) + problem_.edges->edge_at(place + e) * gh.stride;
      const T* const row = gh_.get() + e * hidden();
      if (add_)
        for (std::int64_t k = 0; k < hidden(); ++k) to[k] = as_storage<Storage>(from_storage<T>(to[k]) + row[k]);
      else
        for (std::int64_t k = 0; k < hidden(); ++k) to[k] = as_storage<Storage>(row[k]);
    }
  }
};

}  // namespace EQK_ISA
}  // namespace eqk::tensor_product_conv
