#include <torch/csrc/stable/accelerator.h>

#include "core/cuda_stream.h"
#include "tensor_product_conv/cuda_enqueue.h"
#include "tensor_product_conv/op.h"

namespace eqk::tensor_product_conv {
namespace {

DeviceIndices indices(const Tensor& t) {
  return {t.const_data_ptr(), t.stride(0), t.scalar_type() == ScalarType::Long};
}

// torch.argsort(t, stable=True), which waits for no device.
Tensor stable_order(const Tensor& t) {
  std::array<StableIValue, 4> stack{torch::stable::detail::from(t),
                                    torch::stable::detail::from(std::optional<bool>(true)),
                                    torch::stable::detail::from(std::int64_t{0}), torch::stable::detail::from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  const Tensor sorted = torch::stable::detail::to<Tensor>(stack[0]);  // owns what it is made of
  return torch::stable::detail::to<Tensor>(stack[1]);
}

struct Cuda {
  using Problem = DeviceProblem;

  struct Edges : DeviceEdges {
    std::int32_t device = 0;
    OptionalTensor src_tensor, dst_tensor, by_dst_tensor, by_src_tensor;
  };

  static Edges edges(const char*, const Graph& graph, std::int64_t num_src) {
    Edges e;
    e.count = graph.src.size(0), e.num_src = num_src, e.num_dst = graph.num_dst;
    e.src = indices(graph.src), e.dst = indices(graph.dst);
    e.device = graph.src.device().index();
    e.src_tensor = graph.src, e.dst_tensor = graph.dst;
    e.by_dst_tensor = graph.by_dst, e.by_src_tensor = graph.by_src;
    return e;
  }

  static bool covers(const Problem& problem) {
    return Launches::cover(problem) && copies_to_shared_memory(static_cast<const Edges&>(*problem.edges).device);
  }

  static void launch(const Problem& call, const Tensor& like) {
    constexpr const char* kOp = "tensor_product_conv";
    const std::int32_t device = like.device().index();
    const torch::stable::accelerator::DeviceGuard guard(device);
    const auto& given = static_cast<const Edges&>(*call.edges);
    DeviceEdges edges = given;
    const Tensor by_dst = given.by_dst_tensor ? *given.by_dst_tensor : stable_order(*given.dst_tensor);
    edges.by_dst = indices(by_dst);
    Tensor by_src;
    if (Launches::need_sources(call)) {
      by_src = given.by_src_tensor ? *given.by_src_tensor : stable_order(*given.src_tensor);
      edges.by_src = indices(by_src);
    }
    Problem problem = call;
    problem.edges = &edges;
    const cudaStream_t stream = current_stream(kOp, device);
    Tensor scratch = torch::stable::new_empty(like, {Launches::scratch_bytes(problem)}, ScalarType::Byte);
    for (const Launch& l : Launches(problem, scratch.mutable_data_ptr()).all())
      check_cuda(kOp, enqueue(l, stream), l.name().c_str());
  }

 private:
  // The kernels have code for sm_80 and newer.
  static bool copies_to_shared_memory(std::int32_t device) {
    int major = 0;
    check_cuda("tensor_product_conv", cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
               "compute capability");
    return major >= 8;
  }
};

}  // namespace
}  // namespace eqk::tensor_product_conv

STABLE_TORCH_LIBRARY_IMPL(eqk, CUDA, m) { eqk::tensor_product_conv::register_impls<eqk::tensor_product_conv::Cuda>(m); }
