// Compiled once per instruction set with EQK_ISA and EQK_VECTOR_BYTES set by the build.
#include "symmetric_contraction/cpu_contraction.h"

namespace eqk::symmetric_contraction {
inline namespace EQK_ISA {

template <class T>
static void run_type(const Problem& problem, const Lowered& lowered, const std::vector<Chunk>& chunks,
                     std::int64_t begin, std::int64_t end) {
  const auto& tangents = problem.tangents;
  if (tangents.empty()) return run_contraction<T, 0, false>(problem, lowered, chunks, begin, end);
  if (tangents.size() == 1)
    return (tangents[0][kW].data ? run_contraction<T, 1, true> : run_contraction<T, 1, false>)(problem, lowered, chunks,
                                                                                               begin, end);
  unroll<kMaxTangents - 1>([&](auto n) {
    if (tangents.size() == n + 2) run_contraction<T, n + 2, true>(problem, lowered, chunks, begin, end);
  });
}

static std::int64_t tile(Dtype dtype) { return dtype == Dtype::float64 ? Tile<double>::W : Tile<float>::W; }

static void run(const Problem& problem, const Lowered& lowered, const std::vector<Chunk>& chunks, std::int64_t begin,
                std::int64_t end) {
  (problem.dtype == Dtype::float64 ? run_type<double> : run_type<float>)(problem, lowered, chunks, begin, end);
}

static constexpr Kernels kKernels{tile, run};

}  // namespace EQK_ISA

#define EQK_JOIN(a, b) a##b
#define EQK_NAME(isa) EQK_JOIN(kernel_of_, isa)
const Kernels& EQK_NAME(EQK_ISA)() { return kKernels; }

}  // namespace eqk::symmetric_contraction
