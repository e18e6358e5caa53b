// Stands for libtorch_cuda.so in a torch that is built without CUDA: devices whose memory is the host's, so that CUDA
// tensors exist, reach the CUDA library through the dispatcher and can be read. stub_cuda.py loads it.
#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace {

using c10::Device, c10::DeviceType, c10::Stream;
using Words = std::vector<std::int64_t>;

constexpr int kDevices = 2;

thread_local c10::DeviceIndex current_device = 0;

thread_local std::array<std::int64_t, kDevices> current_stream{};

struct Guard final : c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override { return DeviceType::CUDA; }
  Device getDevice() const override { return {DeviceType::CUDA, current_device}; }
  void setDevice(Device d) const override {
    TORCH_CHECK(d.is_cuda() && d.index() >= 0 && d.index() < kDevices, "no such device: ", d);
    current_device = d.index();
  }
  void uncheckedSetDevice(Device d) const noexcept override { current_device = d.index(); }
  Device exchangeDevice(Device d) const override {
    const Device before = getDevice();
    setDevice(d);
    return before;
  }
  Stream getStream(Device d) const override { return Stream(Stream::UNSAFE, d, current_stream[d.index()]); }
  Stream exchangeStream(Stream s) const override {
    return Stream(Stream::UNSAFE, s.device(), std::exchange(current_stream[s.device_index()], s.id()));
  }
  c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }
};

Device device_of(const void* p);

// Without them autograd knows of no accelerator.
struct CUDAHooks final : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return kDevices; }
  c10::DeviceIndex current_device() const override { return ::current_device; }
  Device getDeviceFromPtr(void* p) const override { return device_of(p); }
};

// Blocks begin where the caching allocator's do and hold NaN in every dtype.
class Memory final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t bytes) override {
    void* const p = bytes ? std::aligned_alloc(512, (bytes + 511) / 512 * 512) : nullptr;
    if (!p) return {nullptr, nullptr, &free_block, {DeviceType::CUDA, current_device}};
    std::memset(p, 0xff, bytes);
    const std::lock_guard lock(mutex_);
    live_[p] = {bytes, current_device};
    for (const std::int64_t word :
         {reinterpret_cast<std::int64_t>(p), static_cast<std::int64_t>(bytes), std::int64_t{current_device}})
      allocated_.push_back(word);
    return {p, p, &free_block, {DeviceType::CUDA, current_device}};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_block; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }

  // [address, bytes] of every block that is in use.
  Words live() {
    const std::lock_guard lock(mutex_);
    Words result;
    for (const auto& [p, block] : live_) {
      result.push_back(reinterpret_cast<std::int64_t>(p));
      result.push_back(static_cast<std::int64_t>(block.bytes));
    }
    return result;
  }
  // Of the block that an address is in.
  c10::DeviceIndex device(const void* p) {
    const std::lock_guard lock(mutex_);
    const auto next = live_.upper_bound(p);
    TORCH_CHECK(
        next != live_.begin() && p < static_cast<const char*>(std::prev(next)->first) + std::prev(next)->second.bytes,
        "stub_torch_cuda.cpp: no memory of a device at ", p);
    return std::prev(next)->second.device;
  }
  // [address, bytes, device] of every block that was asked for since the last call.
  Words allocated() {
    const std::lock_guard lock(mutex_);
    return std::exchange(allocated_, {});
  }

 private:
  struct Block {
    std::size_t bytes;
    c10::DeviceIndex device;
  };
  std::mutex mutex_;
  std::map<const void*, Block> live_;
  Words allocated_;

  static void free_block(void* p);
};

Memory& memory() {
  static auto* const instance = new Memory;  // tensors may outlive everything
  return *instance;
}

Device device_of(const void* p) { return {DeviceType::CUDA, memory().device(p)}; }

void Memory::free_block(void* p) {
  {
    const std::lock_guard lock(memory().mutex_);
    memory().live_.erase(p);
  }
  std::free(p);
}

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  const c10::DeviceGuard guard(device.value());
  return at::detail::empty_generic(size, &memory(), c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                   c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<Device> device, std::optional<bool>) {
  const c10::DeviceGuard guard(device.value());
  return at::detail::empty_strided_generic(size, stride, &memory(), c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                           c10::dtype_or_default(dtype));
}

at::Tensor on_host(const at::Tensor& t) {
  if (!t.is_cuda()) return t;
  return at::from_blob(t.data_ptr(), t.sizes(), t.strides(), t.options().device(at::kCPU));
}

// Names of the operations of torch that ran since the last call; of a copy, whether it crossed devices.
std::mutex operations_mutex;
std::vector<std::string> operations;

std::vector<std::string> take_operations() {
  const std::lock_guard lock(operations_mutex);
  return std::exchange(operations, {});
}

// Every other operation of torch: the CPU's, on the same memory.
void run_on_host(const c10::OperatorHandle& op, c10::Stack* stack) {
  const auto& schema = op.schema();
  {
    const bool copies = schema.name() == "aten::copy_";
    const auto argument = [&](std::size_t n) {
      return torch::jit::peek(*stack, n, schema.arguments().size()).toTensor();
    };
    const bool crosses = copies && argument(0).device() != argument(1).device();
    const std::lock_guard lock(operations_mutex);
    operations.push_back(schema.name() + (crosses ? " between devices" : ""));
  }
  const std::size_t count = schema.arguments().size();
  const Words::size_type begin = stack->size() - count;
  const std::vector<c10::IValue> arguments(stack->begin() + static_cast<std::ptrdiff_t>(begin), stack->end());
  std::optional<Device> device;
  const auto moved = [&device](const at::Tensor& t) {
    if (t.defined() && t.is_cuda() && !device) device = t.device();
    // A result of an out= variant may be there to be resized, which memory of another's cannot be.
    if (t.defined() && t.is_cuda() && t.numel() == 0) return at::empty(t.sizes(), t.options().device(at::kCPU));
    return t.defined() ? on_host(t) : t;
  };
  for (std::size_t n = begin; n < stack->size(); ++n) {
    c10::IValue& value = (*stack)[n];
    if (value.isTensor()) {
      value = moved(value.toTensor());
    } else if (value.isTensorList()) {
      std::vector<at::Tensor> list = value.toTensorVector();
      for (at::Tensor& t : list) t = moved(t);
      value = c10::IValue(list);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const std::optional<at::Tensor>& t : value.toOptionalTensorVector())
        list.push_back(t ? std::optional(moved(*t)) : std::nullopt);
      value = c10::IValue(list);
    }
  }
  TORCH_CHECK(device, "stub_torch_cuda.cpp: ", op.operator_name(), " needs an implementation of its own");
  op.callBoxed(stack);
  const std::size_t returns = schema.returns().size();
  for (std::size_t r = 0; r < returns; ++r) {
    c10::IValue& value = (*stack)[stack->size() - returns + r];
    if (!value.isTensor()) continue;
    if (const auto* alias = schema.returns()[r].alias_info()) {
      for (std::size_t a = 0; a < count; ++a)
        if (const auto* other = schema.arguments()[a].alias_info(); other && *other == *alias) {
          const at::Tensor host = value.toTensor(), &given = arguments[a].toTensor();
          value = given;
          if (given.sizes() == host.sizes()) continue;
          const at::Tensor resized = at::empty_strided(host.sizes(), host.strides(), given.options());
          on_host(resized).copy_(host);
          at::native::set_storage_cpu_(const_cast<at::Tensor&>(given), resized.storage(), 0, host.sizes(),
                                       host.strides());
        }
      TORCH_CHECK(alias->isWrite(), "stub_torch_cuda.cpp: the view ", op.operator_name(),
                  " needs its own implementation");
    } else {
      const at::Tensor& host = value.toTensor();
      const at::Tensor result = at::empty_strided(host.sizes(), host.strides(), host.options().device(*device));
      on_host(result).copy_(host);
      value = result;
    }
  }
}

at::Tensor& set_to(at::Tensor& t, at::Storage storage) {
  const auto size = static_cast<std::int64_t>(storage.nbytes() / t.itemsize());
  return at::native::set_storage_cpu_(t, std::move(storage), 0, size, 1);
}

}  // namespace

C10_REGISTER_GUARD_IMPL(CUDA, Guard)
namespace at {
REGISTER_CUDA_HOOKS(CUDAHooks)
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("set_.source_Storage", &set_to);
  m.impl("view", &at::native::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("copy_", torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}

TORCH_LIBRARY(stub_cuda, m) {
  m.def("live", [] { return memory().live(); });
  m.def("allocated", [] { return memory().allocated(); });
  m.def("operations", &take_operations);
  m.def("set_stream", [](std::int64_t device, std::int64_t stream) { current_stream.at(device) = stream; });
  m.def("set_device",
        [](std::int64_t device) { Guard().setDevice({DeviceType::CUDA, static_cast<c10::DeviceIndex>(device)}); });
  m.def("device", [] { return std::int64_t{current_device}; });
}

extern "C" std::int32_t aoti_torch_get_current_cuda_stream(std::int32_t device, void** stream) {
  if (device < 0 || device >= kDevices) return 1;
  *stream = reinterpret_cast<void*>(current_stream[device]);
  return 0;
}
