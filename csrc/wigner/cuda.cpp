#include <torch/csrc/stable/accelerator.h>

#include "core/cuda_stream.h"
#include "wigner/cuda_enqueue.h"
#include "wigner/cuda_launches.h"
#include "wigner/op.h"

namespace eqk::wigner {
namespace {

struct Cuda {
  static void launch(const Problem& problem, const Tensor& like) {
    const std::int32_t device = like.device().index();
    const torch::stable::accelerator::DeviceGuard guard(device);
    const cudaStream_t stream = current_stream("wigner", device);
    const Launch l(problem);
    const void* const kernel = kernel_of(l.member, l.dtype);
    if (const auto error = enqueue_kernel(kernel, l.grid, l.block, l.shared, l.argument(), stream);
        error != cudaSuccess)
      check_cuda("wigner", error, l.name().c_str());
  }
};

}  // namespace
}  // namespace eqk::wigner

STABLE_TORCH_LIBRARY_IMPL(eqk, CUDA, m) { eqk::wigner::register_impls<eqk::wigner::Cuda>(m); }
