#pragma once
// What a backend's host and kernels agree on.
#include <algorithm>
#include <cstdint>

#include "core/cpu_tasks.h"
#include "core/dtype.h"
#include "core/macros.h"

namespace eqk::wigner {

// Of a matrix: for each l rows |m'| <= mmax, each of 2 l + 1.
EQK_HD std::int64_t numbers(int lmax, int mmax) {
  std::int64_t sum = 0;
  for (int l = 0; l <= lmax; ++l) sum += (2 * std::min(l, mmax) + 1) * (2 * l + 1);
  return sum;
}

// The place of D^l[0, 0] among them.
EQK_HD std::int64_t center(int l, int mmax) { return (numbers(l - 1, mmax) + numbers(l, mmax)) / 2; }

struct Problem {
  Dtype dtype{};
  int lmax = 0, mmax = 0;
  std::int64_t rows = 0, columns = 0;  // columns: numbers
  const void* q = nullptr;             // [rows, 4]
  std::int64_t q_stride = 0;
  const void* g = nullptr;  // [rows, columns]; null: the matrices
  std::int64_t g_stride = 0;
  void* out = nullptr;  // contiguous: matrices [rows, columns], or the gradient of q for g as theirs
};

using Kernels = TaskKernels<Problem>;

const Kernels& kernel_of_baseline();
const Kernels& kernel_of_avx2();
const Kernels& kernel_of_avx512();

}  // namespace eqk::wigner
