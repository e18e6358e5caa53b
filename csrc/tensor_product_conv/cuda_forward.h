#pragma once
// The forward, or on duals its derivative: a warp keeps the outputs of its unit in registers over all edges of a
// destination and writes them once.
#include "tensor_product_conv/cuda_unit_warp.h"

namespace eqk::tensor_product_conv {

template <class T, int kChannels, bool kDual, class U>
class ForwardWarp : UnitWarp<T, kChannels, kDual, U> {
  using Base = UnitWarp<T, kChannels, kDual, U>;
  using Base::D1, Base::N, Base::kParts;
  using typename Base::S, typename Base::WeightRow, typename Base::Weights;

 public:
  __device__ __forceinline__ ForwardWarp(const UnitArguments& a, const Place& at, T* x_stage, T* own)
      : Base(a, at, x_stage, own), a_(a) {}

  __device__ __forceinline__ void run() {
    int first = a_.row[this->at_.destination];
    if (first == a_.row[this->at_.destination + 1]) return this->store_zeros(a_, this->at_.destination);
    this->clear_x();
#pragma unroll 1
    while (true) {
      const std::int32_t* const row = a_.row + this->at_.destination;
      sum_edges(first, min(kEdgesOfSum, row[1] - first));
      this->template store<false>(a_, opaque(this->at_.destination), sum_, first != row[0]);
      first += kEdgesOfSum;
      if (first >= row[1]) break;
    }
  }

 private:
  const UnitArguments& a_;
  T sum_[U::components(U::count)][N];
  // Of the coming edge: those of a slot are read as soon as the ones before are used.
  Weights weight_[U::count];

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
    __syncthreads();  // nobody reads x of the edges before
    this->copy_x(first, count, 0, 0);
    {
      const bool present = this->w_vectors_ && this->turn_ < count && this->has_channels();
      const WeightRow row(*this, this->edge_[first + min(this->turn_, count - 1)], this->channel_);
      eqk::unroll<U::count>([&](auto slot) EQK_LAMBDA {
        constexpr int q = decltype(slot)::value;
        if (this->has(q)) this->template load_weights<q>(row, 0, present, weight_[q]);
      });
    }
    const auto edge_at = [&](int n) EQK_LAMBDA { return this->edge_[first + min(n, count - 1)]; };
    int ahead = edge_at(this->turn_ + this->edges_at_once_);
    this->template over_edges<true>(
        first, count, [](int) EQK_LAMBDA {},
        [&](int t, unsigned step) EQK_LAMBDA {
          const int n = t + this->turn_, next = n + this->edges_at_once_, edge = ahead;
          ahead = edge_at(next + this->edges_at_once_);
          if (n < count && this->has_channels())
            add_edge(step, static_cast<unsigned>(t) % kEdgesOfM + this->turn_, first + n,
                     WeightRow(*this, edge, this->channel_), this->w_vectors_ && next < count);
        });
  }

  __device__ __forceinline__ void add_edge(unsigned step, int edge_of_m, int place, const WeightRow& next_row,
                                           bool next) {
    if (!this->w_vectors_) {
      const WeightRow row(*this, this->edge_[place], this->channel_);
      eqk::unroll<U::count>([&](auto slot) EQK_LAMBDA {
        constexpr int q = decltype(slot)::value;
        if (this->has(q)) this->template load_elements_of_weights<q>(row, 0, weight_[q]);
      });
    }
    T x[kParts][D1 * N];
    eqk::unroll<kParts>([&](auto part) EQK_LAMBDA { this->read_x(step, part, x[part]); });
    eqk::unroll<U::count>([&](auto slot) EQK_LAMBDA {
      constexpr int q = decltype(slot)::value, D3 = 2 * U::kOf.l3[q] + 1, first = U::components(q);
      using C = typename U::template C<q>;
      if (!this->has(q)) return;
      S w[N];
#pragma unroll
      for (int c = 0; c < N; ++c) w[c] = this->weight(weight_[q], c);
      // The weight is multiplied into the smaller of x and the product, if registers hold the product.
      constexpr bool kWeightFirst = kDual || D1 <= D3 || D3 > 3;
      S z[N];
      T product[kWeightFirst ? 1 : D3][N];
      this->template for_pairs<q>(edge_of_m, [&](auto pair, const S& m) EQK_LAMBDA {
        constexpr int p = decltype(pair)::value, i = C::pair_i[p], k = C::pair_k[p];
#pragma unroll
        for (int c = 0; c < N; ++c) {
          if constexpr (starts_i<C, p>()) {
            z[c] = this->x_at(x, c, i);
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
      this->template load_weights<q>(next_row, 0, next, weight_[q]);
    });
  }
};

}  // namespace eqk::tensor_product_conv
