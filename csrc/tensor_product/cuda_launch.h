#pragma once
#include <cuda_runtime_api.h>

#include "tensor_product/cuda_kernels.h"

namespace eqk::tensor_product {

const void* unrolled_kernel_of(const Launch& launch);

cudaError_t enqueue(const Launch& launch, cudaStream_t stream);

}  // namespace eqk::tensor_product
