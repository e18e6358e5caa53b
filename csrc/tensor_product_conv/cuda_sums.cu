// Sums of the rows that the backward writes for the edges: those of x over the edges of a source, in vectors, those of
// y over the units that read it.
#include "core/cuda_pack.h"
#include "tensor_product_conv/cuda_enqueue.h"
#include "tensor_product_conv/cuda_unit_warp.h"

namespace eqk::tensor_product_conv {
namespace {

// A thread sums a pack of N elements of a row of the result.
template <class T, int N, bool kOfX>
__device__ __forceinline__ void sum_rows(const SumArguments& a) {
  using P = Pack<T, N>;
  const std::int64_t thread = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const std::int64_t row = a.packs.quotient(thread);
  if (row >= a.count) return;
  const int pack = static_cast<int>(thread - row * a.packs.value());
  int n = a.ranges - 1;
  while (a.range[n].first_pack > pack) --n;
  const SumRange& range = a.range[n];
  const int first = (pack - range.first_pack) * N;  // [channel][component]
  const auto clear = [](P& p) EQK_LAMBDA {
#pragma unroll
    for (int c = 0; c < N; ++c) p.set(c, T{0});
  };
  P total;
  clear(total);
  const T* rows = static_cast<const T*>(a.rows) + first;
  if constexpr (!kOfX) rows = row_of(rows, static_cast<std::int32_t>(row), a.rows_stride);
  const int end_term = range.end_term;
#pragma unroll 1
  for (int t = range.first_term; t < end_term; ++t) {
    const SumTerm& term = a.term[t];
    const T* column = rows + term.column;
#pragma unroll 1
    for (int left = term.count; left > 0; --left, column += term.apart) {
      if constexpr (kOfX) {
        const int end = a.row[row + 1];
        for (int begin = a.row[row]; begin < end; begin += kEdgesOfSum) {
          const int stop = min(begin + kEdgesOfSum, end);
          P sum;
          clear(sum);
#pragma unroll 4
          for (int place = begin; place < stop; ++place) {
            P more;
            more.load(row_of(column, a.order[place], a.rows_stride));
            sum.template add<T>(more);
          }
          total.template add<T>(sum);
        }
      } else {
        P more;
        more.load(column);
        total.template add<T>(more);
      }
    }
  }
  T* const to = static_cast<T*>(a.out) + row * a.out_stride + range.column;
  // Of y, a range that is summed has one channel.
  if constexpr (kOfX) {
    if (!a.vectors) {
#pragma unroll
      for (int c = 0; c < N; ++c) {
        const int channel = (first + c) / range.dim, component = (first + c) % range.dim;
        T& element = to[a.mul_ir ? first + c : component * range.mul + channel];
        if (channel < range.mul) element = total.template get<T>(c) + (a.add ? element : T{0});
      }
      return;
    }
  }
  if (a.add) {
    P before;
    before.load(to + first);
    total.template add<T>(before);
  }
  total.store(to + first);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(128)
    eqk_tensor_product_conv_sum_x_f32(const __grid_constant__ SumArguments a) {
  sum_rows<float, 4, true>(a);
}
extern "C" __global__ void __launch_bounds__(128)
    eqk_tensor_product_conv_sum_y_f32(const __grid_constant__ SumArguments a) {
  sum_rows<float, 1, false>(a);
}

template <>
const void* sum_kernel<true>() {
  return reinterpret_cast<const void*>(eqk_tensor_product_conv_sum_x_f32);
}
template <>
const void* sum_kernel<false>() {
  return reinterpret_cast<const void*>(eqk_tensor_product_conv_sum_y_f32);
}

}  // namespace eqk::tensor_product_conv
