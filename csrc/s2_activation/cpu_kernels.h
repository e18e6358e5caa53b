#pragma once
// What cpu.cpp needs of the kernels that are compiled once per instruction set.
#include "core/cpu_tasks.h"
#include "s2_activation/lowered.h"
#include "s2_activation/problem.h"

namespace eqk::s2_activation {

// In cpu.cpp. Plans are never freed: their addresses tell them apart.
template <class T>
const Lowered<T>& lowering(const Plan& plan);

using Kernels = TaskKernels<Problem>;

const Kernels& kernel_of_baseline();
const Kernels& kernel_of_avx2();
const Kernels& kernel_of_avx512();

}  // namespace eqk::s2_activation
