#pragma once
#include <cuda_runtime_api.h>

#include "tensor_product/cuda_launches.h"

namespace eqk::tensor_product {

cudaError_t enqueue(const Launch& launch, cudaStream_t stream);

}  // namespace eqk::tensor_product
