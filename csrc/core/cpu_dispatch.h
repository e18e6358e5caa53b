#pragma once
#include <cstdlib>
#include <string_view>

#include "core/tensor.h"

namespace eqk {

// Of the three builds of a kernel, the one for the widest instruction set of this machine or for what EQK_CPU_ISA
// names.
template <class Kernel>
Kernel choose_kernel([[maybe_unused]] Kernel (*avx512)(), [[maybe_unused]] Kernel (*avx2)(), Kernel (*baseline)()) {
  struct InstructionSet {
    std::string_view name;
    bool supported;
    Kernel (*kernel)();
  };
#if defined(EQK_X86)
  __builtin_cpu_init();
  const bool has_fma = __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool has_avx512 = has_fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
#endif
  const InstructionSet sets[] = {
#if defined(EQK_X86)
      {"avx512", has_avx512, avx512},
      {"avx2", has_fma && __builtin_cpu_supports("avx2"), avx2},
#endif
      {"baseline", true, baseline}};
  const char* wanted = std::getenv("EQK_CPU_ISA");
  for (const auto& set : sets)
    if (set.supported && (!wanted || wanted == set.name)) return set.kernel();
  fail("EQK_CPU_ISA: expected an instruction set of this machine (avx512, avx2 or baseline), got '", wanted, "'");
}

#if defined(EQK_X86)
#define EQK_CHOOSE_KERNEL() ::eqk::choose_kernel(kernel_of_avx512, kernel_of_avx2, kernel_of_baseline)
#else
#define EQK_CHOOSE_KERNEL() ::eqk::choose_kernel<decltype(kernel_of_baseline())>(nullptr, nullptr, kernel_of_baseline)
#endif

}  // namespace eqk
