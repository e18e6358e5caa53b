#include <algorithm>

#include "core/cpu_dispatch.h"
#include "gaunt_product/cpu_kernels.h"
#include "gaunt_product/op.h"

namespace eqk::gaunt_product {

template <class T>
const Lowered<T>& lowering(const Plan& plan) {
  return *cached(&plan, [&] { return Lowered<T>(plan); });
}
template const Lowered<float>& lowering<float>(const Plan&);
template const Lowered<double>& lowering<double>(const Plan&);

namespace {

struct Cpu {
  static bool covers(const Problem&) { return true; }

  static void launch(const Problem& problem, const Tensor& like) {
    const Kernels& kernels = EQK_CHOOSE_KERNEL();
    if (problem.rows == 0 || problem.plan->channels() == 0) {
      // A single signal beside none has a gradient, of zeros.
      for (const Result& out : problem.out)
        if (out.data)
          std::fill_n(static_cast<char*>(out.data), problem.rows * out.stride * element_bytes(like.scalar_type()), 0);
      return;
    }
    if (std::none_of(problem.out.begin(), problem.out.end(), [](const Result& r) { return r.data; })) return;
    parallel_for(kernels.tasks(problem), 1,
                 [&](std::int64_t begin, std::int64_t end) { kernels.run(problem, begin, end); });
  }
};

}  // namespace
}  // namespace eqk::gaunt_product

STABLE_TORCH_LIBRARY_IMPL(eqk, CPU, m) { eqk::gaunt_product::register_impls<eqk::gaunt_product::Cpu>(m); }
