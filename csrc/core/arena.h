#pragma once
// Many arrays in one allocation of scratch memory.
#include <cstddef>
#include <cstdint>

#include "core/aligned.h"

namespace eqk {
inline namespace EQK_ISA {

// Hands out aligned pieces; with a null base it only adds up their sizes.
struct Arena {
  std::byte* base;
  std::size_t used = 0;
  template <class U>
  U* take(std::int64_t count) {
    U* const p = base && count ? reinterpret_cast<U*>(base + used) : nullptr;
    used += (static_cast<std::size_t>(count) * sizeof(U) + 63) / 64 * 64;
    return p;
  }
};

// Calls take(arena) twice: to add up the sizes, and to hand out pieces of the memory that it returns.
template <class F>
AlignedArray<std::byte> arena_memory(F&& take) {
  Arena sizes{nullptr};
  take(sizes);
  auto memory = aligned_array<std::byte>(sizes.used);
  Arena arena{memory.get()};
  take(arena);
  return memory;
}

}  // namespace EQK_ISA
}  // namespace eqk
