// Compiled once per instruction set with EQK_ISA and EQK_VECTOR_BYTES set by the build.
#include "s2_activation/cpu_grid.h"

namespace eqk::s2_activation {
inline namespace EQK_ISA {

static std::int64_t tasks(const Problem& problem) {
  return problem.dtype == Dtype::float64 ? Grid<double>::tasks(problem) : Grid<float>::tasks(problem);
}

static void run(const Problem& problem, std::int64_t begin, std::int64_t end) {
  if (problem.dtype == Dtype::float64)
    Grid<double>(problem).run(begin, end);
  else
    Grid<float>(problem).run(begin, end);
}

static constexpr Kernels kKernels{tasks, run};

}  // namespace EQK_ISA

#define EQK_JOIN(a, b) a##b
#define EQK_NAME(isa) EQK_JOIN(kernel_of_, isa)
const Kernels& EQK_NAME(EQK_ISA)() { return kKernels; }

}  // namespace eqk::s2_activation
