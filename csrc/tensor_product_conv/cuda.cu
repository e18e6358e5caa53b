// Edges in the order of one of their ends, free of torch: cuda.cpp launches it, and tests run its PTX in an emulator.
#undef NDEBUG  // assertions are what refuses an index
#include <cassert>

#include "tensor_product_conv/cuda_enqueue.h"

namespace eqk::tensor_product_conv {
namespace {

__device__ __forceinline__ std::int64_t index_at(const void* data, std::int64_t stride, bool wide, std::int64_t n) {
  return wide ? static_cast<const std::int64_t*>(data)[n * stride] : static_cast<const std::int32_t*>(data)[n * stride];
}

// As PyTorch's own indexing on a GPU, which has no other way to refuse an index: an assertion that fails ends all work
// of the process on the device, with a line that names it. What is written here is in range even so.
template <bool kOfSources>
struct Order {
  const OrderArguments& a;

  __device__ __forceinline__ std::int64_t edge(std::int64_t place) const {
    const std::int64_t e = index_at(a.order, a.order_stride, a.order_wide, place);
    const bool by_dst_is_in_range = e >= 0 && e < a.edges, by_src_is_in_range = by_dst_is_in_range;
    if constexpr (kOfSources)
      assert(by_src_is_in_range);
    else
      assert(by_dst_is_in_range);
    return by_dst_is_in_range ? e : 0;
  }

  __device__ __forceinline__ std::int64_t end(std::int64_t e) const {
    const std::int64_t n = index_at(a.end, a.end_stride, a.end_wide, e);
    const bool dst_is_in_range = n >= 0 && n < a.num_end, src_is_in_range = dst_is_in_range;
    if constexpr (kOfSources)
      assert(src_is_in_range);
    else
      assert(dst_is_in_range);
    return n;
  }

  __device__ __forceinline__ void write_edge(std::int64_t place) const {
    const std::int64_t e = edge(place), n = end(e);
    if constexpr (!kOfSources) {
      const std::int64_t s = index_at(a.other, a.other_stride, a.other_wide, e);
      const bool src_is_in_range = s >= 0 && s < a.num_other;
      assert(src_is_in_range);
      a.edge_other[place] = src_is_in_range ? static_cast<std::int32_t>(s) : 0;
    }
    std::int32_t number = static_cast<std::int32_t>(e);
    if (a.place_of) {
      if constexpr (kOfSources) {
        number = a.place_of[e];
      } else {
        number = a.place_of[e] = static_cast<std::int32_t>(place);
        a.end_of[place] = static_cast<std::int32_t>(n >= 0 && n < a.num_end ? n : 0);
      }
    }
    a.edge[place] = number;
    if (place > 0) {
      const std::int64_t before = edge(place - 1), n_before = end(before);
      const bool by_dst_is_the_stable_order_of_dst = n_before < n || (n_before == n && before < e),
                 by_src_is_the_stable_order_of_src = by_dst_is_the_stable_order_of_dst;
      if constexpr (kOfSources)
        assert(by_src_is_the_stable_order_of_src);
      else
        assert(by_dst_is_the_stable_order_of_dst);
    }
  }

  // The first place whose edge belongs to node r or one behind it.
  __device__ __forceinline__ void write_row(std::int64_t r) const {
    std::int64_t low = 0, high = a.edges;
    while (low < high) {
      const std::int64_t middle = low + (high - low) / 2;
      if (end(edge(middle)) < r)
        low = middle + 1;
      else
        high = middle;
    }
    a.row[r] = static_cast<std::int32_t>(low);
  }

  __device__ __forceinline__ void write(std::int64_t n) const {
    if (n < a.edges) write_edge(n);
    if (n <= a.num_end) write_row(n);
  }
};

}  // namespace

extern "C" __global__ void __launch_bounds__(128)
    eqk_tensor_product_conv_order(const __grid_constant__ OrderArguments a) {
  const std::int64_t n = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (a.of_sources)
    Order<true>{a}.write(n);
  else
    Order<false>{a}.write(n);
}

cudaError_t enqueue(const Launch& launch, cudaStream_t stream) {
  const void* const kernels[] = {reinterpret_cast<const void*>(eqk_tensor_product_conv_order),
                                 forward_kernel<false>(),
                                 forward_kernel<true>(),
                                 backward_kernel<false>(),
                                 backward_kernel<true>(),
                                 sum_kernel<true>(),
                                 sum_kernel<false>()};  // in the order of Kernel
  const void* const kernel = kernels[static_cast<int>(launch.kernel)];
  return enqueue_kernel(kernel, launch.grid, launch.block, launch.shared, launch.argument(), stream);
}

}  // namespace eqk::tensor_product_conv
