// Compiled once per instruction set with EQK_ISA, EQK_VECTOR_BYTES and EQK_UNROLLED set by the build.
#include "core/cpu_sums.h"
#include "tensor_product/cpu_rows.h"
#if EQK_UNROLLED
#include "tensor_product/cpu_channel_rows.h"
#endif

namespace eqk::tensor_product {
inline namespace EQK_ISA {

template <class Rows, class T>
void run(const Problem& problem, const Lowered& lowered, std::int64_t begin, std::int64_t end, T* weight_partial) {
  if (!weight_partial || end - begin <= kFew) return Rows(problem, lowered, weight_partial).run(begin, end);
  WeightSum<T> sum(*problem.plan);
  Rows rows(problem, lowered, sum.few());
  for (std::int64_t row = begin; row < end; row += kFew) {
    rows.run(row, std::min(row + kFew, end));
    sum.added(kFew);
  }
  sum.add_to(weight_partial);
}

template <class T, class Storage>
bool in_channels([[maybe_unused]] const Problem& problem, [[maybe_unused]] const Lowered& lowered) {
#if EQK_UNROLLED
  if constexpr (std::is_same_v<T, Storage>) return ChannelLanes<T>::can_run(problem, lowered);
#endif
  return false;
}

template <class T, class Storage>
void run(const Problem& problem, const Lowered& lowered, std::int64_t begin, std::int64_t end, void* weight_partial) {
  constexpr int W = EQK_VECTOR_BYTES / sizeof(T);
  T* const partial = static_cast<T*>(weight_partial);
#if EQK_UNROLLED
  if constexpr (std::is_same_v<T, Storage>) {
    if (in_channels<T, Storage>(problem, lowered)) return run<ChannelLanes<T>>(problem, lowered, begin, end, partial);
  }
#endif
  if (problem.dual)
    run<RowLanes<T, Storage, W, true>>(problem, lowered, begin, end, partial);
  else
    run<RowLanes<T, Storage, W, false>>(problem, lowered, begin, end, partial);
}

static void kernel(const Problem& problem, const Lowered& lowered, std::int64_t begin, std::int64_t end,
                   void* weight_partial) {
  with_types(problem.dtype, [&]<class T, class Storage>(T, Storage) {
    run<T, Storage>(problem, lowered, begin, end, weight_partial);
  });
}

static bool kernel_in_channels(const Problem& problem, const Lowered& lowered) {
  bool result = false;
  with_types(problem.dtype,
             [&]<class T, class Storage>(T, Storage) { result = in_channels<T, Storage>(problem, lowered); });
  return result;
}

}  // namespace EQK_ISA

#define EQK_JOIN(a, b) a##b
#define EQK_NAME(isa) EQK_JOIN(kernel_of_, isa)
RowsKernel EQK_NAME(EQK_ISA)() { return {kernel, kernel_in_channels}; }

}  // namespace eqk::tensor_product
