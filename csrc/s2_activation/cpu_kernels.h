#pragma once
// What cpu.cpp needs of the kernels that are compiled once per instruction set.
#include <cstdint>

#include "s2_activation/lowered.h"
#include "s2_activation/problem.h"

namespace eqk::s2_activation {

// In cpu.cpp. Plans are never freed: their addresses tell them apart.
template <class T>
const Lowered<T>& lowering(const Plan& plan);

struct Kernels {
  std::int64_t (*tasks)(const Problem&);
  void (*run)(const Problem&, std::int64_t begin, std::int64_t end);
};

const Kernels& kernel_of_baseline();
const Kernels& kernel_of_avx2();
const Kernels& kernel_of_avx512();

}  // namespace eqk::s2_activation
