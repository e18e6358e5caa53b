#pragma once
// Uninitialised arrays at the start of a cache line, for scratch memory.
#include <cstddef>
#include <memory>
#include <new>

namespace eqk {

struct AlignedDelete {
  static constexpr std::align_val_t kAlign{64};
  template <class T>
  void operator()(T* p) const {
    ::operator delete(p, kAlign);
  }
};

template <class T>
using AlignedArray = std::unique_ptr<T[], AlignedDelete>;

// In library.cpp, so that the code is none of those compiled for one instruction set.
void* aligned_bytes(std::size_t bytes);

// Throws an error that says how much was asked for where memory ran out.
template <class T>
AlignedArray<T> aligned_array(std::size_t count) {
  return AlignedArray<T>(static_cast<T*>(aligned_bytes(count * sizeof(T))));
}

}  // namespace eqk
