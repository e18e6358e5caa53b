#pragma once
#include <memory>
#include <mutex>
#include <unordered_map>

namespace eqk {

// What make() returned for this key the first time: one cache for each type of `make`, so for each place that calls.
// Runs make() outside the lock: threads that ask for something else do not wait, and of two that make the same, the
// first one's stays. Values are kept for the life of the process, which meets few keys, and never destroyed: threads
// may outlive every static object.
template <class Key, class Make>
auto cached(const Key& key, const Make& make) {
  using Value = decltype(make());
  struct Cache {
    std::mutex mutex;
    std::unordered_map<Key, std::shared_ptr<const Value>> values;
  };
  static Cache& cache = *new Cache;
  {
    const std::lock_guard lock(cache.mutex);
    if (const auto it = cache.values.find(key); it != cache.values.end()) return it->second;
  }
  auto value = std::make_shared<const Value>(make());
  const std::lock_guard lock(cache.mutex);
  return cache.values.try_emplace(key, std::move(value)).first->second;
}

}  // namespace eqk
