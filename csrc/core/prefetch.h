#pragma once
// Asks for a line of memory before it is needed: on AMD's cores into the first-level cache, since what is asked for
// into the second arrives too late there (an EPYC 9005 takes up to half as long again for tensor_product_conv after a
// flush of its caches). On others into the second, since the first may have too few misses under way to hide memory
// behind arithmetic. docs/design.md has both measurements.
#include "core/macros.h"

namespace eqk {

extern const bool kPrefetchToFirstLevel;

inline namespace EQK_ISA {

EQK_HD void prefetch(const void* p) {
  if (kPrefetchToFirstLevel)
    __builtin_prefetch(p, 0, 3);
  else
    __builtin_prefetch(p, 0, 2);
}

}  // namespace EQK_ISA
}  // namespace eqk
