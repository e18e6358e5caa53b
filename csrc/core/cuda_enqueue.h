#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace eqk {

// A kernel of one argument, on a grid of one dimension.
inline cudaError_t enqueue_kernel(const void* kernel, std::int64_t grid, int block, int shared, const void* argument,
                                  cudaStream_t stream) {
  constexpr int kWithoutAsking = 48 << 10;
  if (shared > kWithoutAsking) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (error != cudaSuccess) return error;
  }
  void* arguments[] = {const_cast<void*>(argument)};
  return cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(grid)), dim3(static_cast<unsigned>(block)), arguments,
                          static_cast<std::size_t>(shared), stream);
}

}  // namespace eqk
