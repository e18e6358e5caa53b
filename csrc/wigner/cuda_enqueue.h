#pragma once
#include "core/cuda_enqueue.h"
#include "wigner/cuda_kernels.h"

namespace eqk::wigner {

const void* kernel_of(Member member, Dtype dtype);

}  // namespace eqk::wigner
