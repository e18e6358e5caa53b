#include <torch/csrc/stable/accelerator.h>

#include <functional>
#include <memory>

#include "core/cached.h"
#include "core/cuda_stream.h"
#include "tensor_product/cuda_enqueue.h"
#include "tensor_product/op.h"

namespace eqk::tensor_product {
namespace {

void check_cuda(cudaError_t error, const char* what) { eqk::check_cuda("tensor_product", error, what); }

// Until it ends, this thread may do what a capture in progress elsewhere forbids.
class RelaxedCapture {
 public:
  RelaxedCapture() : error_(cudaThreadExchangeStreamCaptureMode(&mode_)) {}
  ~RelaxedCapture() {
    if (error_ == cudaSuccess) cudaThreadExchangeStreamCaptureMode(&mode_);
  }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;
  cudaError_t error() const { return error_; }

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
  cudaError_t error_;
};

struct FreeOnDevice {
  void operator()(void* memory) const {
    const RelaxedCapture relaxed;
    cudaFree(memory);
  }
};

struct DeviceTables {
  Tables tables;
  const ListedPlan* listed;
  std::unique_ptr<void, FreeOnDevice> memory;
};

struct TablesKey {
  const Plan* plan;
  bool is_double;
  std::int32_t device;
  bool operator==(const TablesKey&) const = default;
};

DeviceTables upload(const TablesKey& key) {
  DeviceTables made{Tables(*key.plan, key.is_double), listed_plan(*key.plan), nullptr};
  const auto& bytes = made.tables.bytes();
  const RelaxedCapture relaxed;
  check_cuda(relaxed.error(), "capture mode");
  void* memory = nullptr;
  check_cuda(cudaMalloc(&memory, bytes.size()), "tables of the plan");
  made.memory.reset(memory);
  cudaStream_t stream = nullptr;
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream for the tables of the plan");
  cudaError_t error = cudaMemcpyAsync(memory, bytes.data(), bytes.size(), cudaMemcpyHostToDevice, stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
  cudaStreamDestroy(stream);
  check_cuda(error, "copying the tables of the plan");
  return made;
}

}  // namespace
}  // namespace eqk::tensor_product

template <>
struct std::hash<eqk::tensor_product::TablesKey> {
  std::size_t operator()(const eqk::tensor_product::TablesKey& key) const {
    return std::hash<const void*>()(key.plan) + 2 * static_cast<std::size_t>(key.device) + key.is_double;
  }
};

namespace eqk::tensor_product {
namespace {

// A plan's tables on one device, kept as plans are. They are complete before the first kernel is enqueued on any
// stream, and making them touches no stream of the caller: neither the order of streams nor a capture in progress can
// reach them.
const DeviceTables& device_tables(const Plan& plan, bool is_double, std::int32_t device) {
  const TablesKey key{&plan, is_double, device};
  return *cached(key, [&] { return upload(key); });
}

void launch(const Problem& problem, const Tensor& like) {
  const std::int32_t device = like.device().index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const bool is_double = problem.dtype == Dtype::float64;
  const DeviceTables& tables = device_tables(*problem.plan, is_double, device);
  const cudaStream_t stream = current_stream("tensor_product", device);
  std::optional<Tensor> partial;
  if (const std::int64_t bytes = scratch_bytes(problem))
    partial = torch::stable::new_empty(like, {bytes}, ScalarType::Byte);
  void* const scratch = partial ? partial->mutable_data_ptr() : nullptr;
  for (const Launch& l : Launches(problem, tables.tables, tables.listed, tables.memory.get(), scratch).all())
    if (const cudaError_t error = enqueue(l, stream); error != cudaSuccess) check_cuda(error, l.name().c_str());
}

}  // namespace
}  // namespace eqk::tensor_product

STABLE_TORCH_LIBRARY_IMPL(eqk, CUDA, m) { eqk::tensor_product::register_impls<&eqk::tensor_product::launch>(m); }
