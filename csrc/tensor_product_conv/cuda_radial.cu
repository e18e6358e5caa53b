// The kernels of the convolution with weights h a, at one precision (EQK_PARTS). The build compiles this file once for
// each.
#include "tensor_product_conv/cuda_radial_edges.h"
#include "tensor_product_conv/cuda_radial_enqueue.h"
#include "tensor_product_conv/cuda_radial_warp.h"

namespace eqk::tensor_product_conv {

#if EQK_PARTS == 2
#define EQK_KERNEL eqk_tensor_product_conv_radial_bf16x3
#define EQK_KERNEL_OF_EDGES eqk_tensor_product_conv_radial_edges_bf16x3
#else
#define EQK_KERNEL eqk_tensor_product_conv_radial_f32
#define EQK_KERNEL_OF_EDGES eqk_tensor_product_conv_radial_edges_f32
#endif

extern "C" __global__ void __launch_bounds__(32 * kRadialWarps, 1)
    EQK_KERNEL(const __grid_constant__ RadialArguments a) {
  radial_forward<EQK_PARTS>(a);
}

// With no number of blocks the compiler aims at sixteen of 32 registers, and spills.
extern "C" __global__ void __launch_bounds__(kThreadsOfGroup, 8)
    EQK_KERNEL_OF_EDGES(const __grid_constant__ RadialEdgesArguments a) {
  make_tiles<EQK_PARTS>(a);
}

template <>
const void* radial_kernel<EQK_PARTS>(bool of_edges) {
  return of_edges ? reinterpret_cast<const void*>(EQK_KERNEL_OF_EDGES) : reinterpret_cast<const void*>(EQK_KERNEL);
}

}  // namespace eqk::tensor_product_conv
