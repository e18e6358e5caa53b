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

// Loops of so few rounds take longer than what they do: up to this many degrees or orders have kernels of their own.
inline constexpr int kUnrolled = 8;

// f(n) for n from 0 to count, which is kCount where that is not 0.
template <int kCount, class F>
EQK_HD void for_each(int count, const F& f) {
  if constexpr (kCount)
    unroll<kCount>(f);
  else
    for (int n = 0; n < count; ++n) f(n);
}

// One order: sums over its degrees on each ring. Components at these places; table: [pair of rings, degree]; rings are
// `pitch` apart.
template <class T, class V, int kDegrees>
void to_rings(const OrderTables<T>& order, const int* places, int rings, const V* components, V* to, int pitch) {
  V x[kDegrees ? kDegrees : kMaxDegree + 1];
  for_each<kDegrees>(order.degrees, [&](auto c) EQK_LAMBDA { x[c] = components[places[c]]; });
  const T* table = order.table.data();
  for (int ring = 0; ring < rings; ring += 2, table += order.degrees, to += 2 * pitch) {
    V same{}, opposite{};
    for_each<kDegrees>(order.degrees, [&](auto c) EQK_LAMBDA { (c % 2 ? opposite : same) += table[c] * x[c]; });
    to[0] = same + opposite;
    if (ring + 1 < rings) to[pitch] = same - opposite;
  }
}

// The transpose.
template <class T, class V, int kDegrees>
void from_rings(const OrderTables<T>& order, const int* places, int rings, const V* from, int pitch, V* components) {
  V z[kDegrees ? kDegrees : kMaxDegree + 1]{};
  const T* table = order.table.data();
  for (int ring = 0; ring < rings; ring += 2, table += order.degrees, from += 2 * pitch) {
    const bool equator = ring + 1 == rings;
    const V same = equator ? from[0] : from[0] + from[pitch], opposite = equator ? V{} : from[0] - from[pitch];
    for_each<kDegrees>(order.degrees, [&](auto c) EQK_LAMBDA { z[c] += table[c] * (c % 2 ? opposite : same); });
  }
  for_each<kDegrees>(order.degrees, [&](auto c) EQK_LAMBDA { components[places[c]] = z[c]; });
}

// One ring, from coefficients of cosines from m = 0 and of sines from m = 1: the parts of its values that are even and
// odd in the angle. Orders: mmax. At the first angle, cosines are one and sines nothing.
template <class T, class V, int kOrders>
void to_angles(const Lowered<T>& lowered, int orders, const V* c, V* even, V* odd) {
  const int count = kOrders ? kOrders : orders;
  // Copies, which the compiler keeps in registers: values might lie where coefficients do.
  const V mean = c[0];
  V first = mean, of_cosine[kOrders ? kOrders : kMaxDegree + 1], of_sine[kOrders ? kOrders : kMaxDegree + 1];
  for_each<kOrders>(count, [&](auto m) EQK_LAMBDA {
    of_cosine[m] = c[1 + m];
    of_sine[m] = c[1 + count + m];
    first += of_cosine[m];
  });
  even[0] = first;
  odd[0] = V{};
  const T *cosine = lowered.cosine.data(), *sine = lowered.sine.data();
  for (int j = 1; j < lowered.half(); ++j) {
    cosine += lowered.mmax;
    sine += lowered.mmax;
    V e = mean, o{};
    for_each<kOrders>(count, [&](auto m) EQK_LAMBDA {
      e += cosine[m] * of_cosine[m];
      o += sine[m] * of_sine[m];
    });
    even[j] = e;
    odd[j] = o;
  }
}

// The transpose.
template <class T, class V, int kOrders>
void from_angles(const Lowered<T>& lowered, int orders, const V* even, const V* odd, V* c) {
  const int count = kOrders ? kOrders : orders;
  V mean = even[0], of_cosine[kOrders ? kOrders : kMaxDegree + 1], of_sine[kOrders ? kOrders : kMaxDegree + 1];
  for_each<kOrders>(count, [&](auto m) EQK_LAMBDA {
    of_cosine[m] = mean;
    of_sine[m] = V{};
  });
  const T *cosine = lowered.cosine.data(), *sine = lowered.sine.data();
  for (int j = 1; j < lowered.half(); ++j) {
    cosine += lowered.mmax;
    sine += lowered.mmax;
    mean += even[j];
    for_each<kOrders>(count, [&](auto m) EQK_LAMBDA {
      of_cosine[m] += cosine[m] * even[j];
      of_sine[m] += sine[m] * odd[j];
    });
  }
  c[0] = mean;
  for_each<kOrders>(count, [&](auto m) EQK_LAMBDA {
    c[1 + m] = of_cosine[m];
    c[1 + count + m] = of_sine[m];
  });
}

// All of these for a number of degrees or orders.
template <class T, class V>
struct Transforms {
  void (*rings)(const OrderTables<T>&, const int*, int, const V*, V*, int);
  void (*rings_back)(const OrderTables<T>&, const int*, int, const V*, int, V*);
  void (*angles)(const Lowered<T>&, int, const V*, V*, V*);
  void (*angles_back)(const Lowered<T>&, int, const V*, const V*, V*);
};

template <class T, class V, int... n>
constexpr std::array<Transforms<T, V>, sizeof...(n)> all_transforms(std::integer_sequence<int, n...>) {
  return {{{&to_rings<T, V, n>, &from_rings<T, V, n>, &to_angles<T, V, n>, &from_angles<T, V, n>}...}};
}

template <class T, class V>
const Transforms<T, V>& transforms(int count) {
  static constexpr auto kAll = all_transforms<T, V>(std::make_integer_sequence<int, kUnrolled + 1>{});
  return kAll[count > kUnrolled ? 0 : count];
}

template <class T>
class Grid {
  static constexpr int W = Tile<T>::W;
  using V = Vector<T, W>;

 public:
  explicit Grid(const Problem& problem) : problem_(problem), plan_(*problem.plan), lowered_(lowering<T>(plan_)) {
    components_ = aligned_array<V>(std::max(plan_.of[kX].components(), plan_.of[kZ].components()));
    for (std::size_t n = 0; n < 1 + problem.factors.size(); ++n)
      coefficients_.push_back(aligned_array<V>(lowered_.rings * row(kind_of(n))));
    sums_ = aligned_array<V>(lowered_.rings * row(problem.result));
    values_ = aligned_array<V>(2 * lowered_.half() * coefficients_.size());
    with_function([&](auto function) {
      with_derivative([&](auto k) {
        apply_function_ = problem.factors.size() == 0   ? &Grid::template apply_function<function, k, 0>
                          : problem.factors.size() == 1 ? &Grid::template apply_function<function, k, 1>
                                                        : &Grid::template apply_function<function, k, -1>;
      });
    });
  }

  static std::int64_t tasks(const Problem& problem) { return Tile<T>::tasks(problem.rows, problem.plan->channels); }

  void run(std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n)
      Tile<T>::for_tiles(problem_.dtype, n, problem_.rows, plan_.channels, false,
                         [&](const Tile<T>& tile, std::int64_t row) { run_tile(tile, row); });
  }

 private:
  const Problem& problem_;
  const Plan& plan_;
  const Lowered<T>& lowered_;
  AlignedArray<V> components_, sums_, values_;
  std::vector<AlignedArray<V>>
      coefficients_;  // [ring][those of cosines from m = 0, of sines from m = 1] of x and factors
  void (Grid::*apply_function_)() = nullptr;

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

  // f(tables, places of components, place of the coefficient on a ring): of each order's cosine and sine.
  template <class F>
  void for_orders(Kind kind, const F& f) const {
    const int mmax = plan_.of[kind].mmax;
    for (int m = 0; m <= mmax; ++m) {
      const OrderTables<T>& order = lowered_.legendre[kind][m];
      f(order, order.cosine.data(), m);
      if (m) f(order, order.sine.data(), mmax + m);
    }
  }

  void to_rings(Kind kind, V* coefficients) {
    for_orders(kind, [&](const OrderTables<T>& order, const int* places, int at) {
      transforms<T, V>(order.degrees)
          .rings(order, places, lowered_.rings, components_.get(), coefficients + at, row(kind));
    });
  }

  void from_rings() {
    for_orders(problem_.result, [&](const OrderTables<T>& order, const int* places, int at) {
      transforms<T, V>(order.degrees)
          .rings_back(order, places, lowered_.rings, sums_.get() + at, row(problem_.result), components_.get());
    });
  }

  void run_ring(int ring) {
    const int half = lowered_.half();
    for (std::size_t n = 0; n < coefficients_.size(); ++n) {
      const int mmax = plan_.of[kind_of(n)].mmax;
      V* const even = values_.get() + 2 * half * n;
      transforms<T, V>(mmax).angles(lowered_, mmax, coefficients_[n].get() + ring * row(kind_of(n)), even, even + half);
    }
    (this->*apply_function_)();
    const int mmax = plan_.of[problem_.result].mmax;
    V* const even = values_.get();
    transforms<T, V>(mmax).angles_back(lowered_, mmax, even, even + half, sums_.get() + ring * row(problem_.result));
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
  // those of x. kFactors: how many, -1 for any.
  template <Function function, int K, int kFactors>
  __attribute__((noinline)) void apply_function() {
    const int half = lowered_.half(), factors = kFactors < 0 ? static_cast<int>(problem_.factors.size()) : kFactors;
    V *const even = values_.get(), *const odd = even + half;
    const auto result = [&](int j, T sign) EQK_LAMBDA {
      V product = derivative<function, K, T, W>(even[j] + sign * odd[j]);
      for (int n = 1; n <= factors; ++n) {
        const V* const factor = even + 2 * half * n + j;
        product *= factor[0] + sign * factor[half];
      }
      return product;
    };
    const auto alone = [&](int j) EQK_LAMBDA {
      even[j] = result(j, 1);
      odd[j] = V{};
    };
    // The first angle is its own mirror image, and of an even number the last one.
    const bool last_alone = half > 1 && !lowered_.has_mirror(half - 1);
    alone(0);
    for (int j = 1; j < half - last_alone; ++j) {
      const V first = result(j, 1), second = result(j, -1);
      even[j] = first + second;
      odd[j] = first - second;
    }
    if (last_alone) alone(half - 1);
  }
};

}  // namespace EQK_ISA
}  // namespace eqk::s2_activation
