#pragma once
// The forward, or on duals its derivative: a warp keeps the outputs of its unit in registers over all edges of a
// destination and writes them once.
#include "tensor_product_conv/cuda_unit_warp.h"

namespace eqk::tensor_product_conv {

template <class T, int kChannels, bool kDual, class U>
class ForwardWarp : UnitWarp<T, kChannels, kDual, U> {
  using Base = UnitWarp<T, kChannels, kDual, U>;
  using Base::D1, Base::N, Base::kParts;
  using S = std::conditional_t<kDual, Dual<T>, T>;

 public:
  __device__ __forceinline__ ForwardWarp(const ForwardArguments& a, const Place& at, T* x_stage, T* own)
      : Base(a, at, x_stage, own), a_(a) {}

  __device__ __forceinline__ void run() {
    this->clear_x();
    int first = a_.row[this->at_.destination];
#pragma unroll 1
    while (true) {
      const std::int32_t* const row = a_.row + this->at_.destination;
      sum_edges(first, min(kEdgesOfSum, row[1] - first));
      store(first != row[0]);
      first += kEdgesOfSum;
      if (first >= row[1]) break;
    }
  }

 private:
  const ForwardArguments& a_;
  T sum_[U::components(U::count)][N];
  // Of the coming edge: those of a slot are read as soon as the ones before are used.
  Pack<T, N> weight_[U::count][kParts];

  __device__ __forceinline__ void sum_edges(int first, int count) {
#pragma unroll
    for (auto& component : sum_)
#pragma unroll
      for (T& v : component) v = 0;
    eqk::unroll<U::count>([&](auto slot) EQK_LAMBDA {
#pragma unroll
      for (auto& pack : weight_[slot])
#pragma unroll
        for (int c = 0; c < N; ++c) pack.set(c, T{0});
    });
    if (count <= 0) return;
    __syncthreads();  // nobody reads x of the edges before
    this->copy_x(first, count, 0, 0);
    {
      const bool present = a_.w_vectors && this->turn_ < count && this->has_channels();
      const WeightRow row(*this, this->edge_[first + min(this->turn_, count - 1)]);
      eqk::unroll<U::count>([&](auto slot) EQK_LAMBDA {
        if (this->has(slot)) load_weights<decltype(slot)::value>(row, present);
      });
    }
    const auto edge_at = [&](int n) EQK_LAMBDA { return this->edge_[first + min(n, count - 1)]; };
    int ahead = edge_at(this->turn_ + this->edges_at_once_);
    unsigned step = 0;
#pragma unroll 1
    for (int t = 0; t < count; t += this->edges_at_once_, ++step) {
      const int next = t + this->edges_at_once_;
      const unsigned of_m = static_cast<unsigned>(t) % kEdgesOfM;
      if (of_m == 0) this->form_m(first + t, min(kEdgesOfM, count - t));
      if (step % kStepsOfTile == 0) {
        wait_for_copies();
        __syncthreads();  // x has arrived for all warps, and nobody reads the other buffer
        if (next + this->edges_at_once_ < count)
          this->copy_x(first, count, next + this->edges_at_once_, (step / kStepsOfTile + 1) % 2);
      }
      const int edge = ahead;
      ahead = edge_at(next + this->edges_at_once_ + this->turn_);
      if (t + this->turn_ < count && this->has_channels())
        add_edge(step, of_m + this->turn_, first + t + this->turn_, WeightRow(*this, edge),
                 a_.w_vectors && next + this->turn_ < count);
    }
  }

  // The lane's channels in the weights of an edge.
  struct WeightRow {
    const T* of[kParts];
    __device__ __forceinline__ WeightRow(const ForwardWarp& warp, int edge) {
      const Rows& w = warp.a_.in[kW];
      of[0] = row_of(static_cast<const T*>(w.value) + warp.channel_, edge, w.stride);
      if constexpr (kDual) of[1] = row_of(static_cast<const T*>(w.tangent) + warp.channel_, edge, w.tangent_stride);
    }
  };

  template <int q>
  __device__ __forceinline__ void load_weights(const WeightRow& row, bool present) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) weight_[q][part].load_if(present, row.of[part] + this->unit_.weight[q]);
  }

  // Of this edge, one by one; those of a path without weights are 1.
  __device__ __forceinline__ void load_elements_of_weights(const WeightRow& row) {
    const int left = opaque(this->mul_) - static_cast<int>(this->channel_);
    eqk::unroll<U::count>([&](auto slot) EQK_LAMBDA {
      constexpr int q = decltype(slot)::value;
      if (!this->has(q)) return;
      const bool weighted = this->unit_.weighted >> q & 1;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const bool given = weighted && (!part || a_.in[kW].tangent);
#pragma unroll
        for (int c = 0; c < N; ++c) {
          const bool present = c < left;
          weight_[q][part].set(c, !present ? T{0}
                                  : given  ? row.of[part][this->unit_.weight[q] + c]
                                  : part   ? T{0}
                                           : T{1});
        }
      }
    });
  }

  __device__ __forceinline__ void add_edge(unsigned step, int edge_of_m, int place, const WeightRow& next_row,
                                           bool next) {
    if (!a_.w_vectors) load_elements_of_weights(WeightRow(*this, this->edge_[place]));
    T x[kParts][D1 * N];
    eqk::unroll<kParts>([&](auto part) EQK_LAMBDA { this->read_x(step, part, x[part]); });
    eqk::unroll<U::count>([&](auto slot) EQK_LAMBDA {
      constexpr int q = decltype(slot)::value, D3 = 2 * U::kOf.l3[q] + 1, first = U::components(q);
      using C = typename U::template C<q>;
      if (!this->has(q)) return;
      S w[N];
#pragma unroll
      for (int c = 0; c < N; ++c) {
        if constexpr (kDual)
          w[c] = {weight_[q][0].template get<T>(c), weight_[q][1].template get<T>(c)};
        else
          w[c] = weight_[q][0].template get<T>(c);
      }
      // The weight is multiplied into the smaller of x and the product, if registers hold the product.
      constexpr bool kWeightFirst = kDual || D1 <= D3 || D3 > 3;
      S z[N];
      T product[kWeightFirst ? 1 : D3][N];
      this->template for_pairs<q>(edge_of_m, [&](auto pair, const S& m) EQK_LAMBDA {
        constexpr int p = decltype(pair)::value, i = C::pair_i[p], k = C::pair_k[p];
#pragma unroll
        for (int c = 0; c < N; ++c) {
          if constexpr (starts_i<C, p>()) {
            if constexpr (kDual)
              z[c] = S{x[0][c * D1 + i], x[1][c * D1 + i]};
            else
              z[c] = x[0][c * D1 + i];
            if constexpr (kWeightFirst) z[c] = eqk::mul(w[c], z[c]);
          }
          if constexpr (kWeightFirst)
            fma_part(sum_[first + k][c], m, z[c]);
          else if constexpr (starts_k<C, p>())
            product[k][c] = part(eqk::mul(m, z[c]));
          else
            fma_part(product[k][c], m, z[c]);
        }
      });
      if constexpr (!kWeightFirst) {
#pragma unroll
        for (int k = 0; k < D3; ++k)
#pragma unroll
          for (int c = 0; c < N; ++c) sum_[first + k][c] += part(w[c]) * product[k][c];
      }
      load_weights<q>(next_row, next);
    });
  }

  // Through the warp's own memory, so that whole sectors are written. add: to what is there.
  __device__ __forceinline__ void store(bool add) const {
    const int slice = this->slice();
    T* const row = static_cast<T*>(a_.out) + this->at_.destination * a_.out_stride;
    // A loop over slots, for the size of the code.
#pragma unroll 1
    for (int slot = 0; slot < U::count; ++slot) {
      if (!this->has(slot)) continue;
      int D3 = 0;
      __syncwarp();
      eqk::unroll<U::count>([&](auto known) EQK_LAMBDA {
        constexpr int q = decltype(known)::value, D = 2 * U::kOf.l3[q] + 1, first = U::components(q);
        if (q != slot) return;
        D3 = D;
#pragma unroll
        for (int n = 0; n < D; ++n) {
          Pack<T, N> pack;
#pragma unroll
          for (int c = 0; c < N; ++c) pack.set(c, sum_[first + (n * N + c) % D][(n * N + c) / D]);
          pack.store_shared(this->m_ + this->lane_ * (N * D) + n * N);
        }
      });
      __syncwarp();
      // Edges that shared the warp have sums of their own.
      const int apart = N * D3 << this->log_lanes_;
      T* to = row + this->unit_.out[slot];
      if (a_.out_vectors) {
        to += this->first_channel_ * D3;
#pragma unroll 1
        for (int n = this->lane_ * N; n < slice * D3; n += 32 * N) {
          Pack<T, N> pack;
          pack.load_shared(this->m_ + n);
          const auto add_pack = [&](const Pack<T, N>& more) EQK_LAMBDA {
#pragma unroll
            for (int c = 0; c < N; ++c) pack.set(c, pack.template get<T>(c) + more.template get<T>(c));
          };
#pragma unroll 1
          for (int turn = 1; turn < this->edges_at_once_; ++turn) {
            Pack<T, N> other;
            other.load_shared(this->m_ + turn * apart + n);
            add_pack(other);
          }
          if (add) {
            Pack<T, N> before;
            before.load(to + n);
            add_pack(before);
          }
          pack.store(to + n);
        }
      } else {
        const int of_channel = a_.out_mul_ir ? D3 : 1, of_component = a_.out_mul_ir ? 1 : opaque(this->mul_);
        to += this->first_channel_ * of_channel;
#pragma unroll 1
        for (int k = 0; k < D3; ++k, to += of_component)
#pragma unroll 1
          for (int c = this->lane_; c < slice; c += 32) {
            T sum = this->m_[c * D3 + k];
#pragma unroll 1
            for (int turn = 1; turn < this->edges_at_once_; ++turn) sum += this->m_[turn * apart + c * D3 + k];
            T& element = to[c * of_channel];
            element = sum + (add ? element : T{0});
          }
      }
    }
    __syncwarp();
  }
};

template <class T, int kChannels, bool kDual>
__device__ __forceinline__ void forward(const ForwardArguments& a) {
  extern __shared__ __align__(16) unsigned char shared[];
  const int tile = static_cast<int>(a.destinations.quotient(blockIdx.x)),
            destination = static_cast<int>(a.destinations.remainder(blockIdx.x));
  int segment = a.segments - 1;
  while (a.x[segment].first_tile > tile) --segment;
  const XRecord& x = a.x[segment];
  // The same for all lanes, which the compiler does not know of threadIdx.
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0);
  const Place at{x, a.unit[x.first_unit + warp], warp, destination, (tile - x.first_tile) * (kChannels << x.log_lanes)};
  T* const x_stage = reinterpret_cast<T*>(shared);
  T* const own = reinterpret_cast<T*>(shared + sizeof(T) * x_stage_size(x.l, kChannels, kDual) + warp * a.own_bytes);
  with_kind(at.unit.kind, [&](auto kind) EQK_LAMBDA {
    ForwardWarp<T, kChannels, kDual, Unit<decltype(kind)::value>>(a, at, x_stage, own).run();
  });
}

}  // namespace eqk::tensor_product_conv
