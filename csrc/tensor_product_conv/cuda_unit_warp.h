#pragma once
// What the warps of a unit share in every kernel: the loop over edges, with the rows of x on their way through shared
// memory, M of the edges and their weights.
#include "core/cuda_pack.h"
#include "core/scalar.h"
#include "tensor_product_conv/cuda_units.h"

namespace eqk::tensor_product_conv {

// From global to shared memory, past the registers, if `present`.
template <int kBytes, class T>
__device__ __forceinline__ void copy_async(bool present, T* to, const T* from) {
  const auto at = static_cast<std::uint32_t>(__cvta_generic_to_shared(to));
  const std::uint32_t wanted = present;
  if constexpr (kBytes == 16)
    asm volatile("{.reg .pred p;\n setp.ne.u32 p, %2, 0;\n @p cp.async.cg.shared.global [%0], [%1], 16;}" ::"r"(at),
                 "l"(from), "r"(wanted)
                 : "memory");
  else
    asm volatile("{.reg .pred p;\n setp.ne.u32 p, %2, 0;\n @p cp.async.ca.shared.global [%0], [%1], %3;}" ::"r"(at),
                 "l"(from), "r"(wanted), "n"(kBytes)
                 : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }

// A row of `stride` bytes, in one instruction, which the compiler would take apart.
template <class T>
__device__ __forceinline__ T* row_of(T* base, std::int32_t row, std::int32_t stride) {
  T* result;
  asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(result) : "r"(row), "r"(stride), "l"(base));
  return result;
}

// Pairs of a path are sorted by i: whether one is the first of its i.
template <class C, int pair>
__device__ __forceinline__ constexpr bool starts_i() {
  return pair == 0 || C::pair_i[pair - (pair > 0)] != C::pair_i[pair];
}

// Or the last.
template <class C, int pair>
__device__ __forceinline__ constexpr bool ends_i() {
  return pair == C::pairs - 1 || C::pair_i[pair + (pair < C::pairs - 1)] != C::pair_i[pair];
}

// Whether a pair is the first of its k.
template <class C, int pair>
__device__ __forceinline__ constexpr bool starts_k() {
  for (int p = 0; p < pair; ++p)
    if (C::pair_k[p] == C::pair_k[pair]) return false;
  return true;
}

// Where a warp works: destination, unit, slice of channels.
struct Place {
  const XRecord& x;
  const UnitRecord& unit;
  int warp, destination, first_channel;
};

template <class T, int kChannels, bool kDual, class U>
class UnitWarp {
 public:
  static constexpr int N = kChannels, D1 = U::D1, kParts = kDual ? 2 : 1;
  using S = std::conditional_t<kDual, Dual<T>, T>;
  static constexpr int kXStep = 32 * N * D1;  // of the staged rows of a step, and between the lanes N D1

  __device__ __forceinline__ UnitWarp(const UnitArguments& a, const Place& at, T* x_stage, T* own)
      : at_(at),
        unit_(at.unit),
        x_(a.in[kX]),
        y_(a.in[kY]),
        w_(a.in[kW]),
        edge_(a.edge),
        src_(a.src),
        x_mul_ir_(a.x_mul_ir),
        x_vectors_(a.x_vectors),
        w_vectors_(a.w_vectors),
        mul_(at.x.mul),
        first_channel_(at.first_channel),
        warp_(at.warp),
        lane_(static_cast<int>(threadIdx.x) % 32),
        log_lanes_(at.x.log_lanes),
        edges_at_once_(32 >> log_lanes_),
        turn_(lane_ >> log_lanes_),
        channel_(static_cast<unsigned>(at.first_channel + (lane_ & ((1 << log_lanes_) - 1)) * N)),
        x_stage_(x_stage),
        m_(own) {}

 protected:
  const Place& at_;
  const UnitRecord& unit_;
  const Rows &x_, &y_, &w_;
  const std::int32_t *const edge_, *const src_;
  const int x_mul_ir_, x_vectors_, w_vectors_, mul_, first_channel_;
  const int warp_, lane_, log_lanes_;
  const int edges_at_once_;  // those that share the warp
  const int turn_;           // which of them is the lane's
  const unsigned channel_;   // the lane's first; unsigned, so that pointers take no register for its sign
  T *const x_stage_, *const m_;

  __device__ __forceinline__ bool has(int q) const { return unit_.slots >> q & 1; }
  // Channels of the warp.
  __device__ __forceinline__ int slice() const { return min(N << opaque(log_lanes_), mul_ - first_channel_); }
  __device__ __forceinline__ bool has_channels() const { return static_cast<int>(channel_) < mul_; }

  // The block copies rows of x from edge t of the `count` on, of a tile's steps, into buffer 0 or 1. A warp copies all
  // edges of a step, so that other warps neither read nor compute where its rows are.
  __device__ __forceinline__ void copy_x(int first_place, int count, int t, int buffer) const {
    static_assert(kStepsOfTile == 2);
    const int warps = static_cast<int>(blockDim.x) / 32;
#pragma unroll 1
    for (int step = warp_; step < kStepsOfTile; step += warps) {
      const int n = t + step * edges_at_once_ + turn_;
      const bool present = n < count;
      const int source = src_[first_place + min(n, count - 1)];
      // Computed here, since the loops over edges have no register to keep it.
      const auto column = static_cast<unsigned>(at_.x.column + opaque(first_channel_) * (x_mul_ir_ ? D1 : 1));
      T* const to = x_stage_ + (buffer * kStepsOfTile + step) * kXStep + (turn_ * N * D1 << log_lanes_);
      copy_row(present, to, row_of(static_cast<const T*>(x_.value) + column, source, x_.stride));
      if constexpr (kDual)
        if (x_.tangent)
          copy_row(present, to + 2 * kStepsOfTile * kXStep,
                   row_of(static_cast<const T*>(x_.tangent) + column, source, x_.tangent_stride));
    }
    commit_copies();
  }

  // Before all else: zeros where no channels of x will be, and for a tangent of x that is missing.
  __device__ __forceinline__ void clear_x() const {
    const bool all = slice() % N != 0;
    if (!all && (!kDual || x_.tangent)) return;
    for (int n = threadIdx.x; n < kParts * 2 * kStepsOfTile * kXStep; n += blockDim.x)
      if (all || n >= 2 * kStepsOfTile * kXStep) x_stage_[n] = 0;
  }

  // Calls f(edge's number, step) for the `count` edges from a place on, as many at a time as share the warp, where
  // their M and, of the first tile already under way, the rows of x are there; tile(number) at the start of each tile,
  // when all warps have left the one before. kCoefficients: as in form_m.
  template <bool kCoefficients, class Tile, class F>
  __device__ __forceinline__ void over_edges(int first_place, int count, Tile&& tile, F&& f) const {
    unsigned step = 0;
#pragma unroll 1
    for (int t = 0; t < count; t += edges_at_once_, ++step) {
      if (static_cast<unsigned>(t) % kEdgesOfM == 0) form_m<kCoefficients>(first_place + t, min(kEdgesOfM, count - t));
      if (step % kStepsOfTile == 0) {
        wait_for_copies();
        __syncthreads();  // x has arrived for all warps, and nobody reads the other buffer
        const int next = t + kStepsOfTile * edges_at_once_;
        if (next < count) copy_x(first_place, count, next, (step / kStepsOfTile + 1) % 2);
        tile(t);
      }
      f(t, step);
    }
  }

  // The lane's channels of x in a step, [channel][component].
  __device__ __forceinline__ void read_x(unsigned step, int part, T (&x)[D1 * N]) const {
    const T* const from =
        x_stage_ + part * 2 * kStepsOfTile * kXStep + step % (2 * kStepsOfTile) * kXStep + lane_ * (N * D1);
#pragma unroll
    for (int n = 0; n < D1; ++n) {
      Pack<T, N> pack;
      pack.load_shared(from + n * N);
#pragma unroll
      for (int c = 0; c < N; ++c) x[n * N + c] = pack.template get<T>(c);
    }
  }

  // M of `count` edges, at most kEdgesOfM, from a place on; a lane forms that of one edge. kCoefficients: times those
  // of paths.
  template <bool kCoefficients>
  __device__ __forceinline__ void form_m(int first_place, int count) const {
    const int lane = opaque(lane_);  // else the places of all numbers would be held in registers
    T* const y = m_ + kParts * kEdgesOfM * U::m_stride;
    const int mine = lane < count ? edge_[first_place + lane] : 0;
    // So many lanes have an edge, each a component of y.
    constexpr int kLanes = U::y_size <= 4 ? 4 : U::y_size <= 8 ? 8 : 16, kAtOnce = 32 / kLanes;
    const int component = lane % kLanes, of_lanes = lane / kLanes;
    int column = -1;
    eqk::unroll<U::last_l2 - U::first_l2 + 1>([&](auto segment) EQK_LAMBDA {
      constexpr int before = U::y_columns(U::first_l2 + decltype(segment)::value);
      if (component >= before) column = unit_.y[segment] < 0 ? -1 : unit_.y[segment] + component - before;
    });
    __syncwarp();  // nobody reads the M before
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const T* const base = static_cast<const T*>(part ? y_.tangent : y_.value);
      const std::int32_t stride = part ? y_.tangent_stride : y_.stride;
      const bool present = base && column >= 0;
      T* const to = y + (part * kEdgesOfM + of_lanes) * U::y_stride + component;
#pragma unroll
      for (int n = 0; n < kEdgesOfM; n += kAtOnce) {
        if (n >= count) break;
        const std::int32_t row = __shfl_sync(~0u, mine, n + of_lanes);
        if (n + of_lanes < count && component < U::y_size)
          to[n * U::y_stride] = present ? *row_of(base + column, row, stride) : T{0};
      }
    }
    __syncwarp();
    const int part = lane / kEdgesOfM, e = lane % kEdgesOfM;
    if (e < count && part < kParts) {
      T components[U::y_size];
#pragma unroll
      for (int j = 0; j < U::y_size; ++j) components[j] = y[lane * U::y_stride + j];
      T* const to = m_ + lane * U::m_stride;
      eqk::unroll<U::count>([&](auto slot) EQK_LAMBDA {
        constexpr int q = decltype(slot)::value;
        using C = typename U::template C<q>;
        if (!has(q)) return;
        const T coefficient = kCoefficients ? unit_.coefficient[q] : 1.f;
        eqk::unroll<(C::pairs + 3) / 4>([&](auto four) EQK_LAMBDA {
          Pack<T, 4> pack;
          eqk::unroll<4>([&](auto r) EQK_LAMBDA {
            constexpr int pair = 4 * decltype(four)::value + decltype(r)::value;
            T sum = 0;
            if constexpr (pair < C::pairs)
              eqk::unroll<C::pair_terms[pair + 1] - C::pair_terms[pair]>([&](auto n) EQK_LAMBDA {
                constexpr int term = C::pair_terms[pair] + decltype(n)::value,
                              column = U::y_columns(C::l2) + C::term_j[term];
                constexpr T c = static_cast<T>(C::term_c[term]);
                sum += c * components[column];
              });
            pack.set(decltype(r)::value, coefficient * sum);
          });
          pack.store_shared(to + U::template numbers<q>() + 4 * decltype(four)::value);
        });
      });
    }
    __syncwarp();
  }

  // The weights of an edge, from a column on.
  struct WeightRow {
    const T* of[kParts];
    __device__ __forceinline__ WeightRow(const UnitWarp& warp, int edge, unsigned column) {
      of[0] = row_of(static_cast<const T*>(warp.w_.value) + column, edge, warp.w_.stride);
      if constexpr (kDual)
        of[1] = row_of(static_cast<const T*>(warp.w_.tangent) + column, edge, warp.w_.tangent_stride);
    }
  };
  using Weights = Pack<T, N>[kParts];

  // Those of a slot, `column` behind its first one, unless `wanted` is zero.
  template <int q>
  __device__ __forceinline__ void load_weights(const WeightRow& row, unsigned column, std::uint32_t wanted,
                                               Weights& weights) const {
#pragma unroll
    for (int part = 0; part < kParts; ++part) weights[part].load_if(wanted, row.of[part] + (unit_.weight[q] + column));
  }

  // One by one; those of a path without weights are 1.
  template <int q>
  __device__ __forceinline__ void load_elements_of_weights(const WeightRow& row, unsigned column,
                                                           Weights& weights) const {
    const int left = opaque(mul_) - static_cast<int>(channel_);
    const bool weighted = unit_.weighted >> q & 1;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const bool given = weighted && (!part || w_.tangent);
      const T* const from = row.of[part] + (unit_.weight[q] + column);
#pragma unroll
      for (int c = 0; c < N; ++c) {
        const bool present = c < left;
        weights[part].set(c, !present ? T{0} : given ? from[c] : part ? T{0} : T{1});
      }
    }
  }

  __device__ __forceinline__ static S weight(const Weights& weights, int c) {
    if constexpr (kDual)
      return {weights[0].template get<T>(c), weights[1].template get<T>(c)};
    else
      return weights[0].template get<T>(c);
  }

  // Component i of x in channel c.
  __device__ __forceinline__ static S x_at(const T (&x)[kParts][D1 * N], int c, int i) {
    if constexpr (kDual)
      return {x[0][c * D1 + i], x[1][c * D1 + i]};
    else
      return x[0][c * D1 + i];
  }

  // Calls f(pair, M of the pair) over the nonzero pairs of a slot, for the edge that is so far behind the first one of
  // which there is M.
  template <int q, class F>
  __device__ __forceinline__ void for_pairs(int edge_of_m, F&& f) const {
    using C = typename U::template C<q>;
    const auto* const m = reinterpret_cast<const Four<T>*>(m_ + edge_of_m * U::m_stride + U::template numbers<q>());
    eqk::unroll<(C::pairs + 3) / 4>([&](auto four) EQK_LAMBDA {
      const Four<T> v = m[four];
      Four<T> t;
      if constexpr (kDual) t = m[kEdgesOfM * U::m_stride / 4 + four];
      eqk::unroll<4>([&](auto r) EQK_LAMBDA {
        constexpr int pair = 4 * decltype(four)::value + decltype(r)::value;
        if constexpr (pair < C::pairs) {
          if constexpr (kDual)
            f(constant<pair>{}, S{v.s[r], t.s[r]});
          else
            f(constant<pair>{}, v.s[r]);
        }
      });
    });
  }

  // Sums of outputs, through the warp's own memory, so that whole sectors are written. kCoefficients: times those of
  // paths; add: to what is there.
  template <bool kCoefficients>
  __device__ __forceinline__ void store(const UnitArguments& a, int destination,
                                        const T (&sums)[U::components(U::count)][N], bool add) const {
    const auto write_staged = [&](std::uint32_t column, int D) EQK_LAMBDA {
      __syncwarp();
      // Edges that shared the warp have sums of their own.
      const std::uint32_t apart = N * D << opaque(log_lanes_);
      write(
          a, destination, column, D, add,
          [&](int n) EQK_LAMBDA {
            Pack<T, N> sum;
            const T* of_turn = m_ + n;
            sum.load_shared(of_turn);
#pragma unroll 1
            for (int turn = 1; turn < edges_at_once_; ++turn) {
              Pack<T, N> other;
              other.load_shared(of_turn += apart);
              sum.template add<T>(other);
            }
            return sum;
          },
          [&](int n) EQK_LAMBDA {
            T sum = m_[n];
#pragma unroll 1
            for (int turn = 1; turn < edges_at_once_; ++turn) sum += m_[turn * apart + n];
            return sum;
          });
    };
    // On duals a loop over slots, since registers lack for what the compiler would hold of all of them.
#pragma unroll 1
    for (int n = 0; n < (kDual ? U::count : 1); ++n) {
      int of_loop = 0;
      eqk::unroll<U::count>([&](auto slot) EQK_LAMBDA {
        constexpr int q = decltype(slot)::value, D = 2 * U::kOf.l3[q] + 1, first = U::components(q);
        if (!has(q) || (kDual && q != n)) return;
        T* const own = m_ + opaque(lane_) * (N * D);
        __syncwarp();
#pragma unroll
        for (int k = 0; k < D; ++k) {
          Pack<T, N> pack;
#pragma unroll
          for (int c = 0; c < N; ++c) {
            const T sum = sums[first + (k * N + c) % D][(k * N + c) / D];
            pack.set(c, kCoefficients ? unit_.coefficient[q] * sum : sum);
          }
          pack.store_shared(own + k * N);
        }
        if constexpr (kDual)
          of_loop = D;
        else
          write_staged(unit_.out[q], D);
      });
      if (of_loop > 0) write_staged(unit_.out[n], of_loop);
    }
    __syncwarp();
  }

  // To the outputs of a destination without edges.
  __device__ __forceinline__ void store_zeros(const UnitArguments& a, int destination) const {
    // A loop over slots, for the size of the code.
#pragma unroll 1
    for (int slot = 0; slot < U::count; ++slot) {
      if (!has(slot)) continue;
      int D = 0;
      eqk::unroll<U::count>([&](auto known) EQK_LAMBDA {
        if (known == slot) D = 2 * U::kOf.l3[known] + 1;
      });
      write(
          a, destination, unit_.out[slot], D, false,
          [](int) EQK_LAMBDA {
            Pack<T, N> zeros;
#pragma unroll
            for (int c = 0; c < N; ++c) zeros.set(c, T{0});
            return zeros;
          },
          [](int) EQK_LAMBDA { return T{0}; });
    }
  }

 private:
  // The outputs of a slot, of D components: a pack from number n on of those of the warp's channels,
  // [channel][component], or one.
  template <class PackAt, class ElementAt>
  __device__ __forceinline__ void write(const UnitArguments& a, int destination, std::uint32_t column, int D, bool add,
                                        PackAt&& pack_at, ElementAt&& element_at) const {
    const int lane = opaque(lane_), slice = this->slice();
    T* to = static_cast<T*>(a.out) + destination * a.out_stride + column;
    if (a.out_vectors) {
      to += opaque(first_channel_) * D;
#pragma unroll 1
      for (int n = lane * N; n < slice * D; n += 32 * N) {
        Pack<T, N> pack = pack_at(n);
        if (add) {
          Pack<T, N> before;
          before.load(to + n);
          pack.template add<T>(before);
        }
        pack.store(to + n);
      }
    } else {
      const int of_channel = a.out_mul_ir ? D : 1, of_component = a.out_mul_ir ? 1 : opaque(mul_);
      to += first_channel_ * of_channel;
#pragma unroll 1
      for (int k = 0; k < D; ++k, to += of_component)
#pragma unroll 1
        for (int c = lane; c < slice; c += 32) {
          T& element = to[c * of_channel];
          element = element_at(c * D + k) + (add ? element : T{0});
        }
    }
  }

  // The lanes that share an edge copy its row.
  __device__ __forceinline__ void copy_row(bool present, T* to, const T* from) const {
    const int lanes = 1 << opaque(log_lanes_), lane = opaque(lane_) & (lanes - 1), slice = this->slice();
    if (x_vectors_) {
      constexpr int kVector = 16 / sizeof(T);
      int n = lane * kVector;
      const int apart = kVector * lanes;
      to += n, from += n;
#pragma unroll
      for (int k = 0; k < (N * D1 + kVector - 1) / kVector; ++k, n += apart, to += apart, from += apart)
        copy_async<kVector * sizeof(T)>(present && n < slice * D1, to, from);
    } else {
      const int of_channel = x_mul_ir_ ? D1 : 1, of_component = x_mul_ir_ ? 1 : opaque(mul_);
#pragma unroll 1
      for (int i = 0; i < D1; ++i, from += of_component)
#pragma unroll 1
        for (int c = lane; c < slice; c += lanes)
          copy_async<sizeof(T)>(present, to + c * D1 + i, from + c * of_channel);
    }
  }
};

// A kernel of warps of units: blocks are slices of channels of a segment of x, of a destination each.
template <class T, int kChannels, bool kDual, template <class, int, bool, class> class Warp, class Arguments>
__device__ __forceinline__ void run_units(const Arguments& a) {
  extern __shared__ __align__(16) unsigned char shared[];
  const auto block = static_cast<std::int32_t>(blockIdx.x);
  const int tile = a.destinations.quotient(block), destination = a.destinations.remainder(block);
  int segment = a.segments - 1;
  while (a.x[segment].first_tile > tile) --segment;
  const XRecord& x = a.x[segment];
  // The same for all lanes, which the compiler does not know of threadIdx.
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0);
  const Place at{x, a.unit[x.first_unit + warp], warp, destination, (tile - x.first_tile) * (kChannels << x.log_lanes)};
  T* const x_stage = reinterpret_cast<T*>(shared);
  T* const own = reinterpret_cast<T*>(shared + at.unit.own);
  with_kind(at.unit.kind, [&](auto kind) EQK_LAMBDA {
    Warp<T, kChannels, kDual, Unit<decltype(kind)::value>>(a, at, x_stage, own).run();
  });
}

}  // namespace eqk::tensor_product_conv
