#pragma once
// What cpu.cpp needs of the kernels that are compiled once per instruction set.
#include <cstdint>

#include "tensor_product/lowered.h"
#include "tensor_product/problem.h"

namespace eqk::tensor_product {

// Handles rows [begin, end). Where the weights are shared, their gradient over these rows goes to weight_partial, in
// the accumulation type, instead of out[kW].
using RowsKernel = void (*)(const Problem&, const Lowered&, std::int64_t begin, std::int64_t end, void* weight_partial);

RowsKernel kernel_of_baseline();
RowsKernel kernel_of_avx2();
RowsKernel kernel_of_avx512();

// The one for this machine.
RowsKernel rows_kernel();

}  // namespace eqk::tensor_product
