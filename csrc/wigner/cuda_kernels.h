#pragma once
// What the host and the kernels agree on.
#include <array>
#include <cstdint>

#include "core/dtype.h"
#include "core/wigner_3j.h"

namespace eqk::wigner {

// A block has a rotation for each lane of a warp, and its warps share their diagonals.
inline constexpr int kRotations = 32, kThreads = 128;
// The part of its rotations' numbers that a block has in shared memory at a time.
inline constexpr int kStageBytes = 44 << 10;

enum class Member { forward, backward };

inline constexpr std::array kMembers{"forward", "backward"};
inline constexpr std::array kTypes{"f32", "f64", "f16", "bf16"};  // by Dtype

struct Arguments {
  const void* q = nullptr;
  const void* g = nullptr;
  void* out = nullptr;
  std::int64_t q_stride = 0, g_stride = 0, rows = 0;
  int lmax = 0, mmax = 0, columns = 0;
  // Part n is those rows of matrices which begin at numbers [n step, (n + 1) step), `pitch` numbers at most.
  int parts = 0, step = 0, pitch = 0;
  std::array<int, kMaxDegree + 1> center{};  // of D^l[0, 0]
  int unused = 0;                            // bytes of launches are compared
};

}  // namespace eqk::wigner
