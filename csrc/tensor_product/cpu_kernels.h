#pragma once
// What cpu.cpp needs of the kernels that are compiled once per instruction set.
#include <cstdint>

#include "tensor_product/lowered.h"
#include "tensor_product/problem.h"

namespace eqk::tensor_product {

struct RowsKernel {
  // Handles rows [begin, end). Where the weights are shared, their gradient over these rows goes to weight_partial, in
  // the accumulation type, instead of out[kW].
  void (*run)(const Problem&, const Lowered&, std::int64_t begin, std::int64_t end, void* weight_partial);
  bool (*in_channels)(const Problem&, const Lowered&);  // whether lanes are channels instead of rows

  void operator()(const Problem& problem, const Lowered& lowered, std::int64_t begin, std::int64_t end,
                  void* weight_partial) const {
    run(problem, lowered, begin, end, weight_partial);
  }
};

RowsKernel kernel_of_baseline();
RowsKernel kernel_of_avx2();
RowsKernel kernel_of_avx512();

// The one for this machine.
RowsKernel rows_kernel();

}  // namespace eqk::tensor_product
