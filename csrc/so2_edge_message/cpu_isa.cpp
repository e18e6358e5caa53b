// Compiled once per instruction set with EQK_ISA and EQK_VECTOR_BYTES set by the build.
#include "so2_edge_message/cpu_edge_tile.h"

namespace eqk::so2_edge_message {
inline namespace EQK_ISA {

static Arena arena_at(const void* memory) { return {static_cast<std::byte*>(const_cast<void*>(memory))}; }

static std::int64_t matrices_bytes(const Problem& p) {
  return p.with_type([&]<class T>(T) { return Matrices<T>::bytes(p); });
}

static std::int64_t pack_tasks(const Problem& p) {
  return p.with_type([&]<class T>(T) {
    std::int64_t tasks = 0;
    Matrices<T>(p, arena_at(nullptr)).for_all([&](const Matrix<T>& m) { tasks += m.count(); });
    return tasks;
  });
}

static void pack(const Problem& p, void* matrices, std::int64_t begin, std::int64_t end) {
  p.with_type([&]<class T>(T) {
    Matrices<T>(p, arena_at(matrices)).for_all([&](const Matrix<T>& m) {
      for (std::int64_t n = std::max<std::int64_t>(begin, 0); n < std::min(end, m.count()); ++n) m.pack(n);
      begin -= m.count(), end -= m.count();
    });
  });
}

static std::int64_t scratch_bytes(const Problem& p) {
  return p.with_type([&]<class T>(T) { return EdgeTile<T>::bytes(p); });
}

static std::int64_t sums_numel(const Problem& p) {
  return p.with_type([&]<class T>(T) { return EdgeTile<T>::sums_numel(p, Matrices<T>(p, arena_at(nullptr))); });
}

static void run(const Problem& p, const void* matrices, Steps& steps, void* scratch, const Tile& tile) {
  p.with_type(
      [&]<class T>(T) { EdgeTile<T>(p, Matrices<T>(p, arena_at(matrices)), steps, arena_at(scratch)).run(tile); });
}

static void finish(const Problem& p, const void* sums, const std::array<void*, kSlots>& out) {
  p.with_type(
      [&]<class T>(T) { EdgeTile<T>::finish(p, Matrices<T>(p, arena_at(nullptr)), static_cast<const T*>(sums), out); });
}

static constexpr Kernels kKernels{matrices_bytes, pack_tasks, pack, scratch_bytes, sums_numel, run, finish};

}  // namespace EQK_ISA

#define EQK_NAME(isa) EQK_JOIN(kernel_of_, isa)
const Kernels& EQK_NAME(EQK_ISA)() { return kKernels; }

}  // namespace eqk::so2_edge_message
