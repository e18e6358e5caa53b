#pragma once
// Uninitialised arrays at the start of a cache line.
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

template <class T>
AlignedArray<T> aligned_array(std::size_t count) {
  return AlignedArray<T>(static_cast<T*>(::operator new(count * sizeof(T), AlignedDelete::kAlign)));
}

}  // namespace eqk
