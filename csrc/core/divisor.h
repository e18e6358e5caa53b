#pragma once
// Division of 64-bit or 32-bit numbers by one that the host knows. A GPU has no such instruction: the compiler calls a
// function for 64 bits, around which registers spill, and takes some twenty instructions for 32.
#include <cstdint>
#include <type_traits>

#include "core/macros.h"

namespace eqk {

template <class Int>
class DivisorOf {
 public:
  DivisorOf() = default;

  // With b bits of a positive number, 63 or 31: from 1 to 2^(b - 1). With s = ceil(log2 d) and m = ceil(2^(b + s) / d),
  // which is below 2^(b + 1), n m / 2^(b + s) exceeds n / d by less than n / 2^b / d, so by less than 1 / d: its floor
  // is that of n / d (Granlund & Montgomery, Division by invariant integers using multiplication, 1994, theorem 4.2).
  explicit DivisorOf(Int d) : value_(d) {
    while ((Int{1} << shift_) < d) ++shift_;
    const auto power = static_cast<Wide>(1) << (kBits + shift_);
    multiplier_ = static_cast<Unsigned>((power + static_cast<Wide>(d) - 1) / static_cast<Wide>(d));
  }

  EQK_HD Int value() const { return value_; }

  // Of numbers from 0 to 2^b - 1.
  EQK_HD Int quotient(Int n) const {
    const auto twice = static_cast<Unsigned>(n) * 2;
#if defined(__CUDA_ARCH__)
    const Unsigned high = multiply_high(twice, multiplier_);
#else
    const auto high = static_cast<Unsigned>(static_cast<Wide>(twice) * multiplier_ >> (kBits + 1));
#endif
    return static_cast<Int>(high >> shift_);
  }
  EQK_HD Int remainder(Int n) const { return n - quotient(n) * value_; }

 private:
  static constexpr bool kLong = sizeof(Int) == 8;
  static constexpr int kBits = kLong ? 63 : 31;
  using Unsigned = std::make_unsigned_t<Int>;
  using Wide = std::conditional_t<kLong, unsigned __int128, std::uint64_t>;

#if defined(__CUDA_ARCH__)
  __device__ static std::uint64_t multiply_high(std::uint64_t a, std::uint64_t b) { return __umul64hi(a, b); }
  __device__ static std::uint32_t multiply_high(std::uint32_t a, std::uint32_t b) { return __umulhi(a, b); }
#endif

  Int value_ = 1;
  Unsigned multiplier_ = Unsigned{1} << kBits;
  Int shift_ = 0;
};

using Divisor = DivisorOf<std::int64_t>;
using Divisor32 = DivisorOf<std::int32_t>;

}  // namespace eqk
