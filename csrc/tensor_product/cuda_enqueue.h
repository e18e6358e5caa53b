#pragma once
#include "core/cuda_enqueue.h"
#include "tensor_product/cuda_launches.h"

namespace eqk::tensor_product {

cudaError_t enqueue(const Launch& launch, cudaStream_t stream);

}  // namespace eqk::tensor_product
