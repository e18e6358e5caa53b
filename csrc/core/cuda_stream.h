#pragma once
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstdint>

#include "core/cached.h"
#include "core/tensor.h"

namespace eqk {

inline void check_cuda(const char* op, cudaError_t error, const char* what) {
  if (error != cudaSuccess) fail("eqk::", op, ": ", what, ": ", cudaGetErrorString(error));
}

// The library is linked without libtorch_cuda, so that it builds beside a torch without CUDA; a process that holds CUDA
// tensors has that library loaded.
inline cudaStream_t current_stream(const char* op, std::int32_t device) {
  using Get = AOTITorchError (*)(std::int32_t, void**);
  const auto get = cached(0, [op] {
    void* const library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_NOW);
    if (!library) fail("eqk::", op, ": expected libtorch_cuda.so to be loaded, since x is on a CUDA device");
    void* const symbol = dlsym(library, "aoti_torch_get_current_cuda_stream");
    if (!symbol) fail("eqk::", op, ": expected aoti_torch_get_current_cuda_stream in libtorch_cuda.so");
    return reinterpret_cast<Get>(symbol);
  });
  void* stream = nullptr;
  if ((*get)(device, &stream) != 0) fail("eqk::", op, ": no current stream on cuda:", device);
  return static_cast<cudaStream_t>(stream);
}

}  // namespace eqk
