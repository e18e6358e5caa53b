#pragma once
// The kernel: lanes are channels, or rows where there is one channel. For a tile of lanes and some rings at a time, as
// many as the second-level cache has room for, the coefficients of all signals are formed, multiplied as trigonometric
// polynomials, and summed over the rings.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <type_traits>
#include <vector>

#include "core/aligned.h"
#include "core/cpu_tile.h"
#include "core/lanes.h"
#include "gaunt_product/cpu_kernels.h"

namespace eqk::gaunt_product {
inline namespace EQK_ISA {

// Degrees that a loop over the rings keeps in registers.
inline constexpr int kDegrees = 8;

// f(constant<n>) for n from 1 to N.
template <int N, class F>
EQK_HD void with_count(int n, const F& f) {
  unroll<N>([&](auto i) EQK_LAMBDA {
    if (n == i + 1) f(constant<i + 1>{});
  });
}

// A real polynomial on some rings: real and imaginary part of c_m for m from 0 to M, of which c_-m are the conjugates,
// and of a zero behind them, for loops over pairs of m.
template <class V>
class Polynomials {
 public:
  Polynomials() = default;
  Polynomials(int lmax, int rings) : stride_(2 * (lmax + 2)), data_(aligned_array<V>(rings * stride_)) {
    std::fill_n(data_.get(), rings * stride_, V{});
  }

  V* ring(int k) { return data_.get() + k * stride_; }
  const V* ring(int k) const { return data_.get() + k * stride_; }

 private:
  int stride_ = 0;
  AlignedArray<V> data_;
};

// Pairs of rings [begin, end) of those of a grid, the equator being the last half of one.
struct Block {
  int begin, end, rings;

  int half() const { return (rings + 1) / 2; }
  int count() const { return std::min(2 * end, rings) - 2 * begin; }
};

// A signal on the rings: its values, d/dbeta / sin(beta) and d/dalpha.
template <class V>
struct Field {
  Polynomials<V> value, beta, alpha;
};

template <class T>
class Rings {
  static constexpr int W = Tile<T>::W;
  static constexpr std::int64_t kCacheBytes = 128 << 10;  // of polynomials: half of the smallest second-level cache
  using V = Vector<T, W>;

 public:
  explicit Rings(const Problem& problem) : problem_(problem), plan_(*problem.plan), lowered_(lowering<T>(plan_)) {
    const bool dual = problem.dual;
    std::int64_t numbers = 0;
    for (int s = 0; s < 3; ++s)
      for (int part = 0; part < 1 + dual; ++part)
        if (value_of(s, part)) numbers += 2 * (degrees(s) + 1) * (lowered_.bracket ? 3 : 1);
    const std::int64_t pair_bytes = 2 * numbers * static_cast<std::int64_t>(sizeof(V));
    pairs_ = static_cast<int>(std::clamp<std::int64_t>(kCacheBytes / pair_bytes, 1, lowered_.half()));
    for (int s = 0; s < 3; ++s) {
      const int size = plan_.of[s].components();
      for (int part = 0; part < 1 + dual; ++part) {
        operand_[part][s] = aligned_array<V>(size);
        scaled_[part][s] = aligned_array<V>(size);
        raw_[part][s] = aligned_array<V>(size);
        weight_[part][s] = aligned_array<V>(degrees(s));
        if (!value_of(s, part)) continue;
        Field<V>& field = field_[part][s];
        field.value = Polynomials<V>(plan_.of[s].lmax, 2 * pairs_);
        if (lowered_.bracket) {
          field.beta = Polynomials<V>(plan_.of[s].lmax, 2 * pairs_);
          field.alpha = Polynomials<V>(plan_.of[s].lmax, 2 * pairs_);
        }
      }
      out_[s] = aligned_array<V>(size);
      sums_[s] = aligned_array<T>(size);
    }
    for (int s = 0; s < 3; ++s) {
      for (int m = 0; m < degrees(s); ++m)
        for (int first = 0; first < lowered_.of[s].count(m); first += kDegrees)
          with_count<kDegrees>(std::min(kDegrees, lowered_.of[s].count(m) - first), [&](auto count) {
            steps_[s].push_back(m ? step<count, false>(m, first) : step<count, true>(m, first));
          });
      const auto choose = [&](auto product, auto bracket) {
        multiply_[s] = {multiplication<product, bracket, false>(s), multiplication<product, bracket, true>(s)};
      };
      if (!lowered_.bracket)
        choose(std::true_type{}, std::false_type{});
      else if (lowered_.product)
        choose(std::true_type{}, std::true_type{});
      else
        choose(std::false_type{}, std::true_type{});
    }
    int most = 0;
    for (const auto& signals : plan_.of) most = std::max(most, signals.lmax);
    product_ = aligned_array<V>(static_cast<std::int64_t>(2 * pairs_) * 2 * (most + 1));
  }

  static std::int64_t tasks(const Problem& problem) {
    return Tile<T>::tasks(problem.rows, problem.plan->channels(), alone(*problem.plan));
  }

  void run(std::int64_t begin, std::int64_t end) {
    const Tile<T> single(problem_.dtype, 1, 0);
    for (std::int64_t row = begin; row < end; ++row) {
      for (int s = 0; s < 3; ++s)
        if (summed(s)) std::fill_n(sums_[s].get(), plan_.of[s].components(), T{});
      Tile<T>::for_tiles(problem_.dtype, row, problem_.rows, plan_.channels(), alone(plan_),
                         [&](const Tile<T>& tile, std::int64_t of_tile) { run_tile(tile, of_tile); });
      for (int s = 0; s < 3; ++s) {
        if (!summed(s)) continue;
        const Result& out = problem_.out[kSignal[s]];
        single.store_same(out.data, row * out.stride, plan_.of[s].components(), sums_[s].get());
      }
    }
  }

 private:
  // Degrees m + first and up of one m, at most kDegrees; analyse: in place of what is there, and added to it.
  struct Step {
    int m, first;
    void (*synthesise)(const Tables<T>&, Block, const V*, int, int, Field<V>&);
    std::array<void (*)(const Tables<T>&, Block, const V*, int, int, V*), 2> analyse;
  };
  template <int count, bool real>
  Step step(int m, int first) const {
    return {m,
            first,
            lowered_.bracket ? &Rings::synthesise_degrees<count, true, real>
                             : &Rings::synthesise_degrees<count, false, real>,
            {&Rings::analyse_degrees<count, false, real>, &Rings::analyse_degrees<count, true, real>}};
  }
  using Multiply = void (*)(const Field<V>&, int, const Field<V>&, int, int, int, V*);

  const Problem& problem_;
  const Plan& plan_;
  const Lowered<T>& lowered_;
  std::array<std::vector<Step>, 3> steps_;
  std::array<std::array<Multiply, 2>, 3> multiply_;  // of the two others; in place of what is there, and added to it
  // [value or tangent][x, y, g]; raw_: the product of the two others, in the components of this one.
  std::array<std::array<AlignedArray<V>, 3>, 2> operand_, scaled_, raw_, weight_;
  std::array<std::array<Field<V>, 3>, 2> field_;
  std::array<AlignedArray<V>, 3> out_;
  std::array<AlignedArray<T>, 3> sums_;
  AlignedArray<V> product_;  // [ring][m][real, imaginary]
  int pairs_ = 0;            // of rings at a time

  // A signal for all channels of its row, in all lanes.
  static bool alone(const Plan& plan) {
    return std::any_of(plan.of.begin(), plan.of.end(), [&](const auto& of) { return of.channels != plan.channels(); });
  }

  int degrees(int s) const { return plan_.of[s].lmax + 1; }
  const void* pointer(Slot slot, int part) const { return part ? problem_.in[slot].tangent : problem_.in[slot].value; }
  std::int64_t stride(Slot slot, int part) const {
    return part ? problem_.in[slot].tangent_stride : problem_.in[slot].stride;
  }
  bool has_weight(int s) const { return problem_.in[kWeight[s]].value; }
  // Whether the weighted signal s has this part.
  bool value_of(int s, int part) const {
    return pointer(kSignal[s], 0) && (!part || pointer(kSignal[s], 1) || pointer(kWeight[s], 1));
  }
  // Whether its gradient is a sum over channels.
  bool summed(int s) const { return problem_.out[kSignal[s]].data && plan_.of[s].channels != plan_.channels(); }
  // Whether the product of the two other signals is needed, or its tangent.
  bool needs_raw(int s, int part) const {
    const bool signal = problem_.out[kSignal[s]].data, weight = problem_.out[kWeight[s]].data;
    if (!signal && !weight) return false;
    if (part || !problem_.dual) return true;
    return (signal && pointer(kWeight[s], 1)) || (weight && pointer(kSignal[s], 1));
  }

  void load_signal(const Tile<T>& tile, std::int64_t row, int s, int part) {
    const auto& signals = plan_.of[s];
    const void* const data = pointer(kSignal[s], part);
    const std::int64_t stride_of_rows = stride(kSignal[s], part);
    V* const v = operand_[part][s].get();
    if (!data)
      std::fill_n(v, signals.components(), V{});
    else if (signals.channels != plan_.channels())
      tile.load_same(data, row * stride_of_rows, signals.components(), v);
    else
      tile.load_signals(data, row, stride_of_rows, signals.layout, lowered_.irreps[s], signals.components(), v);
  }

  void store_signal(const Tile<T>& tile, std::int64_t row, int s) {
    const auto& signals = plan_.of[s];
    const Result& out = problem_.out[kSignal[s]];
    const V* const v = has_weight(s) ? out_[s].get() : raw_[problem_.dual][s].get();
    if (!summed(s))
      return tile.store_signals(out.data, row, out.stride, signals.layout, lowered_.irreps[s], signals.components(), v);
    for (int i = 0; i < signals.components(); ++i)
      for (int lane = 0; lane < tile.count(); ++lane) sums_[s][i] += v[i][lane];
  }

  // The weights of rank r, one where there are none.
  void load_weight(const Tile<T>& tile, std::int64_t row, std::int64_t r, int s, int part) {
    const void* const data = pointer(kWeight[s], part);
    V* const v = weight_[part][s].get();
    if (!data)
      std::fill_n(v, degrees(s), part ? V{} : splat<T, W>(1));
    else
      tile.load_numbers(data, row, stride(kWeight[s], part), r * degrees(s), degrees(s), v);
  }

  void run_tile(const Tile<T>& tile, std::int64_t row) {
    const int parts = 1 + problem_.dual;
    for (int s = 0; s < 3; ++s) {
      if (has_weight(s) && problem_.out[kSignal[s]].data) std::fill_n(out_[s].get(), plan_.of[s].components(), V{});
      for (int part = 0; part < parts; ++part)
        if (pointer(kSignal[s], 0)) load_signal(tile, row, s, part);
    }
    for (std::int64_t r = 0; r < plan_.rank; ++r) {
      std::array<std::array<const V*, 3>, 2> signals{};
      for (int s = 0; s < 3; ++s)
        for (int part = 0; part < parts; ++part) {
          if (has_weight(s)) load_weight(tile, row, r, s, part);
          if (value_of(s, part)) signals[part][s] = scaled(s, part);
        }
      for (int first = 0; first < lowered_.half(); first += pairs_) {
        const Block block{first, std::min(first + pairs_, lowered_.half()), lowered_.rings};
        for (int s = 0; s < 3; ++s)
          for (int part = 0; part < parts; ++part)
            if (signals[part][s]) synthesise(s, signals[part][s], field_[part][s], block);
        for (int s = 0; s < 3; ++s)
          for (int part = 0; part < parts; ++part)
            if (needs_raw(s, part)) form_raw(s, part, block, first > 0 || (r > 0 && !has_weight(s)));
      }
      for (int s = 0; s < 3; ++s) {
        if (has_weight(s) && problem_.out[kSignal[s]].data) add_weighted(s);
        if (problem_.out[kWeight[s]].data) store_weight_gradient(tile, row, r, s);
      }
    }
    for (int s = 0; s < 3; ++s)
      if (problem_.out[kSignal[s]].data) store_signal(tile, row, s);
  }

  // Each degree of operand s, or of its tangent, times its weight.
  const V* scaled(int s, int part) {
    const V* const v = operand_[part][s].get();
    if (!has_weight(s)) return v;
    V* const to = scaled_[part][s].get();
    const V *const w = weight_[0][s].get(), *const tw = weight_[part][s].get(), *const v0 = operand_[0][s].get();
    for (int l = 0; l < degrees(s); ++l)
      for (int i = l * l; i < (l + 1) * (l + 1); ++i) to[i] = part ? w[l] * v[i] + tw[l] * v0[i] : w[l] * v[i];
    return to;
  }

  void add_weighted(int s) {
    V* const out = out_[s].get();
    const V *const raw = raw_[problem_.dual][s].get(), *const value = raw_[0][s].get();
    const bool moving = problem_.dual && pointer(kWeight[s], 1);
    const V *const w = weight_[0][s].get(), *const tw = weight_[problem_.dual][s].get();
    for (int l = 0; l < degrees(s); ++l)
      for (int i = l * l; i < (l + 1) * (l + 1); ++i) {
        out[i] += w[l] * raw[i];
        if (moving) out[i] += tw[l] * value[i];
      }
  }

  void store_weight_gradient(const Tile<T>& tile, std::int64_t row, std::int64_t r, int s) {
    V gradient[kMaxDegree + 1];
    const bool moving = problem_.dual && pointer(kSignal[s], 1);
    const V *const v = operand_[0][s].get(), *const tv = operand_[problem_.dual][s].get();
    const V *const raw = raw_[problem_.dual][s].get(), *const value = raw_[0][s].get();
    for (int l = 0; l < degrees(s); ++l) {
      V sum{};
      for (int i = l * l; i < (l + 1) * (l + 1); ++i) {
        sum += v[i] * raw[i];
        if (moving) sum += tv[i] * value[i];
      }
      gradient[l] = sum;
    }
    const Result& out = problem_.out[kWeight[s]];
    tile.store_numbers(out.data, row, out.stride, r * degrees(s), degrees(s), gradient);
  }

  // x [components] -> the field on the rings of the block.
  void synthesise(int s, const V* x, Field<V>& field, Block block) const {
    for (const Step& step : steps_[s]) step.synthesise(lowered_.of[s], block, x, step.m, step.first, field);
  }

  // Adds degrees m + first to m + first + count - 1 to c_m; those of an even number beyond m have the same sign on
  // both rings of a pair, their slopes the opposite one. real: of order 0, which has no imaginary part.
  template <int count, bool bracket, bool real>
  __attribute__((noinline)) static void synthesise_degrees(const Tables<T>& tables, Block block, const V* x, int m,
                                                           int first, Field<V>& field) {
    V re[count], im[count];
    unroll<count>([&](auto j) EQK_LAMBDA {
      const int l = m + first + j, zero = l * l + l;
      re[j] = x[zero + m];
      im[j] = real ? V{} : x[zero - m];
    });
    const int row = tables.count(m);
    const std::int64_t at = tables.row(m, block.half()) + block.begin * row + first;
    const T *p = tables.value.data() + at, *d = tables.slope.data() + at;
    const T degree = static_cast<T>(m);
    for (int k = block.begin; k < block.end; ++k, p += row, d += row) {
      const int north = 2 * (k - block.begin);
      V even_re{}, even_im{}, odd_re{}, odd_im{}, slope_even_re{}, slope_even_im{}, slope_odd_re{}, slope_odd_im{};
      unroll<count>([&](auto j) EQK_LAMBDA {
        (j % 2 ? odd_re : even_re) += p[j] * re[j];
        if constexpr (!real) (j % 2 ? odd_im : even_im) += p[j] * im[j];
        if constexpr (bracket) (j % 2 ? slope_odd_re : slope_even_re) += d[j] * re[j];
        if constexpr (bracket && !real) (j % 2 ? slope_odd_im : slope_even_im) += d[j] * im[j];
      });
      const auto put = [&](Polynomials<V>& to, int ring, V r, V i) EQK_LAMBDA {
        V* const c = to.ring(ring) + 2 * m;
        c[0] = first ? c[0] + r : r;
        c[1] = first ? c[1] + i : i;
      };
      const auto put_all = [&](int ring, V r, V i, V slope_r, V slope_i) EQK_LAMBDA {
        put(field.value, ring, r, i);
        if constexpr (bracket) {
          put(field.beta, ring, slope_r, slope_i);
          put(field.alpha, ring, degree * i, -degree * r);
        }
      };
      put_all(north, even_re + odd_re, even_im + odd_im, slope_even_re + slope_odd_re, slope_even_im + slope_odd_im);
      if (2 * k + 1 < block.rings)
        put_all(north + 1, even_re - odd_re, even_im - odd_im, slope_odd_re - slope_even_re,
                slope_odd_im - slope_even_im);
    }
  }

  // The product of the signals that follow s in the cyclic order x, y, g, or its tangent, in the components of s: the
  // part of the rings of the block, added to what is there or in its place.
  void form_raw(int s, int part, Block block, bool add) {
    const int a = (s + 1) % 3, b = (s + 2) % 3;
    bool added = false;
    const auto multiply = [&](int part_a, int part_b) {
      if (!value_of(a, part_a) || !value_of(b, part_b)) return;
      multiply_[s][added](field_[part_a][a], plan_.of[a].lmax, field_[part_b][b], plan_.of[b].lmax, plan_.of[s].lmax,
                          block.count(), product_.get());
      added = true;
    };
    if (part) {
      multiply(1, 0);
      multiply(0, 1);
    } else {
      multiply(0, 0);
    }
    V* const raw = raw_[part][s].get();
    if (!added) {
      if (!add) std::fill_n(raw, plan_.of[s].components(), V{});
      return;
    }
    for (const Step& step : steps_[s])
      step.analyse[add](lowered_.of[s], block, product_.get(), step.m, step.first, raw);
  }

  // Terms of the product h_m = sum over p + q = m of f_p g_q, and of the bracket
  // {f, g} = (f_beta g_alpha - f_alpha g_beta) / sin(beta), in which f_alpha has the coefficients -i p f_p: with both,
  // f_p (g_q + i p g_beta,q) spares a product. Sign of p or q -1: the conjugate of the one that is there; 0: that of
  // order 0, which is real.
  template <bool product, bool bracket>
  struct Pair {
    const V *f, *f_beta, *f_alpha, *g, *g_beta, *g_alpha;

    template <int sign_p, int sign_q>
    EQK_HD void add(int p, int q, V& re, V& im) const {
      if constexpr (bracket) multiply_add<sign_p, sign_q, 1>(f_beta + 2 * p, g_alpha + 2 * q, re, im);
      if constexpr (!product) {
        multiply_add<sign_p, sign_q, -1>(f_alpha + 2 * p, g_beta + 2 * q, re, im);
      } else if constexpr (bracket) {
        const T degree = static_cast<T>(sign_p * p);
        V sum[2];
        sum[0] = g[2 * q] - (degree * sign_q) * g_beta[2 * q + 1];
        sum[1] = sign_q * g[2 * q + 1] + degree * g_beta[2 * q];
        multiply_add<sign_p, 1, 1>(f + 2 * p, sum, re, im);
      } else {
        multiply_add<sign_p, sign_q, 1>(f + 2 * p, g + 2 * q, re, im);
      }
    }

    template <int sign_a, int sign_b, int sign>
    static EQK_HD void multiply_add(const V* a, const V* b, V& re, V& im) {
      add_to<sign>(re, a[0], b[0]);
      if constexpr (sign_a && sign_b) add_to<-sign * sign_a * sign_b>(re, a[1], b[1]);
      if constexpr (sign_b) add_to<sign * sign_b>(im, a[0], b[1]);
      if constexpr (sign_a) add_to<sign * sign_a>(im, a[1], b[0]);
    }

    template <int sign>
    static EQK_HD void add_to(V& sum, V a, V b) {
      if constexpr (sign > 0)
        sum += a * b;
      else
        sum -= a * b;
    }
  };

  template <bool product, bool bracket, bool add>
  __attribute__((noinline)) static void multiply(const Field<V>& f, int f_max, const Field<V>& g, int g_max, int h_max,
                                                 int rings, V* h) {
    const int last = std::min(h_max, f_max + g_max);
    for (int k = 0; k < rings; ++k, h += 2 * (h_max + 1)) {
      const Pair<product, bracket> pair = pair_of<product, bracket>(f, g, k);
      {  // h_0 is real: terms p and -p are conjugate
        V re{}, im{}, re0{};
        pair.template add<1, 1>(0, 0, re0, im);
        for (int p = 1; p <= std::min(f_max, g_max); ++p) pair.template add<1, -1>(p, p, re, im);
        re = re0 + 2 * re;
        h[0] = add ? h[0] + re : re;
        h[1] = V{};
      }
      for (int m = 1; m <= last; m += 2) {
        V re0{}, im0{}, re1{}, im1{};
        for (int p = std::max(0, m - g_max); p <= std::min(f_max, m); ++p) {
          pair.template add<1, 1>(p, m - p, re0, im0);
          pair.template add<1, 1>(p, m + 1 - p, re1, im1);
        }
        if (m < f_max) pair.template add<1, 1>(m + 1, 0, re1, im1);
        for (int q = 1; q <= std::min(g_max, f_max - m); ++q) {
          pair.template add<1, -1>(m + q, q, re0, im0);
          pair.template add<1, -1>(m + 1 + q, q, re1, im1);
        }
        for (int p = 1; p <= std::min(f_max, g_max - m); ++p) {
          pair.template add<-1, 1>(p, m + p, re0, im0);
          pair.template add<-1, 1>(p, m + 1 + p, re1, im1);
        }
        store<add>(h, m, re0, im0);
        if (m < last) store<add>(h, m + 1, re1, im1);
      }
      for (int m = last + 1; m <= h_max; ++m) h[2 * m] = h[2 * m + 1] = V{};
    }
  }

  // The product of degrees that are known: no loops.
  template <bool add, int F, int G, int H>
  __attribute__((noinline)) static void multiply_few(const Field<V>& f, int, const Field<V>& g, int, int, int rings,
                                                     V* h) {
    for (int k = 0; k < rings; ++k, h += 2 * (H + 1)) {
      const Pair<true, false> pair = pair_of<true, false>(f, g, k);
      unroll<H + 1>([&](auto m) EQK_LAMBDA {
        V re{}, im{}, re0{};
        unroll<2 * F + 1>([&](auto i) EQK_LAMBDA {
          constexpr int p = i - F, q = m - p;
          if constexpr (m == 0 && p == 0)
            pair.template add<0, 0>(0, 0, re0, im);
          else if constexpr (-G <= q && q <= G && (m || p > 0))
            pair.template add<sign_of(p), sign_of(q)>(std::abs(p), std::abs(q), re, im);
        });
        if constexpr (m == 0)
          store<add>(h, 0, re0 + 2 * re, V{});
        else
          store<add>(h, m, re, im);
      });
    }
  }

  static constexpr int sign_of(int n) { return (n > 0) - (n < 0); }

  // multiply, or multiply_few where loops would take longer than what they do.
  template <bool product, bool bracket, bool add>
  Multiply multiplication(int s) const {
    Multiply chosen = &multiply<product, bracket, add>;
    if constexpr (!bracket) {
      const std::array<int, 3> degrees{plan_.of[(s + 1) % 3].lmax, plan_.of[(s + 2) % 3].lmax, plan_.of[s].lmax};
      const auto offer = [&]<int F, int G, int H>() {
        if (degrees == std::array{F, G, H}) chosen = &multiply_few<add, F, G, H>;
      };
      unroll<8>([&](auto n) { offer.template operator()<1 + n % 2, 1 + n / 2 % 2, 1 + n / 4>(); });
      offer.template operator()<2, 2, 4>();
      offer.template operator()<2, 4, 2>();
      offer.template operator()<4, 2, 2>();
    }
    return chosen;
  }

  template <bool product, bool bracket>
  static EQK_HD Pair<product, bracket> pair_of(const Field<V>& f, const Field<V>& g, int ring) {
    Pair<product, bracket> pair{f.value.ring(ring), nullptr, nullptr, g.value.ring(ring), nullptr, nullptr};
    if constexpr (bracket)
      pair = {pair.f, f.beta.ring(ring), f.alpha.ring(ring), pair.g, g.beta.ring(ring), g.alpha.ring(ring)};
    return pair;
  }

  template <bool add>
  static EQK_HD void store(V* h, int m, V re, V im) {
    h[2 * m] = add ? h[2 * m] + re : re;
    h[2 * m + 1] = add ? h[2 * m + 1] + im : im;
  }

  template <int count, bool add, bool real>
  __attribute__((noinline)) static void analyse_degrees(const Tables<T>& tables, Block block, const V* h, int m,
                                                        int first, V* z) {
    V re[count]{}, im[count]{};
    const int row = tables.count(m), next = 2 * (tables.lmax + 1);
    const T* q = tables.analysis.data() + tables.row(m, block.half()) + block.begin * row + first;
    const V* c = h + 2 * m;
    for (int k = block.begin; k < block.end; ++k, q += row, c += 2 * next) {
      V even_re = c[0], even_im = c[1], odd_re = c[0], odd_im = c[1];
      if (2 * k + 1 < block.rings) {
        even_re += c[next], even_im += c[next + 1];
        odd_re -= c[next], odd_im -= c[next + 1];
      }
      unroll<count>([&](auto j) EQK_LAMBDA {
        re[j] += q[j] * (j % 2 ? odd_re : even_re);
        if constexpr (!real) im[j] += q[j] * (j % 2 ? odd_im : even_im);
      });
    }
    unroll<count>([&](auto j) EQK_LAMBDA {
      const int l = m + first + j, zero = l * l + l;
      z[zero + m] = add ? z[zero + m] + re[j] : re[j];
      if constexpr (!real) z[zero - m] = add ? z[zero - m] + im[j] : im[j];
    });
  }
};

}  // namespace EQK_ISA
}  // namespace eqk::gaunt_product
