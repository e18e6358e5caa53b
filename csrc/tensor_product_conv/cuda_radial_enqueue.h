#pragma once
#include "core/cuda_enqueue.h"
#include "tensor_product_conv/cuda_radial_launches.h"

namespace eqk::tensor_product_conv {

template <int parts>
const void* radial_kernel(bool of_edges);
template <>
const void* radial_kernel<2>(bool of_edges);
template <>
const void* radial_kernel<3>(bool of_edges);

inline cudaError_t enqueue(const RadialLaunch& launch, cudaStream_t stream) {
  const void* const kernel =
      launch.parts == 3 ? radial_kernel<3>(launch.of_edges()) : radial_kernel<2>(launch.of_edges());
  return enqueue_kernel(kernel, launch.grid, launch.block, launch.shared, launch.argument(), stream);
}

}  // namespace eqk::tensor_product_conv
