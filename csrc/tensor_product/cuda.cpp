#include <torch/csrc/stable/accelerator.h>

#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <utility>

#include "core/cuda_stream.h"
#include "tensor_product/cuda_enqueue.h"
#include "tensor_product/op.h"

namespace eqk::tensor_product {
namespace {

void check_cuda(cudaError_t error, const char* what) { eqk::check_cuda("tensor_product", error, what); }

class RelaxedCapture {
 public:
  RelaxedCapture() { check_cuda(cudaThreadExchangeStreamCaptureMode(&mode_), "capture mode"); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

struct DeviceTables {
  Tables tables;
  const ListedPlan* listed;
  const void* memory;
};

// A plan's tables on one device, kept as plans are. They are complete before the first kernel is enqueued on any
// stream, and making them touches no stream of the caller: neither the order of streams nor a capture in progress can
// reach them.
const DeviceTables& device_tables(const Plan& plan, bool is_double, std::int32_t device) {
  static std::mutex mutex;
  static std::map<std::tuple<const Plan*, bool, std::int32_t>, DeviceTables> cache;
  const std::lock_guard lock(mutex);
  const auto key = std::make_tuple(&plan, is_double, device);
  if (const auto it = cache.find(key); it != cache.end()) return it->second;
  Tables tables(plan, is_double);
  const RelaxedCapture relaxed;
  void* memory = nullptr;
  check_cuda(cudaMalloc(&memory, tables.bytes().size()), "tables of the plan");
  std::unique_ptr<void, void (*)(void*)> freed_on_error(memory, [](void* p) { cudaFree(p); });
  cudaStream_t stream = nullptr;
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream for the tables of the plan");
  cudaError_t error =
      cudaMemcpyAsync(memory, tables.bytes().data(), tables.bytes().size(), cudaMemcpyHostToDevice, stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
  cudaStreamDestroy(stream);
  check_cuda(error, "copying the tables of the plan");
  const DeviceTables& kept =
      cache.emplace(key, DeviceTables{std::move(tables), listed_plan(plan), memory}).first->second;
  freed_on_error.release();
  return kept;
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
  for (const Launch& l : Launches(problem, tables.tables, tables.listed, tables.memory, scratch).all())
    if (const cudaError_t error = enqueue(l, stream); error != cudaSuccess) check_cuda(error, l.name().c_str());
}

}  // namespace
}  // namespace eqk::tensor_product

STABLE_TORCH_LIBRARY_IMPL(eqk, CUDA, m) { eqk::tensor_product::register_impls<&eqk::tensor_product::launch>(m); }
