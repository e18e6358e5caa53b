#pragma once
// What cpu.cpp and the kernels that are compiled once per instruction set agree on.
#include <algorithm>
#include <cstdint>

#include "core/cpu_tasks.h"
#include "core/dtype.h"
#include "core/macros.h"
#include "wigner/recursion.h"

namespace eqk::wigner {

// Of a matrix: for each l rows |m'| <= mmax, each of 2 l + 1.
EQK_HD std::int64_t numbers(int lmax, int mmax) {
  std::int64_t sum = 0;
  for (int l = 0; l <= lmax; ++l) sum += (2 * std::min(l, mmax) + 1) * (2 * l + 1);
  return sum;
}

struct Problem {
  Dtype dtype{};
  int lmax = 0, mmax = 0;
  std::int64_t rows = 0, columns = 0;  // columns: numbers
  const void* q = nullptr;             // [rows, 4]
  std::int64_t q_stride = 0;
  void* out = nullptr;  // contiguous [rows, columns]
};

using Kernels = TaskKernels<Problem>;

const Kernels& kernel_of_baseline();
const Kernels& kernel_of_avx2();
const Kernels& kernel_of_avx512();

// In cpu.cpp: built once by code for the baseline instruction set.
template <class T>
const Coefficients<T>& coefficients();

}  // namespace eqk::wigner
