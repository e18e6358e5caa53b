#pragma once
// Division of 64-bit numbers by one that the host knows. A GPU has no such instruction: the compiler calls a function
// for it, around which registers spill.
#include <cstdint>

#include "core/macros.h"

namespace eqk {

class Divisor {
 public:
  Divisor() = default;

  // From 1 to 2^62. With s = ceil(log2 d) and m = ceil(2^(63 + s) / d), which is below 2^64, n m / 2^(63 + s) exceeds n
  // / d by less than n / 2^63 / d, so by less than 1 / d: its floor is that of n / d (Granlund & Montgomery, Division
  // by invariant integers using multiplication, 1994, theorem 4.2).
  explicit Divisor(std::int64_t d) : value_(d) {
    while ((std::int64_t{1} << shift_) < d) ++shift_;
    const auto power = static_cast<Wide>(1) << (63 + shift_);
    multiplier_ = static_cast<std::uint64_t>((power + static_cast<Wide>(d) - 1) / static_cast<Wide>(d));
  }

  EQK_HD std::int64_t value() const { return value_; }

  // Of numbers from 0 to 2^63 - 1.
  EQK_HD std::int64_t quotient(std::int64_t n) const {
    const auto twice = static_cast<std::uint64_t>(n) * 2;
#if defined(__CUDA_ARCH__)
    const std::uint64_t high = __umul64hi(twice, multiplier_);
#else
    const auto high = static_cast<std::uint64_t>(static_cast<Wide>(twice) * multiplier_ >> 64);
#endif
    return static_cast<std::int64_t>(high >> shift_);
  }
  EQK_HD std::int64_t remainder(std::int64_t n) const { return n - quotient(n) * value_; }

 private:
  using Wide = unsigned __int128;

  std::int64_t value_ = 1;
  std::uint64_t multiplier_ = std::uint64_t{1} << 63;
  std::int64_t shift_ = 0;
};

}  // namespace eqk
