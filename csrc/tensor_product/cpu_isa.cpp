// Compiled once per instruction set with EQK_ISA, EQK_VECTOR_BYTES and EQK_UNROLLED set by the build.
#include "tensor_product/cpu_rows.h"
#if EQK_UNROLLED
#include "tensor_product/cpu_channel_rows.h"
#endif

namespace eqk::tensor_product {
inline namespace EQK_ISA {

template <class T, class Storage, bool kDual>
void run(const Problem& problem, const Lowered& lowered, std::int64_t begin, std::int64_t end, void* weight_partial) {
  RowLanes<T, Storage, EQK_VECTOR_BYTES / sizeof(T), kDual>(problem, lowered, static_cast<T*>(weight_partial))
      .run(begin, end);
}

template <class T, class Storage>
void run(const Problem& problem, const Lowered& lowered, std::int64_t begin, std::int64_t end, void* weight_partial) {
#if EQK_UNROLLED
  if constexpr (std::is_same_v<T, Storage>) {
    if (ChannelLanes<T>::can_run(problem, lowered))
      return ChannelLanes<T>(problem, lowered, static_cast<T*>(weight_partial)).run(begin, end);
  }
#endif
  if (problem.dual)
    run<T, Storage, true>(problem, lowered, begin, end, weight_partial);
  else
    run<T, Storage, false>(problem, lowered, begin, end, weight_partial);
}

static void kernel(const Problem& problem, const Lowered& lowered, std::int64_t begin, std::int64_t end,
                   void* weight_partial) {
  switch (problem.dtype) {
    case Dtype::float32:
      return run<float, float>(problem, lowered, begin, end, weight_partial);
    case Dtype::float64:
      return run<double, double>(problem, lowered, begin, end, weight_partial);
    case Dtype::float16:
      return run<float, Half>(problem, lowered, begin, end, weight_partial);
    case Dtype::bfloat16:
      return run<float, BFloat16>(problem, lowered, begin, end, weight_partial);
  }
}

}  // namespace EQK_ISA

#define EQK_JOIN(a, b) a##b
#define EQK_NAME(isa) EQK_JOIN(kernel_of_, isa)
RowsKernel EQK_NAME(EQK_ISA)() { return kernel; }

}  // namespace eqk::tensor_product
