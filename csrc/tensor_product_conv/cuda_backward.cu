// The backward kernel.
#include "tensor_product_conv/cuda_backward.h"
#include "tensor_product_conv/cuda_enqueue.h"

namespace eqk::tensor_product_conv {

// Three blocks of four warps leave 168 registers a thread.
extern "C" __global__ void __launch_bounds__(32 * kWarpsOfBlock, 3)
    eqk_tensor_product_conv_backward_f32(const __grid_constant__ BackwardArguments a) {
  run_units<float, channels_of_lane(false), false, BackwardWarp>(a);
}

const void* backward_kernel() { return reinterpret_cast<const void*>(eqk_tensor_product_conv_backward_f32); }

}  // namespace eqk::tensor_product_conv
