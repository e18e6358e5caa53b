// One forward kernel, on duals or not (EQK_DUAL). The build compiles this file once for each.
#include "tensor_product_conv/cuda_enqueue.h"
#include "tensor_product_conv/cuda_forward.h"

namespace eqk::tensor_product_conv {

#if EQK_DUAL
#define EQK_KERNEL eqk_tensor_product_conv_forward_dual_f32
#else
#define EQK_KERNEL eqk_tensor_product_conv_forward_f32
#endif

// Three blocks of four warps leave 168 registers a thread.
extern "C" __global__ void __launch_bounds__(32 * kWarpsOfBlock, 3)
    EQK_KERNEL(const __grid_constant__ UnitArguments a) {
  run_units<float, channels_of_lane(EQK_DUAL), EQK_DUAL, ForwardWarp>(a);
}

template <>
const void* forward_kernel<EQK_DUAL>() {
  return reinterpret_cast<const void*>(EQK_KERNEL);
}

}  // namespace eqk::tensor_product_conv
