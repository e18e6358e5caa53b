// Compiled once per instruction set with EQK_ISA and EQK_VECTOR_BYTES set by the build.
#include "s2_activation/cpu_grid.h"

namespace eqk::s2_activation {
inline namespace EQK_ISA {
static constexpr Kernels kKernels = task_kernels<Grid, Problem>();
}

#define EQK_JOIN(a, b) a##b
#define EQK_NAME(isa) EQK_JOIN(kernel_of_, isa)
const Kernels& EQK_NAME(EQK_ISA)() { return kKernels; }

}  // namespace eqk::s2_activation
