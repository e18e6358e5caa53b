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
// Of a multiprocessor, as registers allow: with no number the compiler gives float64 too few.
template <class T>
constexpr int blocks_of = sizeof(T) == 8 ? 4 : 6;

__constant__ const Coefficients<float> kOfFloat;
__constant__ const Coefficients<double> kOfDouble;

// The numbers of a part, and the last degree there.
struct Part {
  int begin, end, last;

  __device__ __forceinline__ Part(const Arguments& a, int n)
      : begin(n > 0 ? row_from(a, n * a.step) : 0),
        end(n + 1 < a.parts ? row_from(a, (n + 1) * a.step) : a.columns),
        last(degree_before(a, end)) {}

 private:
  static __device__ __forceinline__ int first(const Arguments& a, int l) {
    return a.center[l] - (2 * min(l, a.mmax) + 1) * (2 * l + 1) / 2;
  }
  // The last that begins before a number, which is not 0.
  static __device__ __forceinline__ int degree_before(const Arguments& a, int number) {
    int l = a.lmax;
    while (first(a, l) >= number) --l;
    return l;
  }
  // Where the first row of a matrix begins at a number or behind it.
  static __device__ __forceinline__ int row_from(const Arguments& a, int number) {
    const int l = degree_before(a, number), width = 2 * l + 1;
    return first(a, l) + (number - first(a, l) + width - 1) / width * width;
  }
};

template <class T, class Storage>
class Block {
 public:
  __device__ __forceinline__ Block(const Arguments& a, std::int64_t tile, void* stage)
      : a_(a),
        first_(tile * kRotations),
        count_(static_cast<int>(a.rows - first_ < kRotations ? a.rows - first_ : kRotations)),
        stage_(stage) {}

  __device__ __forceinline__ void matrices(int n) const {
    __shared__ T shared_q[4][kRotations];
    T q[4];
    load_quaternions(shared_q, q);
    Storage* const numbers = static_cast<Storage*>(stage_);
    const Part part(a_, n);
    for_rows(Rotation<T, T>(q, coefficients()), part, [&](int, int m, T plus, T minus, int at) {
      numbers[at - m] = static_cast<Storage>(minus);
      numbers[at + m] = static_cast<Storage>(plus);
    });
    __syncthreads();
    Storage* const out = static_cast<Storage*>(a_.out);
    move_numbers(
        out, a_.columns, part, [&](std::int64_t, int from) { return numbers[from]; },
        [&](std::int64_t to, int, Storage value) { out[to] = value; });
  }

  __device__ __forceinline__ void gradient() const {
    __shared__ T shared_q[4][kRotations], torques[kWarps][3][kRotations];
    T q[4];
    load_quaternions(shared_q, q);
    const Rotation<T, T> rotation(q, coefficients());
    Torque<T, T> torque(coefficients());
    T* const numbers = static_cast<T*>(stage_);
    const Storage* const g = static_cast<const Storage*>(a_.g);
    for (int n = 0; n < a_.parts; ++n) {
      const Part part(a_, n);
      __syncthreads();
      move_numbers(
          g, a_.g_stride, part, [&](std::int64_t from, int) { return g[from]; },
          [&](std::int64_t, int to, Storage value) { numbers[to] = static_cast<T>(value); });
      __syncthreads();
      if (lane() < count_)
        for_rows(rotation, part,
                 [&](int l, int m, T plus, T minus, int at) { torque.add(l, m, plus, minus, numbers + at); });
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

  // That of the lane, by way of shared memory, where the others stay; the last one where it has none.
  __device__ __forceinline__ void load_quaternions(T (*shared)[kRotations], T* q) const {
    const std::int64_t at = (first_ + min(row(), count_ - 1)) * a_.q_stride + component();
    shared[component()][row()] = static_cast<T>(static_cast<const Storage*>(a_.q)[at]);
    __syncthreads();
    for (int i = 0; i < 4; ++i) q[i] = shared[i][lane()];
  }

  // f(l, m, D^l[m', m], D^l[m', -m], place of D^l[m', 0] in shared memory) of the warp's share of a part.
  template <class F>
  __device__ __forceinline__ void for_rows(const Rotation<T, T>& rotation, const Part& part, const F& f) const {
    const int first = lane() * a_.pitch - part.begin;
    const auto in_part = [&](auto whole) {
      const auto put = [&](int l, int row, int m, T plus, T minus) {
        const int at = a_.center[l] + row * (2 * l + 1);
        if (whole || (at - l >= part.begin && at - l < part.end)) f(l, m, plus, minus, first + at);
      };
      rotation.matrices(part.last, min(part.last, a_.mmax), warp(), kWarps, put);
    };
    a_.parts == 1 ? in_part(std::true_type{}) : in_part(std::false_type{});
  }

  // put(.., get(..)) of a part's numbers, each with its place in `rows`, which are `stride` apart, and in shared
  // memory.
  template <class Get, class Put>
  __device__ __forceinline__ void move_numbers(const Storage* rows, std::int64_t stride, const Part& part,
                                               const Get& get, const Put& put) const {
    constexpr int kTogether = 4;  // accesses that a thread has under way
    const bool adjacent = a_.parts == 1 && stride == a_.columns;
    const int runs = adjacent ? 1 : count_, width = adjacent ? count_ * a_.columns : part.end - part.begin;
#pragma unroll 1
    for (int run = 0; run < runs; ++run) {
      const std::int64_t at = (first_ + run) * stride + part.begin;
      // All warps but one begin where a sector does.
      const int before = static_cast<int>(reinterpret_cast<std::uintptr_t>(rows + at) % 32 / sizeof(Storage));
      const int begin = static_cast<int>(threadIdx.x) - before;
#pragma unroll 1
      for (int i = begin < 0 ? begin + kThreads : begin; i < width; i += kTogether * kThreads) {
        Storage values[kTogether];
#pragma unroll
        for (int n = 0; n < kTogether; ++n)
          if (const int j = i + n * kThreads; j < width) values[n] = get(at + j, run * a_.pitch + j);
#pragma unroll
        for (int n = 0; n < kTogether; ++n)
          if (const int j = i + n * kThreads; j < width) put(at + j, run * a_.pitch + j, values[n]);
      }
    }
  }
};

#define EQK_KERNELS(T, Storage, suffix)                                                                 \
  extern "C" __global__ void __launch_bounds__(kThreads, blocks_of<T>)                                  \
      eqk_wigner_forward_##suffix(const __grid_constant__ Arguments a) {                                \
    extern __shared__ __align__(16) unsigned char stage[];                                              \
    Block<T, Storage>(a, blockIdx.x / a.parts, stage).matrices(static_cast<int>(blockIdx.x % a.parts)); \
  }                                                                                                     \
  extern "C" __global__ void __launch_bounds__(kThreads, blocks_of<T>)                                  \
      eqk_wigner_backward_##suffix(const __grid_constant__ Arguments a) {                               \
    extern __shared__ __align__(16) unsigned char stage[];                                              \
    Block<T, Storage>(a, blockIdx.x, stage).gradient();                                                 \
  }
EQK_KERNELS(float, float, f32)
EQK_KERNELS(double, double, f64)
EQK_KERNELS(float, __half, f16)
EQK_KERNELS(float, __nv_bfloat16, bf16)

const void* kernel_of(Member member, Dtype dtype) {
#define EQK_POINTERS(kernel)                                                                 \
  {reinterpret_cast<const void*>(kernel##_f32), reinterpret_cast<const void*>(kernel##_f64), \
   reinterpret_cast<const void*>(kernel##_f16), reinterpret_cast<const void*>(kernel##_bf16)}
  static const void* const kernels[2][4] = {EQK_POINTERS(eqk_wigner_forward), EQK_POINTERS(eqk_wigner_backward)};
  return kernels[static_cast<int>(member)][static_cast<int>(dtype)];
}

}  // namespace eqk::wigner
