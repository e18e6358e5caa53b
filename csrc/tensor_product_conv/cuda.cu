// Edges in the order of their destinations, free of torch: cuda.cpp launches it, and tests run its PTX in an emulator.
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
struct Order {
  const OrderArguments& a;

  __device__ __forceinline__ std::int64_t edge(std::int64_t place) const {
    const std::int64_t e = index_at(a.by_dst, a.by_dst_stride, a.by_dst_wide, place);
    const bool by_dst_is_in_range = e >= 0 && e < a.edges;
    assert(by_dst_is_in_range);
    return by_dst_is_in_range ? e : 0;
  }

  __device__ __forceinline__ std::int64_t destination(std::int64_t e) const {
    const std::int64_t d = index_at(a.dst, a.dst_stride, a.dst_wide, e);
    const bool dst_is_in_range = d >= 0 && d < a.num_dst;
    assert(dst_is_in_range);
    return d;
  }

  __device__ __forceinline__ void write_edge(std::int64_t place) const {
    const std::int64_t e = edge(place), d = destination(e), s = index_at(a.src, a.src_stride, a.src_wide, e);
    const bool src_is_in_range = s >= 0 && s < a.num_src;
    assert(src_is_in_range);
    if (place > 0) {
      const std::int64_t before = edge(place - 1), d_before = destination(before);
      const bool by_dst_is_the_stable_order_of_dst = d_before < d || (d_before == d && before < e);
      assert(by_dst_is_the_stable_order_of_dst);
    }
    a.edge[place] = static_cast<std::int32_t>(e);
    a.edge_src[place] = src_is_in_range ? static_cast<std::int32_t>(s) : 0;
  }

  // The first place whose edge leads to destination r or one behind it.
  __device__ __forceinline__ void write_row(std::int64_t r) const {
    std::int64_t low = 0, high = a.edges;
    while (low < high) {
      const std::int64_t middle = low + (high - low) / 2;
      if (destination(edge(middle)) < r)
        low = middle + 1;
      else
        high = middle;
    }
    a.row[r] = static_cast<std::int32_t>(low);
  }
};

}  // namespace

extern "C" __global__ void __launch_bounds__(128)
    eqk_tensor_product_conv_order(const __grid_constant__ OrderArguments a) {
  const Order order{a};
  const std::int64_t n = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (n < a.edges) order.write_edge(n);
  if (n <= a.num_dst) order.write_row(n);
}

cudaError_t enqueue(const Launch& launch, cudaStream_t stream) {
  const void* const kernel = launch.kernel == Kernel::order
                                 ? reinterpret_cast<const void*>(eqk_tensor_product_conv_order)
                             : launch.dual ? forward_kernel<true>()
                                           : forward_kernel<false>();
  return enqueue_kernel(kernel, launch.grid, launch.block, launch.shared, launch.argument(), stream);
}

}  // namespace eqk::tensor_product_conv
