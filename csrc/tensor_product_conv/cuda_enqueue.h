#pragma once
#include "core/cuda_enqueue.h"
#include "tensor_product_conv/cuda_launches.h"

namespace eqk::tensor_product_conv {

template <bool dual>
const void* forward_kernel();
template <bool dual>
const void* backward_kernel();
template <bool of_x>
const void* sum_kernel();

cudaError_t enqueue(const Launch& launch, cudaStream_t stream);

}  // namespace eqk::tensor_product_conv
