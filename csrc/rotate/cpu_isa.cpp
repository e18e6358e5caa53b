// Compiled once per instruction set with EQK_ISA, EQK_VECTOR_BYTES and EQK_UNROLLED set by the build.
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "core/arena.h"
#include "core/cpu_sums.h"
#include "core/interleave.h"
#include "core/lanes.h"
#include "core/plan.h"
#include "core/prefetch.h"
#include "rotate/problem.h"

namespace eqk::rotate {
inline namespace EQK_ISA {

// SIMD lanes are channels. Edge by edge and degree by degree: vectors of the 2 l + 1 components are in registers while
// the rows of an edge come and go.
template <class T, class Storage>
class EdgeFrames {
  static constexpr int W = EQK_VECTOR_BYTES / sizeof(T);
  static constexpr int kUnrolledDegree = EQK_UNROLLED ? 6 : 0, kRegisters = EQK_VECTOR_BYTES == 64 ? 32 : 16;
  using V = Vector<T, W>;

 public:
  explicit EdgeFrames(const Problem& problem)
      : p_(problem), f_(problem.frame), of_edge_(problem.nodes_of_edge * problem.channels), width_(problem.width()) {
    direct_ = width_ == 1 && std::is_same_v<T, Storage>;
    T* sums = nullptr;
    memory_ = arena_memory([&](Arena& a) {
      d_ = a.template take<T>(f_.numbers);
      weights_ = a.template take<T>(direct_ || !p_.in[kWeights] ? 0 : p_.groups * of_edge_);
      lanes_ = a.template take<V>(p_.missing == kD ? f_.numbers + W : 0);
      products_ = a.template take<T>(!direct_ && p_.missing == kWeights ? p_.groups * of_edge_ : 0);
      sums = a.template take<T>(p_.missing == kX ? 3 * size_of_node() : 0);
    });
    if (sums) node_ = {sums, size_of_node()};
    streams_ = std::is_same_v<T, Storage> && p_.missing == kZ && p_.channels % W == 0 &&
               reinterpret_cast<std::uintptr_t>(p_.out) % sizeof(V) == 0 &&
               p_.edges * f_.rows * of_edge_ * static_cast<std::int64_t>(sizeof(T)) >= kStreamBytes;
  }

  void run(std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n) {
      switch (p_.missing) {
        case kX:
          sum_node(n);
          break;
        case kD:
          sum_products(n);
          break;
        case kWeights:
          sum_groups(n);
          break;
        case kZ:
          rotate_edge(n);
      }
    }
    if (streams_) stream_fence();
  }

 private:
  const Problem& p_;
  const Frame& f_;
  std::int64_t of_edge_, width_;  // K C; channels of a weight
  AlignedArray<std::byte> memory_;
  T *d_, *weights_, *products_;
  V* lanes_;
  Sum<T> node_;
  bool direct_;   // weights are in memory as they are used
  bool streams_;  // results go past the caches

  std::int64_t size_of_node() const { return f_.components * p_.channels; }
  const Storage* in(Slot slot) const { return static_cast<const Storage*>(p_.in[slot]); }
  Storage* out() const { return static_cast<Storage*>(p_.out); }

  const Storage* x_of(std::int64_t e, std::int64_t k, int l) const {
    const std::int64_t node = p_.index ? p_.index[k * p_.edges + e] : e;
    return in(kX) + node * size_of_node() + l * l * p_.channels;
  }
  const Storage* z_of(std::int64_t e, std::int64_t k) const {
    return in(kZ) + e * f_.rows * of_edge_ + k * p_.channels;
  }

  // f(2 l + 1), a constant for degrees that are unrolled.
  template <class F>
  static EQK_HD void with_components(int l, const F& f) {
    if (l > kUnrolledDegree) return f(2 * l + 1);
    unroll<kUnrolledDegree + 1>([&](auto degree) EQK_LAMBDA {
      if (l == degree) f(constant<2 * degree + 1>{});
    });
  }
  template <class Components>
  static constexpr int most() {
    if constexpr (std::is_same_v<Components, int>)
      return 2 * kMaxDegree + 1;
    else
      return Components::value;
  }

  // f(lanes, first channel) of vectors of channels: all lanes but in the last one.
  template <class F>
  EQK_HD void for_channels(const F& f) const {
    std::int64_t c = 0;
    for (; c + W <= p_.channels; c += W) f(constant<W>{}, c);
    if (c < p_.channels) f(p_.channels - c, c);
  }

  // The numbers of D of an edge, scaled.
  const T* take_d(std::int64_t e) {
    const Storage* const from = in(kD) + e * f_.numbers;
    for (const Block& b : f_.blocks)
      for (std::int64_t q = b.first; q < b.end(); ++q) d_[q] = from_storage<T>(from[q]) * static_cast<T>(b.scale);
    return d_;
  }

  // [groups, K C], or null.
  const T* weights_of(std::int64_t e) {
    if (!p_.in[kWeights]) return nullptr;
    const std::int64_t count = p_.groups * p_.columns;
    const Storage* const from = in(kWeights) + e * count;
    if constexpr (std::is_same_v<T, Storage>)
      if (direct_) return from;
    T* to = weights_;
    for (std::int64_t q = 0; q < count; ++q, to += width_) std::fill_n(to, width_, from_storage<T>(from[q]));
    return weights_;
  }

  // How far from what an edge has in z and in weights that is which comes next. It is asked for vector by vector, into
  // the second-level cache, since rows come in no order that the machine would foresee, and edges of a node lie
  // anywhere.
  struct Ahead {
    std::int64_t z, weights;
  };
  Ahead next(std::int64_t edges, std::int64_t nodes) const {
    const std::int64_t channels = nodes * p_.channels;
    return {edges * f_.rows * of_edge_ + channels, direct_ ? edges * p_.groups * of_edge_ + channels : 0};
  }
  template <class U>
  static EQK_HD const U* with_next(const U* p, std::int64_t ahead) {
    prefetch(p + ahead);
    return p;
  }

  // A row of z times its weights.
  template <class Lanes>
  EQK_HD V weighted(const Storage* z, const T* weights, Lanes lanes, const Ahead& ahead) const {
    const V v = load_n<T, W>(with_next(z, ahead.z), lanes);
    return weights ? v * load_n<T, W>(with_next(weights, ahead.weights), lanes) : v;
  }

  // store(row, vector, lanes, first of K C channels) of the rows of D x. A copy of it, and whatever else is read in the
  // loop, is in registers: for all that the compiler knows, vectors are stored to where it is in memory.
  template <class Store>
  EQK_HD void rotate_block(const Block& b, std::int64_t e, const T* d, const Store& store) const {
    with_components(b.l, [&](auto components) EQK_LAMBDA {
      const Store put = store;
      const Row *const first = b.rows.data(), *const end = first + b.rows.size();
      const T* const numbers = d + b.first;
      const std::int64_t channels = p_.channels;
      for (std::int64_t k = 0; k < p_.nodes_of_edge; ++k) {
        const Storage* const x = x_of(e, k, b.l);
        for_channels([&](auto lanes, std::int64_t c) EQK_LAMBDA {
          V v[most<decltype(components)>()];
          for (int m = 0; m < components; ++m) v[m] = load_n<T, W>(x + m * channels + c, lanes);
          const T* number = numbers;
          for (const Row* row = first; row != end; ++row, number += components) {
            V sums[2] = {number[0] * v[0], V{}};  // two, so that an addition need not wait for the one before
            for (int m = 1; m < components; ++m) sums[m % 2] += number[m] * v[m];
            put(*row, sums[0] + sums[1], lanes, k * channels + c);
          }
        });
      }
    });
  }

  void rotate_edge(std::int64_t e) {
    const T *const d = take_d(e), *const weights = weights_of(e);
    const Ahead ahead = next(1, 0);
    Storage* const z = out() + e * f_.rows * of_edge_;
    const auto store = [z, weights, ahead, streams = streams_](const Row& row, V v, auto lanes, std::int64_t c)
                           EQK_LAMBDA {
                             if (weights) v *= load_n<T, W>(with_next(weights + row.weights + c, ahead.weights), lanes);
                             if constexpr (std::is_same_v<T, Storage>)
                               if (streams) return stream<T, W>(z + row.z + c, v);
                             store_n<T, W>(z + row.z + c, v, lanes);
                           };
    for (const Block& b : f_.blocks) rotate_block(b, e, d, store);
  }

  void sum_groups(std::int64_t e) {
    const T* const d = take_d(e);
    const Ahead ahead = next(1, 0);
    const Storage* const z = z_of(e, 0);
    const std::int64_t count = p_.groups * p_.columns;
    Storage* const to = out() + e * count;
    T* products = products_;
    if constexpr (std::is_same_v<T, Storage>)
      if (direct_) products = to;
    std::fill_n(products, p_.groups * of_edge_, T{});
    const auto add = [z, products, ahead](const Row& row, V v, auto lanes, std::int64_t c) EQK_LAMBDA {
      T* const sum = products + row.weights + c;
      v *= load_n<T, W>(with_next(z + row.z + c, ahead.z), lanes);
      store_n<T, W>(sum, load_n<T, W>(sum, lanes) + v, lanes);
    };
    for (const Block& b : f_.blocks) rotate_block(b, e, d, add);
    if (direct_) return;
    for (std::int64_t q = 0; q < count; ++q) {
      V lanes{};
      for (std::int64_t c = 0; c < width_; c += W)
        lanes += load_n<T, W>(products + q * width_ + c, std::min<std::int64_t>(W, width_ - c));
      T sum = lanes[0];
      for (int i = 1; i < W; ++i) sum += lanes[i];
      to[q] = as_storage<Storage>(sum);
    }
  }

  void sum_products(std::int64_t e) {
    const T* const weights = weights_of(e);
    for (const Block& b : f_.blocks)
      with_components(b.l, [&](auto components) EQK_LAMBDA {
        constexpr std::size_t kTogether = 2 * most<decltype(components)>() + 4 <= kRegisters ? 2 : 1;
        std::size_t r = 0;
        for (; r + kTogether <= b.rows.size(); r += kTogether) multiply_rows<kTogether>(b, components, r, e, weights);
        if (r < b.rows.size()) multiply_rows<1>(b, components, r, e, weights);
      });
    T* const sums = d_;
    reduce_lanes<T>(lanes_, f_.numbers, sums);
    Storage* const to = out() + e * f_.numbers;
    for (const Block& b : f_.blocks)
      for (std::int64_t q = b.first; q < b.end(); ++q) to[q] = as_storage<Storage>(sums[q] * static_cast<T>(b.scale));
  }

  // Of rows [r, r + Rows) of a block, products with each component, summed over vectors of channels.
  template <int Rows, class Components>
  EQK_HD void multiply_rows(const Block& b, Components components, std::size_t r, std::int64_t e, const T* weights) {
    const Ahead ahead = next(1, 0);
    const std::int64_t channels = p_.channels;
    V sums[Rows][most<decltype(components)>()];
    unroll<Rows>([&](auto i) EQK_LAMBDA {
      for (int m = 0; m < components; ++m) sums[i][m] = V{};
    });
    for (std::int64_t k = 0; k < p_.nodes_of_edge; ++k) {
      const Storage *const x = x_of(e, k, b.l), *z[Rows];
      const T* w[Rows];
      unroll<Rows>([&](auto i) EQK_LAMBDA {
        z[i] = z_of(e, k) + b.rows[r + i].z;
        w[i] = weights ? weights + b.rows[r + i].weights + k * channels : nullptr;
      });
      for_channels([&](auto lanes, std::int64_t c) EQK_LAMBDA {
        V g[Rows];
        EQK_UNROLL for (int i = 0; i < Rows; ++i) g[i] = weighted(z[i] + c, weights ? w[i] + c : nullptr, lanes, ahead);
        for (int m = 0; m < components; ++m) {
          const V v = load_n<T, W>(x + m * channels + c, lanes);
          EQK_UNROLL for (int i = 0; i < Rows; ++i) sums[i][m] += g[i] * v;
        }
      });
    }
    V* const to = lanes_ + b.first + r * components;
    unroll<Rows>([&](auto i) EQK_LAMBDA {
      for (int m = 0; m < components; ++m) to[i * components + m] = sums[i][m];
    });
  }

  void sum_node(std::int64_t node) {
    node_.start();
    if (p_.ends) {
      for (std::int64_t n = p_.ends->row[node]; n < p_.ends->row[node + 1]; ++n) {
        const std::int64_t next = p_.ends->edge[std::min(n + 1, p_.ends->count - 1)];
        const std::int64_t e = p_.ends->edge[n] % p_.edges, k = p_.ends->edge[n] / p_.edges;
        add_edge(e, k, next % p_.edges - e, next / p_.edges - k);
      }
    } else {
      add_edge(node, 0, 1, 0);
    }
    const T* const sum = node_.total();
    Storage* const to = out() + node * size_of_node();
    for (std::int64_t q = 0; q < size_of_node(); ++q) to[q] = as_storage<Storage>(sum[q]);
  }

  // Adds what the k-th node of an edge gets; the next edge and node are `edges` and `nodes` further.
  void add_edge(std::int64_t e, std::int64_t k, std::int64_t edges, std::int64_t nodes) {
    const Ahead ahead = next(edges, nodes);
    const T *const d = take_d(e), *const weights = weights_of(e);
    const Storage* const z = z_of(e, k);
    const std::int64_t channels = p_.channels, first_channel = k * channels;
    for (const Block& b : f_.blocks)
      with_components(b.l, [&](auto components) EQK_LAMBDA {
        T* const to = node_.few() + b.l * b.l * channels;
        const Row *const first = b.rows.data(), *const end = first + b.rows.size();
        for_channels([&](auto lanes, std::int64_t c) EQK_LAMBDA {
          V sums[most<decltype(components)>()];
          for (int m = 0; m < components; ++m) sums[m] = load_n<T, W>(to + m * channels + c, lanes);
          const T* number = d + b.first;
          for (const Row* row = first; row != end; ++row, number += components) {
            const T* const w = weights ? weights + row->weights + first_channel + c : nullptr;
            const V v = weighted(z + row->z + c, w, lanes, ahead);
            for (int m = 0; m < components; ++m) sums[m] += number[m] * v;
          }
          for (int m = 0; m < components; ++m) store_n<T, W>(to + m * channels + c, sums[m], lanes);
        });
      });
    node_.added(1);
  }
};

static void kernel(const Problem& problem, std::int64_t begin, std::int64_t end) {
  with_types(problem.dtype,
             [&]<class T, class Storage>(T, Storage) { EdgeFrames<T, Storage>(problem).run(begin, end); });
}

}  // namespace EQK_ISA

#define EQK_JOIN(a, b) a##b
#define EQK_NAME(isa) EQK_JOIN(kernel_of_, isa)
Kernel EQK_NAME(EQK_ISA)() { return kernel; }

}  // namespace eqk::rotate
