#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <type_traits>

namespace eqk {

// What make() returned for this key the first time: one cache for each type of `make`, so for each place that calls.
// Of two threads that make the same, the first one's stays. Values are kept for the life of the process, which meets
// few keys, and never destroyed: threads may outlive every static object.
//
// Nobody waits: a process may fork while other threads are here, and a lock that one of them held, or what guards the
// construction of a static object, would stay locked in the child for ever. So entries are only ever put at the head
// of a list, by one atomic exchange, and the lists are there before any code runs.
template <class Key, class Make>
const std::invoke_result_t<Make>* cached(const Key& key, const Make& make) {
  struct Entry {
    const Key key;
    const std::invoke_result_t<Make> value;
    const Entry* next;
  };
  constexpr int kLogLists = 8;
  static constinit std::atomic<const Entry*> lists[1 << kLogLists]{};
  // Multiplied, since addresses differ in bits of the middle (Fibonacci hashing: Knuth, TAOCP 3, 6.4).
  const std::uint64_t hash = std::hash<Key>()(key) * std::uint64_t{0x9e3779b97f4a7c15};
  std::atomic<const Entry*>& head = lists[hash >> (64 - kLogLists)];
  const auto find = [&](const Entry* from, const Entry* end) {
    while (from != end && !(from->key == key)) from = from->next;
    return from;
  };
  const Entry* known = head.load(std::memory_order_acquire);
  if (const Entry* const found = find(known, nullptr)) return &found->value;
  std::unique_ptr<Entry> entry(new Entry{key, make(), known});
  while (!head.compare_exchange_weak(entry->next, entry.get(), std::memory_order_acq_rel, std::memory_order_acquire)) {
    if (const Entry* const found = find(entry->next, known); found != known) return &found->value;
    known = entry->next;
  }
  return &entry.release()->value;
}

}  // namespace eqk
