// The unrolled kernels, apart from the general ones because they take the compiler longest.
#include "tensor_product/cuda_launch.h"
#include "tensor_product/cuda_unrolled.h"

namespace eqk::tensor_product {

#define EQK_UNROLLED(slot, name, suffix, T, kDual)                                             \
  extern "C" __global__ void __launch_bounds__(128)                                            \
      eqk_tensor_product_unrolled_##name##_##suffix(const __grid_constant__ SlotArguments a) { \
    unrolled<T, kDual, slot>(a);                                                               \
  }
#define EQK_UNROLLED_SLOTS(suffix, T, kDual) \
  EQK_UNROLLED(kX, x, suffix, T, kDual)      \
  EQK_UNROLLED(kW, w, suffix, T, kDual)      \
  EQK_UNROLLED(kG, g, suffix, T, kDual)

EQK_UNROLLED_SLOTS(f32, float, false)
EQK_UNROLLED_SLOTS(dual_f32, float, true)
EQK_UNROLLED_SLOTS(f64, double, false)

const void* unrolled_kernel_of(const Launch& launch) {
#define EQK_CHOOSE(suffix)                                                                           \
  return launch.slot == kX   ? reinterpret_cast<const void*>(eqk_tensor_product_unrolled_x_##suffix) \
         : launch.slot == kW ? reinterpret_cast<const void*>(eqk_tensor_product_unrolled_w_##suffix) \
                             : reinterpret_cast<const void*>(eqk_tensor_product_unrolled_g_##suffix);
  if (launch.dtype == Dtype::float64) EQK_CHOOSE(f64)
  if (launch.dual) EQK_CHOOSE(dual_f32)
  EQK_CHOOSE(f32)
}

}  // namespace eqk::tensor_product
