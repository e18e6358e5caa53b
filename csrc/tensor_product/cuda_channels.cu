// One channel kernel: of scalar type EQK_TYPE (called EQK_SUFFIX), for degrees up to EQK_DEGREE, forward or backward
// (EQK_BACKWARD), on duals or not (EQK_DUAL). The build compiles this file once for each, in parallel.
#include "tensor_product/cuda_channels.h"
#include "tensor_product/cuda_launch.h"

namespace eqk::tensor_product {

#if EQK_BACKWARD
#define EQK_DIRECTION backward
#else
#define EQK_DIRECTION forward
#endif
#if EQK_DUAL
#define EQK_INFIX dual_
#else
#define EQK_INFIX
#endif
#define EQK_JOIN(direction, infix, suffix, degree) eqk_tensor_product_##direction##_##infix##suffix##_l##degree
#define EQK_NAME(direction, infix, suffix, degree) EQK_JOIN(direction, infix, suffix, degree)
#define EQK_KERNEL EQK_NAME(EQK_DIRECTION, EQK_INFIX, EQK_SUFFIX, EQK_DEGREE)

// Four blocks a multiprocessor leave 128 registers a thread, which is enough up to degree 3; three leave 168.
extern "C" __global__ void __launch_bounds__(128, sizeof(EQK_TYPE) * EQK_DEGREE <= 12 ? 4 : 3)
    EQK_KERNEL(const __grid_constant__ ChannelArguments a) {
  channels<EQK_TYPE, EQK_TYPE, EQK_DUAL, EQK_BACKWARD, EQK_DEGREE>(a);
}

template <>
const void* channel_kernel<EQK_TYPE, EQK_DEGREE, EQK_BACKWARD, EQK_DUAL>() {
  return reinterpret_cast<const void*>(EQK_KERNEL);
}

}  // namespace eqk::tensor_product
