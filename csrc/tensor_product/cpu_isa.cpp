// Compiled once per instruction set with EQK_ISA, EQK_VECTOR_BYTES and EQK_UNROLLED set by the build.
#include "tensor_product/cpu_rows.h"
#if EQK_UNROLLED
#include "tensor_product/cpu_channel_rows.h"
#endif

namespace eqk::tensor_product {
inline namespace EQK_ISA {

// A kernel adds row after row to the gradient of shared weights. One chain of additions over all rows would lose
// digits: it gets few rows at a time, and their sums are added up in two stages.
template <class Rows, class T>
void run(const Problem& problem, const Lowered& lowered, std::int64_t begin, std::int64_t end, T* weight_partial) {
  constexpr std::int64_t kFew = 64, kSums = 32;
  if (!weight_partial || end - begin <= kFew) return Rows(problem, lowered, weight_partial).run(begin, end);
  const std::int64_t numel = problem.plan->weight_numel;
  std::int64_t first = numel, last = 0;  // a plan left over from matrix products may have few of the weights
  for (const Instruction& ins : problem.plan->instructions) {
    first = std::min(first, ins.weight_offset);
    last = std::max(last, ins.weight_offset + ins.weight_numel);
  }
  const auto memory = aligned_array<T>(2 * numel);
  T *const of_few = memory.get(), *const of_many = of_few + numel;
  for (T* sum : {of_few, of_many}) std::fill(sum + first, sum + std::max(first, last), T{});
  const auto move = [&](T* from, T* to) {
    for (std::int64_t q = first; q < last; ++q) {
      to[q] += from[q];
      from[q] = 0;
    }
  };
  Rows rows(problem, lowered, of_few);
  for (std::int64_t row = begin, n = 1; row < end; row += kFew, ++n) {
    rows.run(row, std::min(row + kFew, end));
    move(of_few, of_many);
    if (n % kSums == 0) move(of_many, weight_partial);
  }
  move(of_many, weight_partial);
}

template <class T, class Storage>
void run(const Problem& problem, const Lowered& lowered, std::int64_t begin, std::int64_t end, void* weight_partial) {
  constexpr int W = EQK_VECTOR_BYTES / sizeof(T);
  T* const partial = static_cast<T*>(weight_partial);
#if EQK_UNROLLED
  if constexpr (std::is_same_v<T, Storage>) {
    if (ChannelLanes<T>::can_run(problem, lowered)) return run<ChannelLanes<T>>(problem, lowered, begin, end, partial);
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

}  // namespace EQK_ISA

#define EQK_JOIN(a, b) a##b
#define EQK_NAME(isa) EQK_JOIN(kernel_of_, isa)
RowsKernel EQK_NAME(EQK_ISA)() { return kernel; }

}  // namespace eqk::tensor_product
