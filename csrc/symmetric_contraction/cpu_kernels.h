#pragma once
// What cpu.cpp needs of the kernels that are compiled once per instruction set.
#include <cstdint>
#include <vector>

#include "symmetric_contraction/lowered.h"
#include "symmetric_contraction/problem.h"

namespace eqk::symmetric_contraction {

// Nodes of one species.
struct Chunk {
  const std::int64_t* nodes = nullptr;
  std::int64_t count = 0;
  std::int64_t weights = 0;  // row of w
  void* gw = nullptr;        // [paths, channels] of these nodes' gradient of w, in the accumulation type
};

struct Kernels {
  std::int64_t (*tile)(Dtype);  // channels of a tile
  // Tasks [begin, end), each a chunk and a tile of channels, tiles fastest.
  void (*run)(const Problem&, const Lowered&, const std::vector<Chunk>&, std::int64_t begin, std::int64_t end);
};

const Kernels& kernel_of_baseline();
const Kernels& kernel_of_avx2();
const Kernels& kernel_of_avx512();

}  // namespace eqk::symmetric_contraction
