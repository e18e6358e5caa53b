#pragma once
// The backward, or on duals its derivative along tangents of x, y and w, with that of the forward: a warp keeps the
// cotangents of its unit in registers over all edges of a destination. It writes the gradients of an edge's weights,
// which no other warp has a part in, and rows of what the gradients of x and of y are sums of: of x one for a block,
// whose warps add up theirs, of y one for each warp.
#include "tensor_product_conv/cuda_unit_warp.h"

namespace eqk::tensor_product_conv {

// Where a warp keeps the number of its destination, for which duals leave no register.
__device__ __forceinline__ int* kept_destination(int warp) {
  __shared__ int destinations[kWarpsOfBlock];
  return destinations + warp;
}

template <class T, int kChannels, bool kDual, class U>
class BackwardWarp : UnitWarp<T, kChannels, kDual, U> {
  using Base = UnitWarp<T, kChannels, kDual, U>;
  using Base::D1, Base::N, Base::kParts, Base::kXStep;
  using typename Base::S, typename Base::WeightRow, typename Base::Weights;

 public:
  __device__ __forceinline__ BackwardWarp(const BackwardArguments& a, const Place& at, T* x_stage, T* own)
      : Base(a, at, x_stage, own), a_(a), warps_(static_cast<int>(blockDim.x) / 32) {}

  __device__ __forceinline__ void run() {
    this->clear_x();
    int destination = this->at_.destination + (a_.destination ? a_.destination[a_.first_place] : 0);
#pragma unroll 1
    while (destination < a_.destination_count) {
      const std::int32_t* const row = a_.row + destination;
      const int begin = max(row[0], a_.first_place), end = min(row[1], a_.end_place);
      if (begin > end) break;
      if constexpr (kDual) {
        __syncwarp();  // nobody reads the one before
        *kept_destination(this->warp_) = destination;
        __syncwarp();
        load_g(destination);
        sum_out(begin, end);
        destination = *kept_destination(opaque(this->warp_));
      } else if (begin < end) {
        load_g(destination);
        add_edges(begin, end - begin);
      }
      destination += a_.destinations.value();
    }
  }

 private:
  static constexpr int kYColumns = U::y_size <= 4 ? 4 : U::y_size <= 8 ? 8 : 16;  // a power of two
  static constexpr bool kSharedG = kSharedCotangents<U>;
  // Paths whose weights arrive while the one before is computed, and edges whose numbers do; none where registers lack.
  static constexpr int kAhead = kDual && kSharedG ? 0 : 1;
  // Whether the row of the gradients of an edge's weights is found once, or for each path where registers lack.
  static constexpr bool kKeepsRow = D1 < (kDual ? 7 : 5) && !kSharedG;
  static constexpr int kXGradient = x_gradient_size(U::l1, N);  // of a warp

  const BackwardArguments& a_;
  const int warps_;
  // The cotangents, times the coefficients of paths, where registers hold them.
  T g_[kSharedG ? 1 : U::components(U::count)][N];
  T out_[kDual ? U::components(U::count) : 1][N];  // the tangent of the forward

  __device__ __forceinline__ void clear_out() {
#pragma unroll
    for (auto& component : out_)
#pragma unroll
      for (T& v : component) v = 0;
  }

  // The edges, and between as many as a sum has terms the row of the output.
  __device__ __forceinline__ void sum_out(int first, int end) {
#pragma unroll 1
    while (true) {
      clear_out();
      if (first < end) add_edges(first, min(kEdgesOfSum, end - first));
      const int destination = *kept_destination(opaque(this->warp_));
      const std::int32_t* const row = a_.row + destination;
      if (a_.out) this->template store<true>(a_, destination, out_, first != row[0]);
      first += kEdgesOfSum;
      end = min(row[1], a_.end_place);
      if (first >= end) break;
    }
  }

  __device__ __forceinline__ void add_edges(int first, int count) {
    __syncthreads();  // nobody reads x of the edges before, and zeros are where they will be read
    this->copy_x(first, count, 0, 0);
    const auto edge_at = [&](int n) EQK_LAMBDA { return this->edge_[first + min(n, count - 1)]; };
    [[maybe_unused]] int ahead = edge_at(this->turn_);
    const auto tile = [&]() EQK_LAMBDA { return kStepsOfTile * 32 >> opaque(this->log_lanes_); };
    this->template over_edges<false>(
        first, count,
        [&](int t) EQK_LAMBDA {
          if (!stages_x() || t == 0) return;
          store_x(first, count, t - tile());
          __syncthreads();  // nobody reads what warps overwrite now
        },
        [&](int t, unsigned step) EQK_LAMBDA {
          const int n = t + this->turn_, edge = kAhead ? ahead : edge_at(n);
          if constexpr (kAhead > 0) ahead = edge_at(n + this->edges_at_once_);
          add_edge(step, static_cast<unsigned>(t) % kEdgesOfM + this->turn_, edge, n < count);
        });
    if (!stages_x()) return;
    __syncthreads();
    store_x(first, count, (count - 1) & -tile());
  }

  // Whether gradients of x go through shared memory. Lanes of one warp hold scalars as a row of memory has them.
  __device__ __forceinline__ bool stages_x() const { return a_.x_rows_stride && (D1 > 1 || warps_ > 1); }
  // The gradients of x of the tile, of the block's first warp; others behind them.
  __device__ __forceinline__ T* x_gradients() const { return this->x_stage_ + x_stage_size(U::l1, N, kDual); }
  // The cotangents, where shared memory holds them: a pack a lane, component by component.
  __device__ __forceinline__ T* shared_g(int component) const {
    return this->m_ + own_size<U>(N, kDual) + (component * 32 + this->lane_) * N;
  }

  // Through the warp's own memory, so that whole sectors are read.
  __device__ __forceinline__ void load_g(int destination) {
    const Rows& in = a_.in[kG];
    const T* const row = row_of(static_cast<const T*>(in.value), destination, in.stride);
    const int slice = this->slice(), all = N << opaque(this->log_lanes_);
    // Else addresses stay in registers for the next destination.
    const int lane = opaque(this->lane_);
    // A loop over slots, for the size of the code.
#pragma unroll 1
    for (int slot = 0; slot < U::count; ++slot) {
      if (!this->has(slot)) continue;
      int D3 = 0;
      const T* from = row;
      eqk::unroll<U::count>([&](auto known) EQK_LAMBDA {
        constexpr int q = decltype(known)::value, D = 2 * U::kOf.l3[q] + 1;
        if (q == slot) D3 = D, from += this->unit_.out[q];
      });
      __syncwarp();
      if (a_.g_vectors) {
        from += this->first_channel_ * D3;
#pragma unroll 1
        for (int n = lane * N; n < slice * D3; n += 32 * N) {
          Pack<T, N> pack;
          pack.load(from + n);
          pack.store_shared(this->m_ + n);
        }
      } else {
        const int of_channel = a_.out_mul_ir ? D3 : 1, of_component = a_.out_mul_ir ? 1 : opaque(this->mul_);
        from += this->first_channel_ * of_channel;
#pragma unroll 1
        for (int k = 0; k < D3; ++k, from += of_component)
#pragma unroll 1
          for (int c = lane; c < all; c += 32) this->m_[c * D3 + k] = c < slice ? from[c * of_channel] : T{0};
      }
      __syncwarp();
      if (!this->has_channels()) continue;
      eqk::unroll<U::count>([&](auto known) EQK_LAMBDA {
        constexpr int q = decltype(known)::value, D = 2 * U::kOf.l3[q] + 1, first = U::components(q);
        if (q != slot) return;
        const T* const mine = this->m_ + (lane & ((1 << opaque(this->log_lanes_)) - 1)) * (N * D);
        const T coefficient = this->unit_.coefficient[q];
        Pack<T, N> of_component[D];
#pragma unroll
        for (int n = 0; n < D; ++n) {
          Pack<T, N> pack;
          pack.load_shared(mine + n * N);
#pragma unroll
          for (int c = 0; c < N; ++c)
            of_component[(n * N + c) % D].set((n * N + c) / D, coefficient * pack.template get<T>(c));
        }
#pragma unroll
        for (int k = 0; k < D; ++k) {
          if constexpr (kSharedG)
            of_component[k].store_shared(shared_g(first + k));
          else
            unpack(of_component[k], g_[first + k]);
        }
      });
    }
  }

  __device__ __forceinline__ static void unpack(const Pack<T, N>& pack, T (&to)[N]) {
#pragma unroll
    for (int c = 0; c < N; ++c) to[c] = pack.template get<T>(c);
  }

  __device__ __forceinline__ void add_edge(unsigned step, int edge_of_m, int edge, bool present) {
    T y[kYColumns];
#pragma unroll
    for (T& v : y) v = 0;
    if (present && this->has_channels()) add_channels(step, edge_of_m, edge, y);
    if (a_.y_rows_stride) store_y(edge, present, y);
  }

  __device__ __forceinline__ void add_channels(unsigned step, int edge_of_m, int edge, T (&gy)[kYColumns]) {
    T x[kParts][D1 * N], gx[D1 * N];
    eqk::unroll<kParts>([&](auto part) EQK_LAMBDA { this->read_x(step, part, x[part]); });
#pragma unroll
    for (T& v : gx) v = 0;
    Weights weights[kAhead + 1];
    const WeightRow row(*this, edge, 0);
    T* const gw = kKeepsRow ? gradients_of_weights(edge) : nullptr;
    if constexpr (kAhead > 0) load_weights<0>(row, weights[0]);
    eqk::unroll<U::count>([&](auto slot) EQK_LAMBDA {
      constexpr int q = decltype(slot)::value, next = q + kAhead;
      if constexpr (next < U::count) load_weights<next>(row, weights[next % (kAhead + 1)]);
      if (this->has(q)) add_path<q>(edge_of_m, edge, row, gw, weights[q % (kAhead + 1)], x, gx, gy);
    });
    if (stages_x()) {
      T* const to = x_gradients() + this->warp_ * kXGradient + step % kStepsOfTile * kXStep + this->lane_ * (N * D1);
#pragma unroll
      for (int n = 0; n < D1; ++n) {
        Pack<T, N> pack;
#pragma unroll
        for (int c = 0; c < N; ++c) pack.set(c, gx[n * N + c]);
        pack.store_shared(to + n * N);
      }
    } else if (a_.x_rows_stride) {
      Pack<T, N> pack;
#pragma unroll
      for (int c = 0; c < N; ++c) pack.set(c, gx[c]);
      pack.store(row_of(static_cast<T*>(a_.x_rows), edge, a_.x_rows_stride) +
                 (this->at_.x.rows_column + this->channel_));
    }
  }

  template <int q>
  __device__ __forceinline__ void add_path(int edge_of_m, int edge, const WeightRow& row, T* gw_row, Weights& weights,
                                           const T (&x)[kParts][D1 * N], T (&gx)[D1 * N], T (&gy)[kYColumns]) {
    using C = typename U::template C<q>;
    constexpr int D3 = 2 * U::kOf.l3[q] + 1, first = U::components(q);
    T shared[kSharedG ? D3 : 1][N];
    if constexpr (kSharedG) {
#pragma unroll
      for (int k = 0; k < D3; ++k) {
        Pack<T, N> pack;
        pack.load_shared(shared_g(first + k));
        unpack(pack, shared[k]);
      }
    }
    if (!this->w_vectors_) this->template load_elements_of_weights<q>(row, this->channel_, weights);
    S w[N], z[N], h[N];
    T gw[N];
#pragma unroll
    for (int c = 0; c < N; ++c) w[c] = this->weight(weights, c), gw[c] = 0;
    this->template for_pairs<q>(edge_of_m, [&](auto pair, const S& m) EQK_LAMBDA {
      constexpr int p = decltype(pair)::value, i = C::pair_i[p], k = C::pair_k[p];
      T sum = 0;
#pragma unroll
      for (int c = 0; c < N; ++c) {
        const T& g = kSharedG ? shared[kSharedG ? k : 0][c] : g_[kSharedG ? 0 : first + k][c];
        if constexpr (starts_i<C, p>()) {
          z[c] = eqk::mul(w[c], this->x_at(x, c, i));
          h[c] = eqk::mul(m, g);
        } else {
          fma(h[c], m, g);
        }
        fma_part(sum, z[c], g);
        if constexpr (kDual) fma_part(out_[first + k][c], m, z[c]);
        if constexpr (ends_i<C, p>()) {
          fma_part(gw[c], this->x_at(x, c, i), h[c]);
          fma_part(gx[c * D1 + i], w[c], h[c]);
        }
      }
      eqk::unroll<C::pair_terms[p + 1] - C::pair_terms[p]>([&](auto n) EQK_LAMBDA {
        constexpr int term = C::pair_terms[p] + decltype(n)::value, column = U::y_columns(C::l2) + C::term_j[term];
        constexpr T c = static_cast<T>(C::term_c[term]);
        gy[column] += c * sum;
      });
    });
    store_weights<q>(edge, gw_row, gw);
  }

  template <int q>
  __device__ __forceinline__ void load_weights(const WeightRow& row, Weights& weights) const {
    Base::template load_weights<q>(row, this->channel_, this->unit_.w_vectors & 1 << q, weights);
  }

  template <int q>
  __device__ __forceinline__ void store_weights(int edge, T* row, const T (&gw)[N]) const {
    const auto to = [&]() EQK_LAMBDA {
      return (kKeepsRow ? row : gradients_of_weights(edge)) + (this->unit_.weight[q] + this->channel_);
    };
    if (a_.gw_vectors) {
      Pack<T, N> pack;
#pragma unroll
      for (int c = 0; c < N; ++c) pack.set(c, gw[c]);
      pack.store(to());
    } else if (a_.w && this->unit_.weighted >> q & 1) {
      const int left = opaque(this->mul_) - static_cast<int>(this->channel_);
      T* const first = to();
#pragma unroll
      for (int c = 0; c < N; ++c)
        if (c < left) first[c] = gw[c] + (a_.add ? first[c] : T{0});
    }
  }

  __device__ __forceinline__ T* gradients_of_weights(int edge) const {
    return row_of(static_cast<T*>(a_.w), edge, a_.w_stride);
  }

  // Sums the columns over the lanes of an edge and writes them.
  __device__ __forceinline__ void store_y(int edge, bool present, T (&y)[kYColumns]) const {
    const int log_lanes = opaque(this->log_lanes_), lane = this->lane_ & ((1 << log_lanes) - 1);
    const int slice = opaque(this->first_channel_) >> log_lanes + (N == 4 ? 2 : 1);
    T* const to = row_of(static_cast<T*>(a_.y_rows), edge, a_.y_rows_stride) +
                  (this->unit_.rows_column + slice * U::y_size + lane);
    const auto sum_in_parts_of = [&](auto known) EQK_LAMBDA {
      constexpr int kPart = decltype(known)::value;
      eqk::unroll<kYColumns / kPart>([&](auto part) EQK_LAMBDA {
        constexpr int first = decltype(part)::value * kPart;
        sum_over_lanes<kPart>(y + first, this->lane_);
#pragma unroll
        for (int offset = kPart; offset < 32; offset *= 2) {
          if (offset >> log_lanes) break;
          y[first] += __shfl_xor_sync(~0u, y[first], offset);
        }
        if (present && lane < min(kPart, U::y_size - first)) {
          Pack<T, 1> pack;
          pack.set(0, y[first]);
          pack.store(to + first);
        }
      });
    };
    if (kYColumns >> log_lanes <= 1)
      sum_in_parts_of(constant<kYColumns>{});
    else
      sum_in_parts_of(constant<1 << kLeastLogLanes>{});
  }

  // The rows of a tile's edges, from edge t of the `count` on: what all warps add to the gradient of x.
  __device__ __forceinline__ void store_x(int first_place, int count, int t) const {
    constexpr int kPacks = kXStep / N;  // of a step
    const int log_lanes = opaque(this->log_lanes_), warps = opaque(warps_);
    const int column = this->at_.x.rows_column + opaque(this->first_channel_) * D1;
    const int packs_of_slice = (this->slice() + N - 1) / N * D1;
    const std::int32_t* const edges = this->edge_ + first_place;
    const T* gradients = x_gradients();
    const int packs = min(kStepsOfTile * kPacks, (count - t) * (D1 << log_lanes));
#pragma unroll 1
    for (int n = threadIdx.x; n < packs; n += 32 * warps) {
      const int of_tile = n / D1 >> log_lanes, pack = n - of_tile * (D1 << log_lanes);
      if (pack >= packs_of_slice) continue;
      T* const row = row_of(static_cast<T*>(a_.x_rows), edges[t + of_tile], a_.x_rows_stride);
      Pack<T, N> sum;
      sum.load_shared(gradients + n * N);
#pragma unroll
      for (int warp = 1; warp < kWarpsOfBlock; ++warp) {
        if (warp >= warps) break;
        Pack<T, N> more;
        more.load_shared(gradients + warp * kXGradient + n * N);
        sum.template add<T>(more);
      }
      sum.store(row + (column + pack * N));
    }
  }
};

}  // namespace eqk::tensor_product_conv
