// Compiled once per instruction set with EQK_ISA and EQK_VECTOR_BYTES set by the build.
#include <algorithm>

#include "core/aligned.h"
#include "core/lanes.h"
#include "spherical_harmonics/plan.h"

namespace eqk::spherical_harmonics {
inline namespace EQK_ISA {

// SIMD lanes are rows. Rows pass through a staging buffer that has a vector of room at its end, so that every transfer
// between it and the vectors has full width, whatever the number of columns.
template <class T, class Storage>
class RowLanes {
  static constexpr int W = EQK_VECTOR_BYTES / sizeof(T);
  using V = Vector<T, W>;

 public:
  explicit RowLanes(const Problem& problem)
      : p_(problem),
        columns_(static_cast<std::int64_t>(problem.plan->index.size())),
        scale_(scales()),
        c_(solid_coefficients<T>()) {
    const std::int64_t components = solid_index(problem.plan->lmax, problem.plan->lmax) + 1;
    const std::int64_t staged = std::max<std::int64_t>(columns_, 3) + 1;
    memory_ = aligned_array<V>(2 * components + staged);
    values_ = memory_.get();
    g_ = values_ + components;
    stage_ = reinterpret_cast<T*>(g_ + components);
    std::fill_n(stage_, staged * W, T{});
  }

  void run(std::int64_t begin, std::int64_t end) {
    switch (p_.plan->lmax) {
      case 0:
        return run(constant<0>{}, begin, end);
      case 1:
        return run(constant<1>{}, begin, end);
      case 2:
        return run(constant<2>{}, begin, end);
      case 3:
        return run(constant<3>{}, begin, end);
      case 4:
        return run(constant<4>{}, begin, end);
      default:
        return run(p_.plan->lmax, begin, end);
    }
  }

 private:
  const Problem& p_;
  std::int64_t columns_;
  const T* scale_;
  const SolidCoefficients<T>& c_;
  AlignedArray<V> memory_;
  V *values_, *g_;
  T* stage_;

  const T* scales() const {
    if constexpr (std::is_same_v<T, float>)
      return p_.plan->scale_float.data();
    else
      return p_.plan->scale.data();
  }

  void stage_rows(const void* base, std::int64_t stride, std::int64_t columns, std::int64_t row, int rows) {
    const Storage* from = static_cast<const Storage*>(base) + row * stride;
    if (stride == columns) {
      columns *= rows;
      rows = 1;
    }
    for (int r = 0; r < rows; ++r)
      for (std::int64_t q = 0; q < columns; ++q) stage_[r * columns + q] = from_storage<T>(from[r * stride + q]);
  }

  void unstage_rows(std::int64_t columns, std::int64_t row, int rows) const {
    Storage* const to = static_cast<Storage*>(p_.out) + row * columns;
    for (std::int64_t q = 0; q < rows * columns; ++q) to[q] = as_storage<Storage>(stage_[q]);
  }

  template <class Degree>
  void run(Degree lmax, std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; row += W) {
      const int rows = static_cast<int>(std::min<std::int64_t>(W, end - row));
      stage_rows(p_.x, p_.x_stride, 3, row, rows);
      alignas(V) T x[3][W];
      for (int a = 0; a < 3; ++a)
        for (int lane = 0; lane < W; ++lane) x[a][lane] = stage_[3 * lane + a];
      solid_harmonics(lmax, splat<T, W>(1), load<T, W>(x[0]), load<T, W>(x[1]), load<T, W>(x[2]), c_, values_);
      if (!p_.g) {
        scatter_values();
        unstage_rows(columns_, row, rows);
        continue;
      }
      stage_rows(p_.g, p_.g_stride, columns_, row, rows);
      gather_cotangents();
      V gx[3] = {};
      solid_harmonics_backward(lmax, values_, g_, c_, gx);
      for (int a = 0; a < 3; ++a)
        for (int lane = 0; lane < W; ++lane) stage_[3 * lane + a] = gx[a][lane];
      unstage_rows(3, row, rows);
    }
  }

  // Rows in ascending order within a tile of columns, and tiles in descending order: what a store of full width writes
  // beyond its row is then overwritten by the row that owns it.
  void scatter_values() {
    const int* const index = p_.plan->index.data();
    V tile[W];
    for (std::int64_t last = (columns_ - 1) / W * W, c = last; c >= 0; c -= W) {
      for (int q = 0; q < W; ++q) tile[q] = c + q < columns_ ? scale_[c + q] * values_[index[c + q]] : V{};
      transpose<T, W>(tile);
      for (int lane = 0; lane < W; ++lane) store<T, W>(stage_ + lane * columns_ + c, tile[lane]);
    }
  }

  void gather_cotangents() {
    const int* const index = p_.plan->index.data();
    for (int k = 0; k <= solid_index(p_.plan->lmax, p_.plan->lmax); ++k) g_[k] = V{};
    V tile[W];
    for (std::int64_t c = 0; c < columns_; c += W) {
      for (int lane = 0; lane < W; ++lane) tile[lane] = load<T, W>(stage_ + lane * columns_ + c);
      transpose<T, W>(tile);
      for (int q = 0; q < W && c + q < columns_; ++q) g_[index[c + q]] += scale_[c + q] * tile[q];
    }
  }
};

static void kernel(const Problem& problem, std::int64_t begin, std::int64_t end) {
  with_types(problem.dtype, [&]<class T, class Storage>(T, Storage) { RowLanes<T, Storage>(problem).run(begin, end); });
}

}  // namespace EQK_ISA

#define EQK_JOIN(a, b) a##b
#define EQK_NAME(isa) EQK_JOIN(kernel_of_, isa)
RowsKernel EQK_NAME(EQK_ISA)() { return kernel; }

}  // namespace eqk::spherical_harmonics
