#pragma once
#include <cstdlib>
#include <string_view>

#include "core/cached.h"
#include "core/tensor.h"
#if defined(EQK_X86)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace eqk {

// amx: AVX-512 with matrix tiles; emulated: tiles in software, for tests.
enum class InstructionSet { amx, amx_emulated, avx512, avx2, baseline };

#if defined(EQK_X86)
// The processor has tiles, the system saves them, and lets this process use them: Linux gives no process that much
// state to save before it asks.
inline bool has_amx() {
#if defined(__linux__)
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24, kSavesState = 1u << 27;
  constexpr std::uint32_t kTileState = 3u << 17;
  unsigned a, b, c, d;
  if (!__get_cpuid_count(1, 0, &a, &b, &c, &d) || !(c & kSavesState)) return false;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (kAmxBf16 | kAmxTile)) != (kAmxBf16 | kAmxTile)) return false;
  std::uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return (low & kTileState) == kTileState && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

struct NamedSet {
  std::string_view name;
  InstructionSet set;
};

// The widest of this machine, or what EQK_CPU_ISA names, when it is asked for first.
inline const NamedSet& named_set() {
  return *cached(0, [] {
    struct Candidate {
      NamedSet named;
      bool supported, chosen;
    };
#if defined(EQK_X86)
    __builtin_cpu_init();
    const bool has_fma = __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool has_avx512 = has_fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
#endif
    const Candidate candidates[] = {
#if defined(EQK_X86)
        {{"amx", InstructionSet::amx}, has_avx512 && has_amx(), true},
        {{"amx-emulated", InstructionSet::amx_emulated}, has_avx512, false},
        {{"avx512", InstructionSet::avx512}, has_avx512, true},
        {{"avx2", InstructionSet::avx2}, has_fma && __builtin_cpu_supports("avx2"), true},
#endif
        {{"baseline", InstructionSet::baseline}, true, true}};
    const char* wanted = std::getenv("EQK_CPU_ISA");
    for (const auto& [named, supported, chosen] : candidates)
      if (supported && (wanted ? wanted == named.name : chosen)) return named;
    fail("EQK_CPU_ISA: expected an instruction set of this machine (amx, avx512, avx2 or baseline), got '", wanted,
         "'");
  });
}

inline InstructionSet instruction_set() { return named_set().set; }

// Of the three builds of a kernel, the one for that instruction set.
template <class Kernel>
Kernel choose_kernel([[maybe_unused]] Kernel (*avx512)(), [[maybe_unused]] Kernel (*avx2)(), Kernel (*baseline)()) {
  switch (instruction_set()) {
#if defined(EQK_X86)
    case InstructionSet::amx:
    case InstructionSet::amx_emulated:
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
