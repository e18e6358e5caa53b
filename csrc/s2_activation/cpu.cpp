#include "core/cpu_dispatch.h"
#include "s2_activation/cpu_kernels.h"
#include "s2_activation/op.h"

namespace eqk::s2_activation {

template <class T>
const Lowered<T>& lowering(const Plan& plan) {
  return *cached(&plan, [&] { return Lowered<T>(plan); });
}
template const Lowered<float>& lowering<float>(const Plan&);
template const Lowered<double>& lowering<double>(const Plan&);

namespace {

void launch(const Problem& problem) {
  const Kernels& kernels = EQK_CHOOSE_KERNEL();
  parallel_for(kernels.tasks(problem), 1,
               [&](std::int64_t begin, std::int64_t end) { kernels.run(problem, begin, end); });
}

}  // namespace
}  // namespace eqk::s2_activation

STABLE_TORCH_LIBRARY_IMPL(eqk, CPU, m) { eqk::s2_activation::register_impls<&eqk::s2_activation::launch>(m); }
