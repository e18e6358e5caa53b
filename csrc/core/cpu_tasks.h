#pragma once
#include <cstdint>

namespace eqk {

// Of a kernel that is compiled once per instruction set: into how many tasks it cuts a problem, and what runs some.
template <class Problem>
struct TaskKernels {
  std::int64_t (*tasks)(const Problem&);
  void (*run)(const Problem&, std::int64_t begin, std::int64_t end);
};

}  // namespace eqk
