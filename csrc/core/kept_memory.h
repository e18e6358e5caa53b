#pragma once
// Large blocks kept for the next result instead of going back to the system, which would clear their pages again.
#include <bit>
#include <cstddef>
#include <mutex>
#include <vector>

#include "core/aligned.h"

#if __has_include(<pthread.h>)
#include <pthread.h>
#define EQK_HAS_FORK
#endif

namespace eqk {

class KeptMemory {
 public:
  static constexpr std::size_t kSmallest = 1 << 20;  // the system's allocator keeps what is smaller

  static KeptMemory& instance();

  // Free blocks of at most so many bytes in all are kept; what is too much goes back at once, the oldest first.
  void keep_up_to(std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    limit_ = bytes;
    trim();
  }

  std::size_t held() {
    const std::lock_guard lock(mutex_);
    return held_;
  }

  // Uninitialised, at the start of a cache line; null where nothing is kept, or nothing so small, or memory ran out.
  void* take(std::size_t bytes) {
    if (bytes < kSmallest) return nullptr;
    // Sizes in steps of an eighth, so that a batch of slightly more edges finds the last one's block.
    const std::size_t step = std::bit_floor(bytes) / 8, capacity = (bytes + step - 1) / step * step;
    {
      const std::lock_guard lock(mutex_);
      if (limit_ == 0) return nullptr;
      for (std::size_t i = free_.size(); i-- > 0;)
        if (free_[i]->capacity == capacity) {
          Block* const block = free_[i];
          free_.erase(free_.begin() + static_cast<std::ptrdiff_t>(i));
          held_ -= capacity;
          return block + 1;
        }
    }
    void* const memory = ::operator new(sizeof(Block) + capacity, AlignedDelete::kAlign, std::nothrow);
    if (!memory) return nullptr;
    Block* const block = static_cast<Block*>(memory);
    block->capacity = capacity;
    return block + 1;
  }

  void give_back(void* data) {
    Block* const block = static_cast<Block*>(data) - 1;
    const std::lock_guard lock(mutex_);
    if (block->capacity > limit_) return AlignedDelete()(block);
    free_.push_back(block);
    held_ += block->capacity;
    trim();
  }

 private:
  // A fork waits for the thread that is in here, which would leave the child the lock and half a change.
  KeptMemory() {
#if defined(EQK_HAS_FORK)
    pthread_atfork([] { instance().mutex_.lock(); }, [] { instance().mutex_.unlock(); },
                   [] { instance().mutex_.unlock(); });
#endif
  }
  static KeptMemory& only_;

  struct alignas(64) Block {
    std::size_t capacity;  // bytes that follow
  };

  std::mutex mutex_;
  std::vector<Block*> free_;  // the longest unused first
  std::size_t held_ = 0, limit_ = 0;

  void trim() {
    std::size_t count = 0;
    for (; held_ > limit_; ++count) {
      held_ -= free_[count]->capacity;
      AlignedDelete()(free_[count]);
    }
    free_.erase(free_.begin(), free_.begin() + static_cast<std::ptrdiff_t>(count));
  }
};

// Made when the library is loaded, by one thread: what guards a static object of a function would be another lock.
// Never destroyed: tensors may outlive every static object.
inline KeptMemory& KeptMemory::only_ = *new KeptMemory;

inline KeptMemory& KeptMemory::instance() { return only_; }

}  // namespace eqk
