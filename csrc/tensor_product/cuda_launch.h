#pragma once
#include <cuda_runtime_api.h>

#include "tensor_product/cuda_kernels.h"

namespace eqk::tensor_product {

// The kernel of cuda_channels.cu for scalar type T and degrees up to `degree`.
template <class T, int degree, bool backward, bool dual>
const void* channel_kernel();

cudaError_t enqueue(const Launch& launch, cudaStream_t stream);

}  // namespace eqk::tensor_product
