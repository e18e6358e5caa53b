#pragma once
#include <cstdlib>
#include <string_view>

#include "core/cached.h"
#include "core/tensor.h"

namespace eqk {

enum class InstructionSet { avx512, avx2, baseline };

// The widest of this machine, or what EQK_CPU_ISA names, when it is asked for first.
inline InstructionSet instruction_set() {
  return *cached(0, [] {
    struct Candidate {
      std::string_view name;
      bool supported;
      InstructionSet set;
    };
#if defined(EQK_X86)
    __builtin_cpu_init();
    const bool has_fma = __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool has_avx512 = has_fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
#endif
    const Candidate candidates[] = {
#if defined(EQK_X86)
        {"avx512", has_avx512, InstructionSet::avx512},
        {"avx2", has_fma && __builtin_cpu_supports("avx2"), InstructionSet::avx2},
#endif
        {"baseline", true, InstructionSet::baseline}};
    const char* wanted = std::getenv("EQK_CPU_ISA");
    for (const auto& candidate : candidates)
      if (candidate.supported && (!wanted || wanted == candidate.name)) return candidate.set;
    fail("EQK_CPU_ISA: expected an instruction set of this machine (avx512, avx2 or baseline), got '", wanted, "'");
  });
}

// Of the three builds of a kernel, the one for that instruction set.
template <class Kernel>
Kernel choose_kernel([[maybe_unused]] Kernel (*avx512)(), [[maybe_unused]] Kernel (*avx2)(), Kernel (*baseline)()) {
  switch (instruction_set()) {
#if defined(EQK_X86)
    case InstructionSet::avx512:
      return avx512();
    case InstructionSet::avx2:
      return avx2();
#endif
    default:
      return baseline();
  }
}

#if defined(EQK_X86)
#define EQK_CHOOSE_KERNEL() ::eqk::choose_kernel(kernel_of_avx512, kernel_of_avx2, kernel_of_baseline)
#else
#define EQK_CHOOSE_KERNEL() ::eqk::choose_kernel<decltype(kernel_of_baseline())>(nullptr, nullptr, kernel_of_baseline)
#endif

}  // namespace eqk
