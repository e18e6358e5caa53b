// The general kernels, free of torch: cuda.cpp launches them, and tests run their PTX in an emulator.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <string_view>

#include "tensor_product/cuda_enqueue.h"
#include "tensor_product/cuda_general.h"

namespace eqk::tensor_product {
namespace {

template <class T, class Storage, bool kDual, Slot slot>
__device__ __forceinline__ void general(const SlotArguments& a) {
  const General<T, Storage, kDual, slot> kernel(a);
  const std::int64_t total = a.rows * a.columns.value(), step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t n = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; n < total; n += step) {
    const std::int64_t row = a.columns.quotient(n), column = a.columns.remainder(n);
    static_cast<Storage*>(a.out)[row * a.out_stride + column] =
        static_cast<Storage>(kernel.element(row, row + 1, column));
  }
}

template <class T, class Storage, bool kDual>
__device__ __forceinline__ void general_partial(const SlotArguments& a) {
  const General<T, Storage, kDual, kW> kernel(a);
  const std::int64_t total = a.parts * a.columns.value(), step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t n = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; n < total; n += step) {
    const std::int64_t part = a.columns.quotient(n), column = a.columns.remainder(n), longer = a.longer_parts;
    const std::int64_t begin = part * a.rows_of_part + (part < longer ? part : longer);
    static_cast<T*>(a.out)[n] = kernel.element(begin, begin + a.rows_of_part + (part < longer), column);
  }
}

template <class T, class Storage>
__device__ __forceinline__ void reduce(const ReduceArguments& a) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t q = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; q < a.columns; q += step) {
    BlockSum<T> sum;
    for (std::int64_t p = 0; p < a.parts; ++p) sum.next() += static_cast<const T*>(a.partial)[p * a.columns + q];
    static_cast<Storage*>(a.out)[q] = static_cast<Storage>(sum.total());
  }
}

}  // namespace

// Names without mangling, which Launch::name() spells and the tests look up.
// Four blocks a multiprocessor: where no number is given, ptxas aims at six, and spills.
#define EQK_GENERAL(suffix, T, Storage, kDual)                                                 \
  extern "C" __global__ void __launch_bounds__(128, 4)                                         \
      eqk_tensor_product_general_x_##suffix(const __grid_constant__ SlotArguments a) {         \
    general<T, Storage, kDual, kX>(a);                                                         \
  }                                                                                            \
  extern "C" __global__ void __launch_bounds__(128, 4)                                         \
      eqk_tensor_product_general_y_##suffix(const __grid_constant__ SlotArguments a) {         \
    general<T, Storage, kDual, kY>(a);                                                         \
  }                                                                                            \
  extern "C" __global__ void __launch_bounds__(128, 4)                                         \
      eqk_tensor_product_general_w_##suffix(const __grid_constant__ SlotArguments a) {         \
    general<T, Storage, kDual, kW>(a);                                                         \
  }                                                                                            \
  extern "C" __global__ void __launch_bounds__(128, 4)                                         \
      eqk_tensor_product_general_w_partial_##suffix(const __grid_constant__ SlotArguments a) { \
    general_partial<T, Storage, kDual>(a);                                                     \
  }                                                                                            \
  extern "C" __global__ void __launch_bounds__(128, 4)                                         \
      eqk_tensor_product_general_g_##suffix(const __grid_constant__ SlotArguments a) {         \
    general<T, Storage, kDual, kG>(a);                                                         \
  }
#define EQK_KERNELS(suffix, T, Storage)                                               \
  EQK_GENERAL(suffix, T, Storage, false)                                              \
  EQK_GENERAL(dual_##suffix, T, Storage, true)                                        \
  extern "C" __global__ void __launch_bounds__(128, 4)                                \
      eqk_tensor_product_reduce_##suffix(const __grid_constant__ ReduceArguments a) { \
    reduce<T, Storage>(a);                                                            \
  }

EQK_KERNELS(f32, float, float)
EQK_KERNELS(f64, double, double)
EQK_KERNELS(f16, float, __half)
EQK_KERNELS(bf16, float, __nv_bfloat16)

namespace {

template <class T, int degree>
const void* channel_kernel_of(const Launch& launch) {
  constexpr bool kDuals = has_channel_kernel(sizeof(T) == 8 ? Dtype::float64 : Dtype::float32, degree, true);
  using Plans = AnyPlan<T, degree>;
  const bool backward = launch.kernel == Kernel::backward;
  if constexpr (kDuals)
    if (launch.dual) return backward ? channel_kernel<Plans, true, true>() : channel_kernel<Plans, false, true>();
  return backward ? channel_kernel<Plans, true, false>() : channel_kernel<Plans, false, false>();
}

const void* kernel_of_plan(const Launch& launch) {
#define EQK_CHOOSE_PLAN(plan, is_backward, is_dual)                                                                 \
  if (launch.listed->name == std::string_view(#plan) && (launch.kernel == Kernel::backward) == bool{is_backward} && \
      launch.dual == bool{is_dual})                                                                                 \
    return channel_kernel<plans::plan, bool{is_backward}, bool{is_dual}>();
  EQK_LISTED_KERNELS(EQK_CHOOSE_PLAN)
#undef EQK_CHOOSE_PLAN
  return nullptr;
}

const void* kernel_of(const Launch& launch) {
  if (launch.listed) return kernel_of_plan(launch);
  if (launch.kernel == Kernel::forward || launch.kernel == Kernel::backward) {
    if (launch.dtype == Dtype::float64) return channel_kernel_of<double, kSmallDegree>(launch);
    return launch.degree == kSmallDegree ? channel_kernel_of<float, kSmallDegree>(launch)
                                         : channel_kernel_of<float, EQK_LMAX>(launch);
  }
#define EQK_CHOOSE(suffix)                                                                                       \
  if (launch.kernel == Kernel::reduce) return reinterpret_cast<const void*>(eqk_tensor_product_reduce_##suffix); \
  if (launch.dual) {                                                                                             \
    EQK_CHOOSE_SLOT(dual_##suffix)                                                                               \
  } else {                                                                                                       \
    EQK_CHOOSE_SLOT(suffix)                                                                                      \
  }
#define EQK_CHOOSE_SLOT(suffix)                                                                            \
  switch (launch.slot) {                                                                                   \
    case kX:                                                                                               \
      return reinterpret_cast<const void*>(eqk_tensor_product_general_x_##suffix);                         \
    case kY:                                                                                               \
      return reinterpret_cast<const void*>(eqk_tensor_product_general_y_##suffix);                         \
    case kW:                                                                                               \
      return launch.partial ? reinterpret_cast<const void*>(eqk_tensor_product_general_w_partial_##suffix) \
                            : reinterpret_cast<const void*>(eqk_tensor_product_general_w_##suffix);        \
    default:                                                                                               \
      return reinterpret_cast<const void*>(eqk_tensor_product_general_g_##suffix);                         \
  }
  switch (launch.dtype) {
    case Dtype::float32:
      EQK_CHOOSE(f32)
    case Dtype::float64:
      EQK_CHOOSE(f64)
    case Dtype::float16:
      EQK_CHOOSE(f16)
    case Dtype::bfloat16:
      EQK_CHOOSE(bf16)
  }
  return nullptr;
}

}  // namespace

cudaError_t enqueue(const Launch& launch, cudaStream_t stream) {
  return enqueue_kernel(kernel_of(launch), launch.grid, launch.block, launch.shared, launch.argument(), stream);
}

}  // namespace eqk::tensor_product
