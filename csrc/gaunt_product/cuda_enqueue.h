#pragma once
#include "core/cuda_enqueue.h"
#include "gaunt_product/cuda_kernels.h"

namespace eqk::gaunt_product {

template <Kind kind>
const void* kernel_of(Member member, int lmax);

}  // namespace eqk::gaunt_product
