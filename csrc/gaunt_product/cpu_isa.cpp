// Compiled once per instruction set with EQK_ISA and EQK_VECTOR_BYTES set by the build.
#include "gaunt_product/cpu_rings.h"

namespace eqk::gaunt_product {
inline namespace EQK_ISA {
static constexpr Kernels kKernels = task_kernels<Rings, Problem>();
}

#define EQK_JOIN(a, b) a##b
#define EQK_NAME(isa) EQK_JOIN(kernel_of_, isa)
const Kernels& EQK_NAME(EQK_ISA)() { return kKernels; }

}  // namespace eqk::gaunt_product
