#pragma once
// Sums of any number of rows. One chain of additions over all of them would lose digits: few rows are summed first,
// then some such sums, then those.
#include <algorithm>
#include <cstdint>

#include "core/aligned.h"
#include "core/plan.h"

namespace eqk {

inline constexpr std::int64_t kFew = 64, kMany = 32 * kFew;

inline namespace EQK_ISA {

template <class T>
void add_row(const T* from, std::int64_t size, T* to) {
  for (std::int64_t q = 0; q < size; ++q) to[q] += from[q];
}

template <class T>
void move_row(T* from, std::int64_t size, T* to) {
  add_row(from, size, to);
  std::fill_n(from, size, T{});
}

// One such sum of rows of `size`.
template <class T>
class Sum {
 public:
  Sum() = default;
  // Room for three rows.
  Sum(T* memory, std::int64_t size) : memory_(memory), size_(size) { start(); }

  void start() {
    std::fill_n(memory_, size_, T{});
    rows_ = 0;
    levels_ = 1;
  }

  // Where rows are added.
  T* few() const { return memory_; }

  // At most kFew since the last call.
  void added(std::int64_t rows) {
    const std::int64_t before = rows_;
    rows_ += rows;
    if (before / kFew != rows_ / kFew) move(0);
    if (before / kMany != rows_ / kMany) move(1);
  }

  // All rows, where few() is.
  T* total() const {
    for (int level = 1; level < levels_; ++level) add_row(memory_ + level * size_, size_, memory_);
    return memory_;
  }

 private:
  T* memory_ = nullptr;
  std::int64_t size_ = 0, rows_ = 0;
  int levels_ = 0;

  void move(int level) {
    T *const from = memory_ + level * size_, *const to = from + size_;
    if (levels_ == level + 1) {
      std::fill_n(to, size_, T{});
      ++levels_;
    }
    move_row(from, size_, to);
  }
};

// The gradient of shared weights.
template <class T>
class WeightSum {
 public:
  explicit WeightSum(const Plan& plan) {
    // A plan left over from matrix products may have few of the weights.
    begin_ = plan.weight_numel;
    std::int64_t end = 0;
    for (const Instruction& ins : plan.instructions) {
      begin_ = std::min(begin_, ins.weight_offset);
      end = std::max(end, ins.weight_offset + ins.weight_numel);
    }
    size_ = std::max<std::int64_t>(0, end - begin_);
    memory_ = aligned_array<T>(begin_ + 3 * size_);
    sum_ = {memory_.get() + begin_, size_};
  }

  // Where rows of all weights are added; those that the plan's instructions have are there.
  T* few() const { return memory_.get(); }
  void added(std::int64_t rows) { sum_.added(rows); }
  void add_to(T* weights) const { add_row(sum_.total(), size_, weights + begin_); }

 private:
  std::int64_t begin_, size_;
  AlignedArray<T> memory_;
  Sum<T> sum_;
};

}  // namespace EQK_ISA
}  // namespace eqk
