#pragma once
// The launch of a problem, free of CUDA, so that tests obtain it without a device.
#include <string>

#include "wigner/cuda_kernels.h"
#include "wigner/problem.h"

namespace eqk::wigner {

struct Launch {
  Member member;
  Dtype dtype;
  std::int64_t grid;
  int shared;
  Arguments arguments;
  static constexpr int block = kThreads;

  explicit Launch(const Problem& p) : member(p.g ? Member::backward : Member::forward), dtype(p.dtype) {
    const bool is_double = dtype == Dtype::float64, is_narrow = dtype != Dtype::float32 && !is_double;
    // Cotangents of 16 bits are wide in shared memory.
    const int bytes = is_double ? 8 : is_narrow && !p.g ? 2 : 4, columns = static_cast<int>(p.columns);
    const int most = kStageBytes / kRotations / bytes, overhang = 2 * p.lmax;
    const int parts = columns <= most ? 1 : (columns - 1) / (most - overhang - 1) + 1, step = (columns - 1) / parts + 1;
    const int pitch = parts == 1 ? columns : (step + overhang) | 1;
    arguments = {p.q, p.g, p.out, p.q_stride, p.g_stride, p.rows, p.lmax, p.mmax, columns, parts, step, pitch};
    for (int l = 0; l <= p.lmax; ++l) arguments.center[l] = static_cast<int>(center(l, p.mmax));
    grid = (p.rows + kRotations - 1) / kRotations * (p.g ? 1 : parts);
    shared = kRotations * pitch * bytes;
  }

  std::string name() const {
    return std::string("eqk_wigner_") + kMembers[static_cast<int>(member)] + "_" + kTypes[static_cast<int>(dtype)];
  }
  const void* argument() const { return &arguments; }
  std::size_t argument_size() const { return sizeof(arguments); }
};

}  // namespace eqk::wigner
