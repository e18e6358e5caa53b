#include <torch/csrc/stable/accelerator.h>

#include "core/cuda_stream.h"
#include "gaunt_product/cuda_enqueue.h"
#include "gaunt_product/cuda_launches.h"
#include "gaunt_product/op.h"

namespace eqk::gaunt_product {
namespace {

cudaError_t enqueue(const Launch& launch, cudaStream_t stream) {
  const auto of_kind = launch.kind == Kind::even  ? &kernel_of<Kind::even>
                       : launch.kind == Kind::odd ? &kernel_of<Kind::odd>
                                                  : &kernel_of<Kind::all>;
  const void* const kernel = of_kind(launch.member, launch.lmax);
  return enqueue_kernel(kernel, launch.grid, launch.block, launch.shared, launch.argument(), stream);
}

struct Cuda {
  static bool covers(const Problem& problem) { return Launches::cover(problem); }

  static void launch(const Problem& problem, const Tensor& like) {
    const std::int32_t device = like.device().index();
    const torch::stable::accelerator::DeviceGuard guard(device);
    const cudaStream_t stream = current_stream("gaunt_product", device);
    for (const Launch& l : Launches(problem).all())
      if (const cudaError_t error = enqueue(l, stream); error != cudaSuccess)
        check_cuda("gaunt_product", error, l.name().c_str());
  }
};

}  // namespace
}  // namespace eqk::gaunt_product

STABLE_TORCH_LIBRARY_IMPL(eqk, CUDA, m) { eqk::gaunt_product::register_impls<eqk::gaunt_product::Cuda>(m); }
