// The kernels of one kind, EQK_KIND. The build compiles this file once for each.
#include "gaunt_product/cuda_enqueue.h"
#include "gaunt_product/cuda_rings.h"

namespace eqk::gaunt_product {

// A multiprocessor has a third block where 168 registers a thread are enough.
constexpr int blocks_of(Member member, int lmax) { return lmax == (member == Member::forward ? 4 : 3) ? 3 : 1; }

#define EQK_JOIN(member, kind, lmax) eqk_gaunt_product_##member##_##kind##_l##lmax##_f32
#define EQK_NAME(member, kind, lmax) EQK_JOIN(member, kind, lmax)
#define EQK_KERNEL(member, lmax)                                                                                  \
  extern "C" __global__ void __launch_bounds__(kThreads, blocks_of(Member::member, lmax)) EQK_NAME(               \
      member, EQK_KIND, lmax)(const __grid_constant__ Rings<Member::member, Kind::EQK_KIND, lmax>::Arguments a) { \
    Rings<Member::member, Kind::EQK_KIND, lmax>::run(a);                                                          \
  }
#define EQK_KERNELS(lmax) EQK_KERNEL(forward, lmax) EQK_KERNEL(backward, lmax)

EQK_KERNELS(1)
EQK_KERNELS(2)
EQK_KERNELS(3)
EQK_KERNELS(4)
EQK_KERNELS(5)
EQK_KERNELS(6)

template <>
const void* kernel_of<Kind::EQK_KIND>(Member member, int lmax) {
#define EQK_POINTER(member, lmax) reinterpret_cast<const void*>(EQK_NAME(member, EQK_KIND, lmax))
#define EQK_POINTERS(member)                                               \
  {EQK_POINTER(member, 1), EQK_POINTER(member, 2), EQK_POINTER(member, 3), \
   EQK_POINTER(member, 4), EQK_POINTER(member, 5), EQK_POINTER(member, 6)}
  static const void* const kernels[2][kKernelDegrees] = {EQK_POINTERS(forward), EQK_POINTERS(backward)};
  return kernels[static_cast<int>(member)][lmax - 1];
}

}  // namespace eqk::gaunt_product
