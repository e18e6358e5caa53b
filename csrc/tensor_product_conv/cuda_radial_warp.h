#pragma once
// The convolution with weights h a: what a warp does. kParts: how many numbers of bfloat16 stand for one of float32.
#include "core/cuda_pack.h"
#include "tensor_product_conv/cuda_radial.h"
#include "tensor_product_conv/cuda_unit_warp.h"

namespace eqk::tensor_product_conv {

// Two adjacent numbers as sums of bfloat16; a word has one of each.
template <int kParts>
__device__ __forceinline__ void split(float a, float b, std::uint32_t (&word)[kParts]) {
#pragma unroll
  for (int p = 0; p < kParts; ++p) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word[p]) : "f"(b), "f"(a));
    a -= __uint_as_float(word[p] << 16), b -= __uint_as_float(word[p] & 0xffff0000u);
  }
}

// Lane 4 g + t has, of a [16 rows, 16], four columns of rows g and g + 8; of b the same columns of row g of [8, 16]; of
// the product columns 2 t and 2 t + 1 in rows g and g + 8. Which columns is all the same to the sum: 4 t to 4 t + 3.
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint4& a, const uint2& b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
}

// From global to shared memory, past the registers; zeros if not `present`.
template <int kBytes, class T>
__device__ __forceinline__ void copy_or_clear(bool present, T* to, const T* from) {
  const auto at = static_cast<std::uint32_t>(__cvta_generic_to_shared(to));
  const int bytes = present ? kBytes : 0;
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(at), "l"(from), "r"(bytes), "n"(kBytes)
                 : "memory");
}

// The block's part of the matrix as it is multiplied, times the coefficients of paths: for each unit, step and slot
// the two tiles of 16 channels, in parts. Rows g and g + 8 of tile m are channels 4 g + 2 m and the next one, so that
// a lane has four adjacent channels of the product.
template <int kParts>
__device__ __forceinline__ void stage_matrix(const RadialArguments& a, const XRecord& x, int first_channel, uint4* to) {
#pragma unroll 1
  for (int u = 0; u < a.warps; ++u) {
    const UnitRecord& unit = a.unit[x.first_unit + u];
    const int slots = __popc(unit.slots), items = a.steps * slots * 32;
#pragma unroll 1
    for (int n = threadIdx.x; n < items; n += blockDim.x) {
      const int lane = n % 32, step = n / 32 / slots, g = lane / 4;
      int left = unit.slots;  // of which the lowest is this item's
      for (int before = n / 32 % slots; before > 0; --before) left &= left - 1;
      const int q = __ffs(left) - 1;
      const int channel = first_channel + 4 * g, row = step * kRadialDepth + 4 * (lane % 4);
      float v[4][4];
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int k = row + r;
        const float* const from = a.matrix + k * a.matrix_stride + unit.weight[q] + channel;
        Pack<float, 4> pack{};
        if (a.matrix_vectors)
          pack.load_if(k < a.hidden && channel < x.mul, from);
        else
#pragma unroll
          for (int c = 0; c < 4; ++c) pack.set(c, k < a.hidden && channel + c < x.mul ? from[c] : 0.f);
#pragma unroll
        for (int c = 0; c < 4; ++c) v[r][c] = unit.coefficient[q] * pack.get<float>(c);
      }
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        std::uint32_t word[4][kParts];
#pragma unroll
        for (int w = 0; w < 4; ++w) split(v[w / 2 * 2][2 * m + w % 2], v[w / 2 * 2 + 1][2 * m + w % 2], word[w]);
#pragma unroll
        for (int p = 0; p < kParts; ++p)
          to[(n / 32 * 2 + m) * kParts * 32 + p * 32 + lane] = {word[0][p], word[1][p], word[2][p], word[3][p]};
      }
    }
    to += items * 2 * kParts;
  }
}

template <int kParts, class U>
class RadialWarp {
  static constexpr int D1 = U::D1, N = 4;
  static constexpr int kXRow = radial_x_row(U::l1), kYRow = kRadialYRow<U>, kYFours = (U::y_size + 3) / 4;

 public:
  // matrix: the unit's; x and features: the team's; own: the warp's.
  __device__ __forceinline__ RadialWarp(const RadialArguments& a, const XRecord& x, const UnitRecord& unit, int warp,
                                        int team, int first_channel, const uint4* matrix, float* x_stage,
                                        uint2* features, float* own)
      : a_(a),
        x_(x),
        unit_(unit),
        warp_(warp),
        team_(team),
        lane_(static_cast<int>(threadIdx.x) % 32),
        first_channel_(first_channel),
        matrix_(matrix + lane_),
        x_stage_(x_stage),
        features_(features),
        own_(own) {}

  __device__ __forceinline__ void run(int first, int apart) {
#pragma unroll 1
    for (int destination = first; destination < a_.destinations; destination += apart) {
      const std::int32_t* const row = a_.row + destination;
      int place = row[0];
#pragma unroll 1
      while (true) {
        sum_edges(place, min(kEdgesOfSum, row[1] - place));
        store(a_.out + destination * a_.out_stride, place != row[0]);
        place += kEdgesOfSum;
        if (place >= row[1]) break;
      }
    }
  }

 private:
  const RadialArguments& a_;
  const XRecord& x_;
  const UnitRecord& unit_;
  const int warp_, team_, lane_, first_channel_;
  const uint4* const matrix_;
  float* const x_stage_;
  uint2* const features_;
  float* const own_;
  float sum_[U::components(U::count)][N];

  __device__ __forceinline__ bool has(int q) const { return unit_.slots >> q & 1; }
  __device__ __forceinline__ int slice() const { return min(kRadialChannels, x_.mul - first_channel_); }
  __device__ __forceinline__ void synchronize_team() const {
    asm volatile("bar.sync %0, %1;" ::"r"(team_ + 1), "r"(32 * a_.warps) : "memory");
  }

  __device__ __forceinline__ void sum_edges(int first, int count) {
#pragma unroll
    for (auto& component : sum_)
#pragma unroll
      for (float& v : component) v = 0;
#pragma unroll 1
    for (int t = 0; t < count; t += kRadialEdges) {
      const int edges = min(kRadialEdges, count - t), tiles = (edges + 7) / 8;
      synchronize_team();  // nobody reads the edges before
      stage_x(first + t, edges, tiles);
      stage_y(first + t, edges, tiles);
      commit_copies();
      stage_features(first + t, edges);
      wait_for_copies();
      synchronize_team();
      float w[kTilesOfEdges][U::count][2][4];
      if (tiles == kTilesOfEdges)
        multiply<kTilesOfEdges>(w);
      else if (tiles == 2)
        multiply<2>(w);
      else
        multiply<1>(w);
#pragma unroll 1
      for (int tile = 0;; ++tile) {
        eqk::unroll<2>([&](auto n) EQK_LAMBDA { add_edge<n>(8 * tile + 2 * (lane_ % 4) + n, w[0]); });
        if (tile == tiles - 1) break;
        // The next tile's weights take the place of these: registers have no index.
        static_assert(kTilesOfEdges == 3);
#pragma unroll
        for (int q = 0; q < U::count; ++q)
#pragma unroll
          for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int v = 0; v < 4; ++v) w[0][q][m][v] = tile == 0 ? w[1][q][m][v] : w[2][q][m][v];
      }
    }
  }

  // Eight lanes copy an edge's row; zeros behind the last edge and channel, since weights of zero stand there.
  __device__ __forceinline__ void stage_x(int first, int edges, int tiles) const {
    const int lane = lane_ % 8, slice = this->slice();
    const std::int32_t column = x_.column + first_channel_ * (a_.x_mul_ir ? D1 : 1);
#pragma unroll 1
    for (int four = warp_; four < 2 * tiles; four += a_.warps) {
      const int e = 4 * four + lane_ / 8;
      const bool present = e < edges;
      const float* from =
          row_of(static_cast<const float*>(a_.x.value) + column, a_.src[first + min(e, edges - 1)], a_.x.stride);
      float* const to = x_stage_ + e * kXRow;
      if (a_.x_vectors) {
#pragma unroll
        for (int n = 4 * lane; n < kRadialChannels * D1; n += 32)
          copy_or_clear<16>(present && n < slice * D1, to + n, from + n);
      } else {
        const int of_channel = a_.x_mul_ir ? D1 : 1, of_component = a_.x_mul_ir ? 1 : x_.mul;
#pragma unroll 1
        for (int i = 0; i < D1; ++i, from += of_component)
#pragma unroll 1
          for (int c = lane; c < kRadialChannels; c += 8)
            copy_or_clear<4>(present && c < slice, to + c * D1 + i, from + c * of_channel);
      }
    }
  }

  // As the product reads them, in parts: lane 4 g + t those of edge g of a tile.
  __device__ __forceinline__ void stage_features(int first, int edges) const {
    const int g = lane_ / 4, t = lane_ % 4;
    const float* row[kTilesOfEdges];
#pragma unroll
    for (int tile = 0; tile < kTilesOfEdges; ++tile)
      row[tile] = row_of(static_cast<const float*>(a_.h.value) + 4 * t, a_.edge[first + min(8 * tile + g, edges - 1)],
                         a_.h.stride);
    uint2* const to = features_ + g * radial_h_row(a_.steps, kParts) + t;
#pragma unroll 1
    for (int step = warp_; step < a_.steps; step += a_.warps) {
      const int k = step * kRadialDepth, left = a_.hidden - k - 4 * t;
#pragma unroll
      for (int tile = 0; tile < kTilesOfEdges; ++tile) {
        const bool present = 8 * tile + g < edges;
        Pack<float, 4> v{};
        if (a_.h_vectors)
          v.load_if(present && left > 0, row[tile] + k);
        else
#pragma unroll
          for (int c = 0; c < 4; ++c) v.set(c, present && c < left ? row[tile][k + c] : 0.f);
        std::uint32_t word[2][kParts];
#pragma unroll
        for (int n = 0; n < 2; ++n) split(v.get<float>(2 * n), v.get<float>(2 * n + 1), word[n]);
#pragma unroll
        for (int p = 0; p < kParts; ++p)
          to[8 * tile * radial_h_row(a_.steps, kParts) + (step * kParts + p) * 4] = {word[0][p], word[1][p]};
      }
    }
  }

  // The components that the unit reads; eight lanes have an edge.
  __device__ __forceinline__ void stage_y(int first, int edges, int tiles) const {
    constexpr int kColumns = (4 * kYFours + 7) / 8;
    const int lane = lane_ % 8;
    const float* from[kColumns];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int n = lane + 8 * c;
      from[c] = nullptr;
      eqk::unroll<U::last_l2 - U::first_l2 + 1>([&](auto segment) EQK_LAMBDA {
        constexpr int begin = U::y_columns(U::first_l2 + segment), end = U::y_columns(U::first_l2 + segment + 1);
        if (n >= begin && n < end && unit_.y[segment] >= 0)
          from[c] = static_cast<const float*>(a_.y.value) + unit_.y[segment] + n - begin;
      });
    }
#pragma unroll 1
    for (int four = 0; four < 2 * tiles; ++four) {
      const int e = 4 * four + lane_ / 8, edge = a_.edge[first + min(e, edges - 1)];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        if (lane + 8 * c < 4 * kYFours)
          copy_or_clear<4>(e < edges && from[c], own_ + e * kYRow + lane + 8 * c, row_of(from[c], edge, a_.y.stride));
      }
    }
  }

  // Weights of the edges of `tiles`: of the lane's channels 4 g + 2 m and the next one, each of edges 2 t and 2 t + 1.
  template <int tiles>
  __device__ __forceinline__ void multiply(float (&w)[kTilesOfEdges][U::count][2][4]) const {
#pragma unroll
    for (auto& tile : w)
#pragma unroll
      for (auto& slot : tile)
#pragma unroll
        for (auto& half : slot)
#pragma unroll
          for (float& v : half) v = 0;
    const uint4* matrix = matrix_;
    const uint2* features = features_ + lane_ / 4 * radial_h_row(a_.steps, kParts) + lane_ % 4;
#pragma unroll 1
    for (int step = 0; step < a_.steps; ++step, features += 4 * kParts) {
      uint2 h[tiles][kParts];
#pragma unroll
      for (int tile = 0; tile < tiles; ++tile)
#pragma unroll
        for (int p = 0; p < kParts; ++p) h[tile][p] = features[8 * tile * radial_h_row(a_.steps, kParts) + 4 * p];
      eqk::unroll<U::count>([&](auto slot) EQK_LAMBDA {
        if (!has(slot)) return;
#pragma unroll
        for (int m = 0; m < 2; ++m, matrix += kParts * 32) {
          uint4 part[kParts];
#pragma unroll
          for (int p = 0; p < kParts; ++p) part[p] = matrix[p * 32];
          // The smallest products first.
#pragma unroll
          for (int sum = kParts - 1; sum >= 0; --sum)
#pragma unroll
            for (int p = 0; p <= sum; ++p)
#pragma unroll
              for (int tile = 0; tile < tiles; ++tile) multiply_add(w[tile][slot][m], part[p], h[tile][sum - p]);
        }
      });
    }
  }

  // n: which of the lane's two edges of a tile this is.
  template <int n>
  __device__ __forceinline__ void add_edge(int edge, const float (&w)[U::count][2][4]) {
    float x[D1 * N], y[4 * kYFours];
    read(x_stage_ + edge * kXRow + lane_ / 4 * (N * D1), x);
    read(own_ + edge * kYRow, y);
    eqk::unroll<U::count>([&](auto slot) EQK_LAMBDA {
      constexpr int q = decltype(slot)::value, D3 = 2 * U::kOf.l3[q] + 1, first = U::components(q);
      using C = typename U::template C<q>;
      if (!has(q)) return;
      const auto weight = [&](int c) EQK_LAMBDA { return w[q][c / 2][c % 2 * 2 + n]; };
      // The weight is multiplied into the smaller of x and the product, if registers hold the product.
      constexpr bool kWeightFirst = D1 <= D3 || D3 > 3;
      float z[N], product[kWeightFirst ? 1 : D3][N];
      eqk::unroll<C::pairs>([&](auto pair) EQK_LAMBDA {
        constexpr int p = decltype(pair)::value, i = C::pair_i[p], k = C::pair_k[p];
        float m = 0;
        eqk::unroll<C::pair_terms[p + 1] - C::pair_terms[p]>([&](auto term) EQK_LAMBDA {
          constexpr int at = C::pair_terms[p] + decltype(term)::value, column = U::y_columns(C::l2) + C::term_j[at];
          constexpr auto c = static_cast<float>(C::term_c[at]);
          m += c * y[column];
        });
#pragma unroll
        for (int c = 0; c < N; ++c) {
          if constexpr (starts_i<C, p>()) {
            z[c] = x[c * D1 + i];
            if constexpr (kWeightFirst) z[c] *= weight(c);
          }
          if constexpr (kWeightFirst)
            sum_[first + k][c] += m * z[c];
          else if constexpr (starts_k<C, p>())
            product[k][c] = m * z[c];
          else
            product[k][c] += m * z[c];
        }
      });
      if constexpr (!kWeightFirst) {
#pragma unroll
        for (int k = 0; k < D3; ++k)
#pragma unroll
          for (int c = 0; c < N; ++c) sum_[first + k][c] += weight(c) * product[k][c];
      }
    });
  }

  // Through the warp's own memory, so that whole sectors are written, where the sums of the four lanes that have the
  // same channels are added up. add: to what is there.
  __device__ __forceinline__ void store(float* out, bool add) const {
    const int slice = this->slice();
    // A loop over slots, for the size of the code.
#pragma unroll 1
    for (int slot = 0; slot < U::count; ++slot) {
      if (!has(slot)) continue;
      int D3 = 0;
      __syncwarp();
      eqk::unroll<U::count>([&](auto known) EQK_LAMBDA {
        constexpr int q = decltype(known)::value, D = 2 * U::kOf.l3[q] + 1, first = U::components(q);
        if (q != slot) return;
        D3 = D;
        float* const at = own_ + lane_ % 4 * radial_sums(D) + lane_ / 4 * (N * D);
#pragma unroll
        for (int n = 0; n < D; ++n) {
          Pack<float, N> pack;
#pragma unroll
          for (int c = 0; c < N; ++c) pack.set(c, sum_[first + (n * N + c) % D][(n * N + c) / D]);
          pack.store_shared(at + n * N);
        }
      });
      __syncwarp();
      float* to = out + unit_.out[slot];
      if (a_.out_vectors) {
        to += first_channel_ * D3;
#pragma unroll 1
        for (int n = lane_ * N; n < slice * D3; n += 32 * N) {
          float total[N];
          read(own_ + n, total);
          const auto add_all = [&](const float(&more)[N]) EQK_LAMBDA {
#pragma unroll
            for (int c = 0; c < N; ++c) total[c] += more[c];
          };
          eqk::unroll<3>([&](auto others) EQK_LAMBDA {
            float more[N];
            read(own_ + (others + 1) * radial_sums(D3) + n, more);
            add_all(more);
          });
          Pack<float, N> pack;
          if (add) {
            pack.load(to + n);
            add_all({pack.get<float>(0), pack.get<float>(1), pack.get<float>(2), pack.get<float>(3)});
          }
#pragma unroll
          for (int c = 0; c < N; ++c) pack.set(c, total[c]);
          pack.store(to + n);
        }
      } else {
        const int of_channel = a_.out_mul_ir ? D3 : 1, of_component = a_.out_mul_ir ? 1 : x_.mul;
        to += first_channel_ * of_channel;
#pragma unroll 1
        for (int k = 0; k < D3; ++k, to += of_component)
          if (lane_ < slice) {
            float total = own_[lane_ * D3 + k];
#pragma unroll
            for (int others = 1; others < 4; ++others) total += own_[others * radial_sums(D3) + lane_ * D3 + k];
            float& element = to[lane_ * of_channel];
            element = total + (add ? element : 0.f);
          }
      }
    }
    __syncwarp();
  }

  template <int count>
  __device__ __forceinline__ static void read(const float* from, float (&v)[count]) {
#pragma unroll
    for (int n = 0; n < count; n += 4) {
      Pack<float, 4> pack;
      pack.load_shared(from + n);
#pragma unroll
      for (int c = 0; c < 4; ++c) v[n + c] = pack.get<float>(c);
    }
  }
};

template <int kParts>
__device__ __forceinline__ void radial_forward(const RadialArguments& a) {
  extern __shared__ __align__(16) unsigned char shared[];
  const int tile = static_cast<int>(blockIdx.x) / a.blocks, block = static_cast<int>(blockIdx.x) % a.blocks;
  int segment = a.segments - 1;
  while (a.segment[segment].first_tile > tile) --segment;
  const XRecord& x = a.segment[segment];
  const int first_channel = (tile - x.first_tile) * kRadialChannels;
  auto* const matrix = reinterpret_cast<uint4*>(shared);
  stage_matrix<kParts>(a, x, first_channel, matrix);
  __syncthreads();
  // The same for all lanes, which the compiler does not know of threadIdx.
  const int of_block = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0);
  const int team = of_block / a.warps, warp = of_block % a.warps;
  unsigned char* const of_team = shared + a.matrix_bytes + team * a.team_bytes;
  int before = 0;  // slots of the units of other warps
  for (int u = 0; u < warp; ++u) before += __popc(a.unit[x.first_unit + u].slots);
  const UnitRecord& unit = a.unit[x.first_unit + warp];
  with_kind(unit.kind, [&](auto kind) EQK_LAMBDA {
    using U = Unit<decltype(kind)::value>;
    unsigned char* const features = of_team + radial_x_bytes(U::l1);
    unsigned char* const own = of_team + a.team_bytes - (a.warps - warp) * a.own_bytes;
    RadialWarp<kParts, U>(
        a, x, unit, warp, team, first_channel, matrix + before * a.steps * (radial_step_bytes(kParts) / 16),
        reinterpret_cast<float*>(of_team), reinterpret_cast<uint2*>(features), reinterpret_cast<float*>(own))
        .run(block * a.teams + team, a.blocks * a.teams);
  });
}

}  // namespace eqk::tensor_product_conv
