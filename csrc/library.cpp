#include "core/aligned.h"
#include "core/cpu_dispatch.h"
#include "core/matrix_tiles.h"
#define EQK_ISA host
#include "core/prefetch.h"
#include "core/tensor.h"
#include "core/wigner_3j.h"

#if defined(EQK_X86)
const bool eqk::kPrefetchToFirstLevel = [] {
  __builtin_cpu_init();
  return __builtin_cpu_is("amd") != 0;
}();
#else
const bool eqk::kPrefetchToFirstLevel = false;
#endif

void* eqk::aligned_bytes(std::size_t bytes) {
  if (void* const p = ::operator new(bytes, AlignedDelete::kAlign, std::nothrow)) return p;
  fail("eqk: out of memory: could not allocate ", bytes, " bytes of scratch memory for a block of rows");
}

eqk::TileUnit eqk::tile_unit() {
  switch (instruction_set()) {
    case InstructionSet::amx:
      return TileUnit::amx;
    case InstructionSet::amx_emulated:
      return TileUnit::emulated;
    default:
      return TileUnit::none;
  }
}

std::byte* eqk::tile_scratch(std::size_t bytes) {
  thread_local AlignedArray<std::byte> memory;
  thread_local std::size_t size = 0;
  if (size < bytes) {
    memory = aligned_array<std::byte>(bytes);
    size = bytes;
  }
  return memory.get();
}

namespace {

eqk::Tensor wigner_3j(int64_t l1, int64_t l2, int64_t l3) {
  for (const int64_t l : {l1, l2, l3})
    if (l < 0 || l > eqk::kMaxDegree)
      eqk::fail("eqk::wigner_3j: expected degrees 0 to ", eqk::kMaxDegree, ", got (", l1, ", ", l2, ", ", l3, ")");
  if (l3 < std::abs(l1 - l2) || l3 > l1 + l2)
    eqk::fail("eqk::wigner_3j: expected |l1 - l2| <= l3 <= l1 + l2, got (", l1, ", ", l2, ", ", l3, ")");
  const auto c = eqk::wigner_3j(static_cast<int>(l1), static_cast<int>(l2), static_cast<int>(l3));
  const std::vector<int64_t> size{2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1};
  auto t = torch::stable::empty(size, eqk::ScalarType::Double, std::nullopt,
                                torch::stable::Device(torch::headeronly::DeviceType::CPU));
  std::copy(c.begin(), c.end(), static_cast<double*>(t.mutable_data_ptr()));
  return t;
}

int64_t keep_memory(int64_t max_bytes) {
  if (max_bytes < 0) eqk::fail("eqk::keep_memory: max_bytes: expected at least 0, got ", max_bytes);
  eqk::KeptMemory::instance().keep_up_to(static_cast<std::size_t>(max_bytes));
  return static_cast<int64_t>(eqk::KeptMemory::instance().held());
}

std::string cpu_isa() { return std::string(eqk::named_set().name); }

}  // namespace

STABLE_TORCH_LIBRARY(eqk, m) {
  m.def("wigner_3j(int l1, int l2, int l3) -> Tensor");
  m.def("keep_memory(int max_bytes) -> int");
  m.def("cpu_isa() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(eqk, CompositeExplicitAutograd, m) {
  m.impl("wigner_3j", TORCH_BOX(&wigner_3j));
  m.impl("keep_memory", TORCH_BOX(&keep_memory));
  m.impl("cpu_isa", TORCH_BOX(&cpu_isa));
}
