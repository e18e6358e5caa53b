// One channel kernel, forward or backward (EQK_BACKWARD), on duals or not (EQK_DUAL): of plans up to EQK_DEGREE in
// scalar type EQK_TYPE (called EQK_SUFFIX) or, where EQK_PLAN names one of cuda_plans.txt, of that in float32. The
// build compiles this file once for each, in parallel.
#include "tensor_product/cuda_channels.h"
#ifdef EQK_PLAN
#include "cuda_plans.h"
#endif

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
#define EQK_PASTE(a, b) a##b
#define EQK_JOIN(a, b) EQK_PASTE(a, b)
#ifdef EQK_PLAN
#define EQK_TYPE float
#define EQK_SUFFIX f32
#define EQK_DEGREE kSmallDegree
#define EQK_PLANS plans::EQK_PLAN
#define EQK_PROGRAM OneProgram<plans::EQK_PLAN, EQK_BACKWARD, EQK_DUAL>
#define EQK_SCOPE EQK_PLAN
#else
#define EQK_PLANS AnyPlan<EQK_TYPE, EQK_DEGREE>
#define EQK_PROGRAM AnyProgram<EQK_TYPE>
#define EQK_SCOPE EQK_JOIN(l, EQK_DEGREE)
#endif
#define EQK_NAMED(direction, infix, suffix, scope) eqk_tensor_product_##direction##_##infix##suffix##_##scope
#define EQK_NAME(direction, infix, suffix, scope) EQK_NAMED(direction, infix, suffix, scope)
#define EQK_KERNEL EQK_NAME(EQK_DIRECTION, EQK_INFIX, EQK_SUFFIX, EQK_SCOPE)

// Four blocks a multiprocessor leave 128 registers a thread, which is enough up to degree 3; three leave 168.
extern "C" __global__ void __launch_bounds__(128, sizeof(EQK_TYPE) * EQK_DEGREE <= 12 ? 4 : 3)
    EQK_KERNEL(const __grid_constant__ ChannelArguments a) {
  channels<EQK_TYPE, EQK_TYPE, EQK_DUAL, EQK_BACKWARD, EQK_DEGREE, EQK_PROGRAM>(a);
}

template <>
const void* channel_kernel<EQK_PLANS, EQK_BACKWARD, EQK_DUAL>() {
  return reinterpret_cast<const void*>(EQK_KERNEL);
}

}  // namespace eqk::tensor_product
