#include "core/cpu_dispatch.h"
#include "wigner/op.h"

namespace eqk::wigner {
namespace {

constexpr std::int64_t kGrain = 16;  // vectors of rows that are worth a thread

struct Cpu {
  static void launch(const Problem& problem, const Tensor&) {
    const Kernels& kernels = EQK_CHOOSE_KERNEL();
    parallel_for(kernels.tasks(problem), kGrain,
                 [&](std::int64_t begin, std::int64_t end) { kernels.run(problem, begin, end); });
  }
};

}  // namespace
}  // namespace eqk::wigner

STABLE_TORCH_LIBRARY_IMPL(eqk, CPU, m) { eqk::wigner::register_impls<eqk::wigner::Cpu>(m); }
