#pragma once
// What cpu.cpp and the kernels that are compiled once per instruction set agree on.
#include <cstdint>

#include "core/cpu_tasks.h"
#include "core/dtype.h"
#include "wigner/recursion.h"

namespace eqk::wigner {

struct Problem {
  Dtype dtype{};
  int lmax = 0, mmax = 0;
  std::int64_t rows = 0, columns = 0;
  const void* q = nullptr;  // [rows, 4]
  std::int64_t q_stride = 0;
  void* out = nullptr;  // contiguous [rows, columns]: for each l rows |m'| <= mmax, each of 2 l + 1
};

using Kernels = TaskKernels<Problem>;

const Kernels& kernel_of_baseline();
const Kernels& kernel_of_avx2();
const Kernels& kernel_of_avx512();

// In cpu.cpp: built once by code for the baseline instruction set.
template <class T>
const Coefficients<T>& coefficients();

}  // namespace eqk::wigner
