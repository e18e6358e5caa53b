// Compiled once per instruction set with EQK_ISA and EQK_VECTOR_BYTES set by the build.
#include "core/aligned.h"
#include "core/cpu_tile.h"
#include "wigner/problem.h"

namespace eqk::wigner {
inline namespace EQK_ISA {

// SIMD lanes are rows.
template <class T>
class RowLanes {
  using V = typename Tile<T>::V;

 public:
  static std::int64_t tasks(const Problem& problem) { return Tile<T>::tasks(problem.rows, 1); }

  explicit RowLanes(const Problem& problem) : p_(problem), values_(aligned_array<V>(problem.columns)) {
    V* next = values_.get();
    for (int l = 0; l <= p_.lmax; ++l) {
      const int rows = 2 * std::min(l, p_.mmax) + 1, columns = 2 * l + 1;
      center_[l] = next + rows * columns / 2;
      next += rows * columns;
    }
  }

  void run(std::int64_t begin, std::int64_t end) {
    for (std::int64_t task = begin; task < end; ++task)
      Tile<T>::for_tiles(p_.dtype, task, p_.rows, 1, false, [&](const Tile<T>& tile, std::int64_t) {
        V q[4];
        tile.load_numbers(p_.q, 0, p_.q_stride, 0, 4, q);
        Rotation<T, V>(q, coefficients<T>())
            .matrices(p_.lmax, p_.mmax,
                      [&](int l, int row, int column, V v) EQK_LAMBDA { center_[l][row * (2 * l + 1) + column] = v; });
        tile.store_numbers(p_.out, 0, p_.columns, 0, static_cast<int>(p_.columns), values_.get());
      });
  }

 private:
  const Problem& p_;
  AlignedArray<V> values_;
  V* center_[kMaxDegree + 1];
};

static constexpr Kernels kKernels = task_kernels<RowLanes, Problem>();

}  // namespace EQK_ISA

#define EQK_JOIN(a, b) a##b
#define EQK_NAME(isa) EQK_JOIN(kernel_of_, isa)
const Kernels& EQK_NAME(EQK_ISA)() { return kKernels; }

}  // namespace eqk::wigner
