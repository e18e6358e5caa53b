// Compiled once per instruction set with EQK_ISA and EQK_VECTOR_BYTES set by the build.
#include "core/aligned.h"
#include "core/cpu_tile.h"
#include "wigner/problem.h"
#include "wigner/torque.h"

namespace eqk::wigner {
inline namespace EQK_ISA {

// SIMD lanes are rows.
template <class T>
class RowLanes {
  using V = typename Tile<T>::V;

 public:
  static std::int64_t tasks(const Problem& problem) { return Tile<T>::tasks(problem.rows, 1); }

  explicit RowLanes(const Problem& problem) : p_(problem), values_(aligned_array<V>(problem.columns)) {
    for (int l = 0; l <= p_.lmax; ++l) center_[l] = values_.get() + center(l, p_.mmax);
  }

  void run(std::int64_t begin, std::int64_t end) {
    for (std::int64_t task = begin; task < end; ++task)
      Tile<T>::for_tiles(p_.dtype, task, p_.rows, 1, false, [&](const Tile<T>& tile, std::int64_t) {
        V q[4];
        tile.load_numbers(p_.q, 0, p_.q_stride, 0, 4, q);
        const Rotation<T, V> rotation(q, kCoefficients<T>);
        p_.g ? gradient(tile, q, rotation) : matrices(tile, rotation);
      });
  }

 private:
  const Problem& p_;
  AlignedArray<V> values_;
  V* center_[kMaxDegree + 1];  // of D^l[0, 0] or its cotangent

  void matrices(const Tile<T>& tile, const Rotation<T, V>& rotation) {
    rotation.matrices(p_.lmax, p_.mmax, 0, 1, [&](int l, int row, int m, V plus, V minus) EQK_LAMBDA {
      V* const to = center_[l] + row * (2 * l + 1);
      to[-m] = minus;
      to[m] = plus;
    });
    tile.store_numbers(p_.out, 0, p_.columns, 0, static_cast<int>(p_.columns), values_.get());
  }

  void gradient(const Tile<T>& tile, const V* q, const Rotation<T, V>& rotation) {
    tile.load_numbers(p_.g, 0, p_.g_stride, 0, static_cast<int>(p_.columns), values_.get());
    Torque<T, V> torque(kCoefficients<T>);
    rotation.matrices(p_.lmax, p_.mmax, 0, 1, [&](int l, int row, int m, V plus, V minus) EQK_LAMBDA {
      torque.add(l, m, plus, minus, center_[l] + row * (2 * l + 1));
    });
    V of_q[4];
    quaternion_gradient<T>(q, torque.sum, of_q);
    tile.store_numbers(p_.out, 0, 4, 0, 4, of_q);
  }
};

static constexpr Kernels kKernels = task_kernels<RowLanes, Problem>();

}  // namespace EQK_ISA

#define EQK_JOIN(a, b) a##b
#define EQK_NAME(isa) EQK_JOIN(kernel_of_, isa)
const Kernels& EQK_NAME(EQK_ISA)() { return kKernels; }

}  // namespace eqk::wigner
