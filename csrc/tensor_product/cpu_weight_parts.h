#pragma once
// The gradient of shared weights sums over rows. Its partial sums are cut by the number of rows alone, never by the
// number of threads, so that the result is the same bits for any number of threads.
#include <algorithm>
#include <cstdint>

#include "core/lanes.h"
#include "core/tensor.h"

namespace eqk::tensor_product {

class WeightParts {
 public:
  static constexpr std::int64_t kMaxParts = 16;

  // Of the weights of `blocks` pieces of work.
  static std::int64_t count(Dtype dtype, std::int64_t numel, std::int64_t blocks) {
    constexpr std::int64_t kBytes = 32 << 20;
    const std::int64_t most = kBytes / std::max<std::int64_t>(1, numel * size(dtype));
    return std::clamp<std::int64_t>(std::min(blocks, most), 1, kMaxParts);
  }

  // zero: whether each part is at first, or will be written before it is added to.
  WeightParts(Dtype dtype, std::int64_t numel, std::int64_t parts, const Tensor& like, bool zero = true)
      : dtype_(dtype), numel_(numel), parts_(parts), sums_(make(like, parts, numel, dtype, zero)) {}

  // In the accumulation type.
  void* of(std::int64_t part) const {
    return static_cast<char*>(sums_.mutable_data_ptr()) + part * numel_ * size(dtype_);
  }

  void reduce(void* out) const {
    with_types(dtype_, [&]<class T, class Storage>(T, Storage) {
      const T* const sums = static_cast<const T*>(of(0));
      parallel_for(numel_, 4096, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t q = begin; q < end; ++q) {
          T sum = 0;
          for (std::int64_t p = 0; p < parts_; ++p) sum += sums[p * numel_ + q];
          static_cast<Storage*>(out)[q] = as_storage<Storage>(sum);
        }
      });
    });
  }

 private:
  Dtype dtype_;
  std::int64_t numel_, parts_;
  Tensor sums_;

  static std::int64_t size(Dtype dtype) { return dtype == Dtype::float64 ? 8 : 4; }

  static Tensor make(const Tensor& like, std::int64_t parts, std::int64_t numel, Dtype dtype, bool zero) {
    const ScalarType type = size(dtype) == 8 ? ScalarType::Double : ScalarType::Float;
    return zero ? torch::stable::new_zeros(like, {parts, numel}, type) : empty(like, {parts, numel}, type);
  }
};

}  // namespace eqk::tensor_product
