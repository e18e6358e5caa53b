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

  // Weights [from, from + count) of the parts, at `to` of the result.
  struct Piece {
    std::int64_t from, to, count;
  };

  void reduce(void* out) const {
    const std::int64_t pieces = (numel_ + kBlock - 1) / kBlock;
    reduce(out, pieces,
           [&](std::int64_t n) { return Piece{n * kBlock, n * kBlock, std::min(kBlock, numel_ - n * kBlock)}; });
  }

  // piece(n): the n-th of those that all weights are cut into.
  template <class GetPiece>
  void reduce(void* out, std::int64_t pieces, const GetPiece& piece) const {
    with_types(dtype_, [&]<class T, class Storage>(T, Storage) {
      const T* const sums = static_cast<const T*>(of(0));
      parallel_for(pieces, 16, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t n = begin; n < end; ++n) {
          const Piece all = piece(n);
          for (std::int64_t done = 0; done < all.count; done += kBlock) {
            const std::int64_t count = std::min(kBlock, all.count - done);
            T sum[kBlock]{};
            for (std::int64_t p = 0; p < parts_; ++p)
              for (std::int64_t q = 0; q < count; ++q) sum[q] += sums[p * numel_ + all.from + done + q];
            Storage* const to = static_cast<Storage*>(out) + all.to + done;
            for (std::int64_t q = 0; q < count; ++q) to[q] = as_storage<Storage>(sum[q]);
          }
        }
      });
    });
  }

 private:
  Dtype dtype_;
  std::int64_t numel_, parts_;
  Tensor sums_;
  static constexpr std::int64_t kBlock = 256;

  static std::int64_t size(Dtype dtype) { return dtype == Dtype::float64 ? 8 : 4; }

  static Tensor make(const Tensor& like, std::int64_t parts, std::int64_t numel, Dtype dtype, bool zero) {
    const ScalarType type = size(dtype) == 8 ? ScalarType::Double : ScalarType::Float;
    return zero ? torch::stable::new_zeros(like, {parts, numel}, type) : empty(like, {parts, numel}, type);
  }
};

}  // namespace eqk::tensor_product
