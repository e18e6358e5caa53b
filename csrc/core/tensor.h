#pragma once
// The only header that includes torch, and of torch only the stable ABI.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/DeviceType.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <exception>
#include <initializer_list>
#include <mutex>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/kept_memory.h"

namespace eqk {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// A string as the dispatcher hands it to an op, to be read once: as a std::string parameter of a boxed function, whose
// conversion in torch 2.13 never frees a copy (pytorch/pytorch#190493), each call of an op would lose memory, and what
// lies between the lost pieces would keep freed results from being used again.
struct StringArgument {
  StringHandle handle;

  operator std::string() const {  // NOLINT: in place of a std::string
    std::size_t length = 0;
    const char* data = nullptr;
    TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
    std::string text(data, length);
    TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return text;
  }
};

// Checks read `if (!right) fail(...)`, so that a message is made only where it is needed.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

template <class Sizes>
std::string sizes_string(const Sizes& sizes) {
  std::string s;
  for (const int64_t n : sizes) s += (s.empty() ? "" : ", ") + std::to_string(n);
  return "[" + s + "]";
}

inline std::string shape_string(const Tensor& t) { return sizes_string(t.sizes()); }

template <class Sizes>
void check_shape(const char* op, const std::string& name, const Tensor& t, const Sizes& sizes) {
  if (!std::ranges::equal(t.sizes(), sizes))
    fail("eqk::", op, ": ", name, ": expected shape ", sizes_string(sizes), ", got ", shape_string(t));
}

inline Dtype kernel_dtype(const char* op, const Tensor& x, const char* name = "x") {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return Dtype::float32;
    case ScalarType::Double:
      return Dtype::float64;
    case ScalarType::Half:
      return Dtype::float16;
    case ScalarType::BFloat16:
      return Dtype::bfloat16;
    default:
      fail("eqk::", op, ": ", name, ": expected dtype float32, float64, float16 or bfloat16, got ", x.scalar_type());
  }
}

inline std::string device_string(const Tensor& t) {
  const auto d = t.device();
  std::string name = d.is_cpu() ? "cpu" : d.is_cuda() ? "cuda" : "another kind";
  if (d.has_index()) name.append(":").append(std::to_string(d.index()));
  return name;
}

inline void check_device(const char* op, const std::string& name, const Tensor& t, const Tensor& x,
                         const char* of = "x") {
  if (t.device() != x.device())
    fail("eqk::", op, ": ", name, ": expected device ", device_string(x), " as ", of, " has, got ", device_string(t));
}

// Its dtype and device.
inline void check_like(const char* op, const std::string& name, const Tensor& t, const Tensor& x,
                       const char* of = "x") {
  if (t.scalar_type() != x.scalar_type())
    fail("eqk::", op, ": ", name, ": expected dtype ", x.scalar_type(), " as ", of, " has, got ", t.scalar_type());
  check_device(op, name, t, x, of);
}

// The first results of an operation that torch's stable interface has no function for.
template <std::size_t results = 1, class... Arguments>
std::array<Tensor, results> torch_operation(const char* name, const char* overload, const Arguments&... arguments) {
  std::array<StableIValue, std::max(results, sizeof...(arguments))> stack{torch::stable::detail::from(arguments)...};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  std::array<Tensor, results> tensors;
  for (std::size_t n = 0; n < results; ++n) tensors[n] = torch::stable::detail::to<Tensor>(stack[n]);
  return tensors;
}

// Kernels read rows through a row stride; only the elements of a row have to be adjacent.
inline Tensor with_adjacent_columns(const Tensor& t) {
  const int last = static_cast<int>(t.dim()) - 1;
  return t.numel() == 0 || t.size(last) == 1 || t.stride(last) == 1 ? t : torch::stable::contiguous(t);
}

inline int64_t element_bytes(ScalarType type) {
  return type == ScalarType::Double ? 8 : type == ScalarType::Float ? 4 : 2;
}

// Uninitialised and contiguous, of a floating dtype and the device of another tensor, and of its dtype if none is
// given; on the CPU from kept memory where some is kept.
inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> size,
                    std::optional<ScalarType> dtype = std::nullopt) {
  const ScalarType type = dtype.value_or(like.scalar_type());
  const torch::headeronly::IntHeaderOnlyArrayRef sizes(size.begin(), size.size());
  if (like.device().is_cpu()) {
    std::vector<int64_t> strides(size.size());
    int64_t numel = 1, bytes = 0;
    bool fits = true;  // rows of an expanded tensor take no memory, so there may be any number of them
    for (std::size_t d = size.size(); d-- > 0; fits = fits && !__builtin_mul_overflow(numel, sizes[d], &numel))
      strides[d] = numel;
    fits = fits && !__builtin_mul_overflow(numel, element_bytes(type), &bytes);
    if (void* const data = fits ? KeptMemory::instance().take(static_cast<std::size_t>(bytes)) : nullptr)
      return torch::stable::from_blob(data, sizes, strides, like.device(), type,
                                      [](void* p) { KeptMemory::instance().give_back(p); });
  }
  try {
    return torch::stable::new_empty(like, sizes, type);
  } catch (const std::exception&) {  // the text that reaches this side names the function of torch and no reason
    fail("eqk: out of memory: could not allocate a result of shape ", sizes_string(size), " and dtype ", type);
  }
}

// f(begin, end) on torch's threads for ranges that make up [0, count), of `grain` or more. What f throws reaches the
// caller; through torch's C interface its text would be lost.
template <class F>
void parallel_for(int64_t count, int64_t grain, const F& f) {
  std::mutex mutex;
  std::exception_ptr error;
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    try {
      f(begin, end);
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
}

}  // namespace eqk
