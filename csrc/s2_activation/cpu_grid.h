#pragma once
// The kernel: lanes are channels, or rows where there is one channel. For a tile of lanes the signals' coefficients are
// formed on all rings; ring by ring follow their values, the function, and the coefficients of the result.
#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/aligned.h"
#include "core/cpu_tile.h"
#include "core/lanes.h"
#include "s2_activation/cpu_functions.h"
#include "s2_activation/cpu_kernels.h"

namespace eqk::s2_activation {
inline namespace EQK_ISA {

inline constexpr int kSums = 8, kColumns = 12;

// out[r] = sum over c of matrix[r, c] in[c], rows of the matrix `stride` numbers apart. Columns: 0 where there are more
// than kColumns.
template <class T, class V, int kRows, int kFixed>
void apply_rows(const T* matrix, int stride, int more, const V* in, V* out) {
  V sums[kRows]{};
  const auto column = [&](int c) EQK_LAMBDA {
    unroll<kRows>([&](auto r) EQK_LAMBDA { sums[r] += matrix[r * stride + c] * in[c]; });
  };
  if constexpr (kFixed)
    unroll<kFixed>([&](auto c) EQK_LAMBDA { column(c); });
  else
    for (int c = 0; c < more; ++c) column(c);
  unroll<kRows>([&](auto r) EQK_LAMBDA { out[r] = sums[r]; });
}

// By a number of rows and of columns: loops of so few rounds take longer than what they do.
template <class T, class V, int... n>
constexpr auto kernels_of(std::integer_sequence<int, n...>) {
  using Kernel = void (*)(const T*, int, int, const V*, V*);
  return std::array<Kernel, sizeof...(n)>{&apply_rows<T, V, n / (kColumns + 1) + 1, n % (kColumns + 1)>...};
}

// The same for any number of rows, eight sums at a time, so that additions do not wait for one another.
template <class T, class V>
void apply(const T* matrix, int stride, int rows, int columns, const V* in, V* out) {
  static constexpr auto kKernels = kernels_of<T, V>(std::make_integer_sequence<int, kSums*(kColumns + 1)>{});
  if (columns == 0) {
    std::fill_n(out, rows, V{});
    return;
  }
  for (int r = 0; r < rows; r += kSums)
    kKernels[(std::min(kSums, rows - r) - 1) * (kColumns + 1) + (columns > kColumns ? 0 : columns)](
        matrix + static_cast<std::int64_t>(r) * stride, stride, columns, in, out + r);
}

template <class T>
class Grid {
  static constexpr int W = Tile<T>::W;
  using V = Vector<T, W>;

 public:
  explicit Grid(const Problem& problem) : problem_(problem), plan_(*problem.plan), lowered_(lowering<T>(plan_)) {
    int most = 0, components = 0;
    for (const Side& side : plan_.of) {
      most = std::max(most, side.lmax);
      components = std::max(components, side.components());
    }
    components_ = aligned_array<V>(components);
    for (std::size_t n = 0; n < 1 + problem.factors.size(); ++n)
      coefficients_.push_back(aligned_array<V>(lowered_.rings * row(kind_of(n))));
    sums_ = aligned_array<V>(lowered_.rings * row(problem.result));
    values_ = aligned_array<V>(2 * lowered_.half() * coefficients_.size());
    column_ = aligned_array<V>(most + 1);
    pair_ = aligned_array<V>(2 * lowered_.pairs());
  }

  static std::int64_t tasks(const Problem& problem) { return Tile<T>::tasks(problem.rows, problem.plan->channels); }

  void run(std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n)
      Tile<T>::for_tiles(problem_.dtype, n, problem_.rows, plan_.channels,
                         [&](const Tile<T>& tile, std::int64_t row) { run_tile(tile, row); });
  }

 private:
  const Problem& problem_;
  const Plan& plan_;
  const Lowered<T>& lowered_;
  AlignedArray<V> components_, sums_, values_, column_, pair_;
  std::vector<AlignedArray<V>>
      coefficients_;  // [ring][those of cosines from m = 0, of sines from m = 1] of x and factors

  Kind kind_of(std::size_t n) const { return n ? problem_.factors[n - 1].kind : kX; }
  int row(Kind kind) const { return 2 * plan_.of[kind].mmax + 1; }

  void load(const Tile<T>& tile, std::int64_t row, const Operand& operand) {
    const Side& side = plan_.of[operand.kind];
    tile.load_signals(operand.data, row, operand.stride, side.layout, lowered_.irreps[operand.kind], side.components(),
                      components_.get());
  }

  void store(const Tile<T>& tile, std::int64_t row) {
    const Side& side = plan_.of[problem_.result];
    tile.store_signals(problem_.out, row, plan_.dim[problem_.result], side.layout, lowered_.irreps[problem_.result],
                       side.components(), components_.get());
  }

  void run_tile(const Tile<T>& tile, std::int64_t row) {
    for (std::size_t n = 0; n < coefficients_.size(); ++n) {
      load(tile, row, n ? problem_.factors[n - 1] : problem_.x);
      to_rings(kind_of(n), coefficients_[n].get());
    }
    for (int ring = 0; ring < lowered_.rings; ++ring) run_ring(ring);
    from_rings();
    store(tile, row);
  }

  // f(order m, whether of the sine): of each coefficient of a ring.
  template <class F>
  static EQK_HD void for_orders(int mmax, const F& f) {
    for (int m = 0; m <= mmax; ++m) {
      f(m, false);
      if (m) f(m, true);
    }
  }
  static int place(int mmax, int m, bool of_sine) { return of_sine ? mmax + m : m; }

  void to_rings(Kind kind, V* coefficients) {
    const int mmax = plan_.of[kind].mmax, width = row(kind), pairs = lowered_.pairs();
    for_orders(mmax, [&](int m, bool of_sine) {
      const OrderTables<T>& order = lowered_.legendre[kind][m];
      const int* const places = (of_sine ? order.sine : order.cosine).data();
      const auto gather = [&](int first, int count) {
        for (int c = 0; c < count; ++c) column_[c] = components_[places[first + 2 * c]];
      };
      V *const same = pair_.get(), *const opposite = same + pairs;
      gather(0, order.same.columns);
      apply(order.same.by_row.data(), order.same.columns, pairs, order.same.columns, column_.get(), same);
      gather(1, order.opposite.columns);
      apply(order.opposite.by_row.data(), order.opposite.columns, pairs, order.opposite.columns, column_.get(),
            opposite);
      V* to = coefficients + place(mmax, m, of_sine);
      for (int k = 0; k < pairs; ++k, to += 2 * width) {
        to[0] = same[k] + opposite[k];
        if (2 * k + 1 < lowered_.rings) to[width] = same[k] - opposite[k];
      }
    });
  }

  void from_rings() {
    const int mmax = plan_.of[problem_.result].mmax, width = row(problem_.result), pairs = lowered_.pairs();
    for_orders(mmax, [&](int m, bool of_sine) {
      const OrderTables<T>& order = lowered_.legendre[problem_.result][m];
      const int* const places = (of_sine ? order.sine : order.cosine).data();
      V *const same = pair_.get(), *const opposite = same + pairs;
      const V* from = sums_.get() + place(mmax, m, of_sine);
      for (int k = 0; k < pairs; ++k, from += 2 * width) {
        const bool equator = 2 * k + 1 == lowered_.rings;
        same[k] = equator ? from[0] : from[0] + from[width];
        opposite[k] = equator ? V{} : from[0] - from[width];
      }
      const auto scatter = [&](const Matrix<T>& matrix, const V* in, int first) {
        apply(matrix.by_column.data(), pairs, matrix.columns, pairs, in, column_.get());
        for (int c = 0; c < matrix.columns; ++c) components_[places[first + 2 * c]] = column_[c];
      };
      scatter(order.same, same, 0);
      scatter(order.opposite, opposite, 1);
    });
  }

  void run_ring(int ring) {
    const int half = lowered_.half();
    for (std::size_t n = 0; n < coefficients_.size(); ++n) {
      const int mmax = plan_.of[kind_of(n)].mmax;
      const V* const c = coefficients_[n].get() + ring * row(kind_of(n));
      V *const even = values_.get() + 2 * half * n, *const odd = even + half;
      apply(lowered_.cosine.by_row.data(), lowered_.cosine.columns, half, mmax + 1, c, even);
      apply(lowered_.sine.by_row.data(), lowered_.sine.columns, half, mmax, c + mmax + 1, odd);
    }
    with_function([&](auto function) { with_derivative([&](auto k) { apply_function<function, k>(); }); });
    const int mmax = plan_.of[problem_.result].mmax;
    V* const to = sums_.get() + ring * row(problem_.result);
    const V *const even = values_.get(), *const odd = even + half;
    apply(lowered_.cosine.by_column.data(), half, mmax + 1, half, even, to);
    apply(lowered_.sine.by_column.data(), half, mmax, half, odd, to + mmax + 1);
  }

  template <class F>
  void with_function(const F& f) const {
    unroll<static_cast<int>(kFunctionNames.size())>([&](auto n) EQK_LAMBDA {
      if (plan_.function == static_cast<Function>(int{n}))
        f(std::integral_constant<Function, static_cast<Function>(int{n})>{});
    });
  }
  template <class F>
  void with_derivative(const F& f) const {
    unroll<kMaxDerivative + 1>([&](auto k) EQK_LAMBDA {
      if (problem_.derivative == k) f(k);
    });
  }

  // At an angle a and at -a values are even + odd and even - odd; of the results the sum and the difference replace
  // those of x.
  template <Function function, int K>
  __attribute__((noinline)) void apply_function() {
    const int half = lowered_.half(), factors = static_cast<int>(problem_.factors.size());
    V *const even = values_.get(), *const odd = even + half;
    const auto result = [&](int j, T sign) EQK_LAMBDA {
      V product = derivative<function, K, T, W>(even[j] + sign * odd[j]);
      for (int n = 1; n <= factors; ++n) {
        const V* const factor = even + 2 * half * n + j;
        product *= factor[0] + sign * factor[half];
      }
      return product;
    };
    for (int j = 0; j < half; ++j) {
      const V first = result(j, 1);
      if (!lowered_.has_mirror(j)) {
        even[j] = first;
        odd[j] = V{};
        continue;
      }
      const V second = result(j, -1);
      even[j] = first + second;
      odd[j] = first - second;
    }
  }
};

}  // namespace EQK_ISA
}  // namespace eqk::s2_activation
