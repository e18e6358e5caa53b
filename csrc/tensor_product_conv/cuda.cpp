#include <torch/csrc/stable/accelerator.h>

#include "core/cuda_stream.h"
#include "tensor_product_conv/cuda_enqueue.h"
#include "tensor_product_conv/cuda_radial_enqueue.h"
#include "tensor_product_conv/cuda_radial_gradients.h"
#include "tensor_product_conv/op.h"

namespace eqk::tensor_product_conv {
namespace {

DeviceIndices indices(const Tensor& t) {
  return {t.const_data_ptr(), t.stride(0), t.scalar_type() == ScalarType::Long};
}

// torch.argsort(t, stable=True), which waits for no device.
Tensor stable_order(const Tensor& t) {
  return torch_operation<2>("aten::sort", "stable", t, std::optional<bool>(true), std::int64_t{0}, false)[1];
}

// What Python says: `what` of the radial convolution.
template <class T>
T asked(const std::string& what) {
  StableIValue result = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher(("eqk::tensor_product_conv_radial_" + what).c_str(), "", &result, TORCH_ABI_VERSION));
  return torch::stable::detail::to<T>(result);
}

struct Cuda {
  using Problem = DeviceProblem;
  using RadialProblem = DeviceRadialProblem;

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

  // Of a forward at full precision, so that with less the same problems run.
  static bool covers(const RadialProblem& problem) {
    const std::int32_t device = static_cast<const Edges&>(*problem.edges).device;
    if (!copies_to_shared_memory(device)) return false;
    if (problem.in[kRadialG].value) return Launches::cover(with_weights(problem));
    return RadialLaunches(problem, true, radial_device(device)).covered();
  }

  static void launch(const Problem& call, const Tensor& like) {
    run("tensor_product_conv", call, like, 0,
        [](const Problem& problem, const Tensor&, void* scratch, auto&& enqueue_all) {
          enqueue_all(Launches(problem, scratch).all());
        });
  }

  static void launch_radial(const RadialProblem& call, const Tensor& like) {
    if (call.in[kRadialG].value) return launch_radial_gradients(call, like);
    const RadialLaunches launches(call, asked<bool>("is_exact"), radial_device(like.device().index()));
    const Problem of_order = RadialLaunches::order_of(call);
    const std::int64_t before = Launches::scratch_bytes(of_order);
    run("tensor_product_conv_radial", of_order, like, launches.scratch_bytes(),
        [&](const Problem& order, const Tensor&, void* scratch, auto&& enqueue_all) {
          Launches ordering(order, scratch);
          enqueue_all(ordering.all());
          enqueue_all(launches.all(ordering.places(), static_cast<unsigned char*>(scratch) + before));
        });
  }

 private:
  static void launch_radial_gradients(const RadialProblem& call, const Tensor& like) {
    Edges edges = static_cast<const Edges&>(*call.edges);
    Tensor place_of = torch::stable::new_empty(like, {edges.count}, ScalarType::Int);
    edges.place_of = static_cast<std::int32_t*>(place_of.mutable_data_ptr());
    Problem problem = with_weights(call);
    problem.edges = &edges;
    run("tensor_product_conv_radial", problem, like, 0,
        [&](const Problem& ordered, const Tensor& by_dst, void* scratch, auto&& enqueue_all) {
          RadialGradients(call, ordered, by_dst, asked<std::int64_t>("bytes_of_weights"), like)
              .run(scratch, enqueue_all);
        });
  }

  // Calls f with the problem, its edges with their orders, that of destinations, its scratch memory, with so many more
  // bytes behind it, and what enqueues launches.
  template <class F>
  static void run(const char* op, const Problem& call, const Tensor& like, std::int64_t more, F&& f) {
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
    const cudaStream_t stream = current_stream(op, device);
    Tensor scratch = torch::stable::new_empty(like, {Launches::scratch_bytes(problem) + more}, ScalarType::Byte);
    f(problem, by_dst, scratch.mutable_data_ptr(), [&](const auto& launches) {
      for (const auto& l : launches) check_cuda(op, enqueue(l, stream), l.name().c_str());
    });
  }

  static int attribute(const char* op, cudaDeviceAttr which, const char* what, std::int32_t device) {
    int value = 0;
    check_cuda(op, cudaDeviceGetAttribute(&value, which, device), what);
    return value;
  }

  // The kernels have code for sm_80 and newer.
  static bool copies_to_shared_memory(std::int32_t device) {
    return attribute("tensor_product_conv", cudaDevAttrComputeCapabilityMajor, "compute capability", device) >= 8;
  }

  static RadialDevice radial_device(std::int32_t device) {
    constexpr const char* kOp = "tensor_product_conv_radial";
    return {attribute(kOp, cudaDevAttrMultiProcessorCount, "multiprocessors", device),
            attribute(kOp, cudaDevAttrMaxSharedMemoryPerBlockOptin, "shared memory of a block", device)};
  }
};

}  // namespace
}  // namespace eqk::tensor_product_conv

STABLE_TORCH_LIBRARY_IMPL(eqk, CUDA, m) {
  eqk::tensor_product_conv::register_impls<eqk::tensor_product_conv::Cuda>(m);
  eqk::tensor_product_conv::register_radial_forward<eqk::tensor_product_conv::Cuda>(m);
  eqk::tensor_product_conv::register_radial_gradients<eqk::tensor_product_conv::Cuda>(m);
}
