// A lane has a rotation, and each warp of a block its share of the diagonals. The numbers of a block's rotations go
// through shared memory, so that warps access adjacent ones in global memory.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "wigner/cuda_enqueue.h"
#include "wigner/recursion.h"
#include "wigner/torque.h"

namespace eqk::wigner {

constexpr int kWarps = kThreads / kRotations;
constexpr int kBlocks = 4;  // of a multiprocessor: float64 takes up to 110 registers, which the compiler would not give

__constant__ const Coefficients<float> kOfFloat;
__constant__ const Coefficients<double> kOfDouble;

template <class T, class Storage>
class Block {
 public:
  __device__ __forceinline__ Block(const Arguments& a, std::int64_t tile, void* stage)
      : a_(a),
        first_(tile * kRotations),
        count_(static_cast<int>(a.rows - first_ < kRotations ? a.rows - first_ : kRotations)),
        stage_(stage) {}

  __device__ __forceinline__ void matrices(int begin) const {
    __shared__ T shared_q[4][kRotations];
    T q[4];
    load_quaternions(shared_q, q);
    Storage* const numbers = static_cast<Storage*>(stage_) + lane() * a_.part;
    const auto put = [&](int at, T value) {
      if (static_cast<unsigned>(at) < static_cast<unsigned>(a_.part)) numbers[at] = static_cast<Storage>(value);
    };
    for_matrices(Rotation<T, T>(q, coefficients()), begin, [&](int, int at, int m, T plus, T minus) {
      put(at - m, minus);
      put(at + m, plus);
    });
    __syncthreads();
    Storage* const out = static_cast<Storage*>(a_.out);
    for_numbers(out, a_.columns, begin,
                [&](int from, std::int64_t to) { out[to] = static_cast<const Storage*>(stage_)[from]; });
  }

  __device__ __forceinline__ void gradient() const {
    __shared__ T shared_q[4][kRotations], torques[kWarps][3][kRotations];
    T q[4];
    load_quaternions(shared_q, q);
    const Rotation<T, T> rotation(q, coefficients());
    Torque<T, T> torque(coefficients());
    T* const numbers = static_cast<T*>(stage_);
    const Storage* const g = static_cast<const Storage*>(a_.g);
    for (int part = 0; part < a_.parts; ++part) {
      const int begin = part * a_.step;
      __syncthreads();
      for_numbers(g, a_.g_stride, begin, [&](int to, std::int64_t from) { numbers[to] = static_cast<T>(g[from]); });
      __syncthreads();
      if (lane() < count_)
        for_matrices(rotation, begin, [&](int l, int at, int m, T plus, T minus) {
          if (static_cast<unsigned>(at - l) < static_cast<unsigned>(a_.step))
            torque.add(l, m, plus, minus, numbers + lane() * a_.part + at);
        });
    }
    for (int k = 0; k < 3; ++k) torques[warp()][k][lane()] = torque.sum[k];
    __syncthreads();
    if (warp() == 0) {
      T sum[3]{}, of_q[4];
      for (int k = 0; k < 3; ++k)
        for (int w = 0; w < kWarps; ++w) sum[k] += torques[w][k][lane()];
      quaternion_gradient<T>(q, sum, of_q);
      for (int i = 0; i < 4; ++i) shared_q[i][lane()] = of_q[i];
    }
    __syncthreads();
    if (row() < count_)
      static_cast<Storage*>(a_.out)[4 * first_ + threadIdx.x] = static_cast<Storage>(shared_q[component()][row()]);
  }

 private:
  const Arguments& a_;
  std::int64_t first_;
  int count_;
  void* stage_;

  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % kRotations; }
  static __device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x) / kRotations; }
  // Of quaternions, which threads read and write four a row.
  static __device__ __forceinline__ int row() { return static_cast<int>(threadIdx.x) / 4; }
  static __device__ __forceinline__ int component() { return static_cast<int>(threadIdx.x) % 4; }
  static __device__ __forceinline__ const Coefficients<T>& coefficients() {
    if constexpr (std::is_same_v<T, float>)
      return kOfFloat;
    else
      return kOfDouble;
  }

  // That of the lane, by way of shared memory; the last one where it has none.
  __device__ __forceinline__ void load_quaternions(T (*shared)[kRotations], T* q) const {
    const std::int64_t at = (first_ + min(row(), count_ - 1)) * a_.q_stride + component();
    shared[component()][row()] = static_cast<T>(static_cast<const Storage*>(a_.q)[at]);
    __syncthreads();
    for (int i = 0; i < 4; ++i) q[i] = shared[i][lane()];
  }

  // f(l, place of D^l[m', 0] behind `begin`, m, D^l[m', m], D^l[m', -m]) of the warp's share of the degrees that begin
  // in the part there.
  template <class F>
  __device__ __forceinline__ void for_matrices(const Rotation<T, T>& rotation, int begin, const F& f) const {
    int last = a_.lmax;
    while (last > 0 && a_.center[last] - (2 * min(last, a_.mmax) + 1) * (2 * last + 1) / 2 >= begin + a_.step) --last;
    rotation.matrices(last, min(last, a_.mmax), warp(), kWarps, [&](int l, int row, int m, T plus, T minus) {
      f(l, a_.center[l] + row * (2 * l + 1) - begin, m, plus, minus);
    });
  }

  // f(place in shared memory, place in `rows`, which are `stride` apart) of numbers from `begin` on.
  template <class F>
  __device__ __forceinline__ void for_numbers(const Storage* rows, std::int64_t stride, int begin, const F& f) const {
    const bool adjacent = a_.parts == 1 && stride == a_.columns;
    const int runs = adjacent ? 1 : count_, width = adjacent ? count_ * a_.columns : min(a_.part, a_.columns - begin);
    for (int run = 0; run < runs; ++run) {
      const std::int64_t at = (first_ + run) * stride + begin;
      // Warps begin where a sector does.
      const int before = static_cast<int>(reinterpret_cast<std::uintptr_t>(rows + at) % 32 / sizeof(Storage));
      for (int i = static_cast<int>(threadIdx.x) - before; i < width; i += kThreads)
        if (i >= 0) f(run * a_.part + i, at + i);
    }
  }
};

#define EQK_KERNELS(T, Storage, suffix)                                                                          \
  extern "C" __global__ void __launch_bounds__(kThreads, kBlocks) eqk_wigner_forward_##suffix(                            \
      const __grid_constant__ Arguments a) {                                                                     \
    extern __shared__ __align__(16) unsigned char stage[];                                                       \
    Block<T, Storage>(a, blockIdx.x / a.parts, stage).matrices(static_cast<int>(blockIdx.x % a.parts) * a.step); \
  }                                                                                                              \
  extern "C" __global__ void __launch_bounds__(kThreads, kBlocks) eqk_wigner_backward_##suffix(                           \
      const __grid_constant__ Arguments a) {                                                                     \
    extern __shared__ __align__(16) unsigned char stage[];                                                       \
    Block<T, Storage>(a, blockIdx.x, stage).gradient();                                                          \
  }
EQK_KERNELS(float, float, f32)
EQK_KERNELS(double, double, f64)
EQK_KERNELS(float, __half, f16)
EQK_KERNELS(float, __nv_bfloat16, bf16)

const void* kernel_of(Member member, Dtype dtype) {
#define EQK_POINTERS(member)                                                                       \
  {reinterpret_cast<const void*>(member##_f32), reinterpret_cast<const void*>(member##_f64), \
   reinterpret_cast<const void*>(member##_f16), reinterpret_cast<const void*>(member##_bf16)}
  static const void* const kernels[2][4] = {EQK_POINTERS(eqk_wigner_forward), EQK_POINTERS(eqk_wigner_backward)};
  return kernels[static_cast<int>(member)][static_cast<int>(dtype)];
}

}  // namespace eqk::wigner
