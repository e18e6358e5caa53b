#pragma once
// The edges of a part, as many at a time as there are weights for.
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "core/lanes.h"
#include "tensor_product_conv/cpu_kernels.h"

namespace eqk::tensor_product_conv {
inline namespace EQK_ISA {

template <class T>
class EdgeTiles {
 public:
  // weights: null where they are the problem's.
  EdgeTiles(const EdgeWeights* weights, std::int64_t last) : weights_(weights), last_(last) {}

  // Before the edges from `place` on.
  void at(std::int64_t place) {
    if (!weights_ || place < end_) return;
    finish();
    begin_ = place;
    end_ = std::min(place + EdgeWeights::kEdges, last_);
    weights_->begin(weights_->self, begin_, end_ - begin_);
  }

  void finish() {
    if (end_ > begin_) weights_->end(weights_->self, begin_, end_ - begin_);
    begin_ = end_;
  }

  const T* w(std::int64_t place) const { return row(weights_->w, place); }
  const T* w_tangent(std::int64_t place) const { return row(weights_->w_tangent, place); }
  T* gw(std::int64_t place) const { return row(weights_->gw, place); }
  T* gw_value(std::int64_t place) const { return row(weights_->gw_value, place); }

  explicit operator bool() const { return weights_; }
  std::int64_t end() const { return end_; }

 private:
  const EdgeWeights* weights_;
  std::int64_t last_, begin_ = 0, end_ = 0;

  template <class Void>
  auto row(Void* matrix, std::int64_t place) const {
    using Row = std::conditional_t<std::is_const_v<Void>, const T, T>;
    return matrix ? static_cast<Row*>(matrix) + (place - begin_) * weights_->pitch : nullptr;
  }
};

}  // namespace EQK_ISA
}  // namespace eqk::tensor_product_conv
