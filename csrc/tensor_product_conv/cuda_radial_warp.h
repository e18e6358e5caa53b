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
  const int lane = static_cast<int>(threadIdx.x) % 32, warps = static_cast<int>(blockDim.x) / 32;
  const int channel = first_channel + lane / 4 * 4;
  to += lane;
  int step = static_cast<int>(threadIdx.x) / 32;  // of a slot, that comes next for the warp
#pragma unroll 1
  for (int u = 0; u < a.warps; ++u) {
    const UnitRecord& unit = a.unit[x.first_unit + u];
    const int of_slot = 2 * kParts * 32, of_step = __popc(unit.slots) * of_slot;
#pragma unroll 1
    for (int left = unit.slots; left; left &= left - 1, step -= a.steps, to += of_slot) {
      const int q = __ffs(left) - 1;
#pragma unroll 1
      for (; step < a.steps; step += warps) {
        const int row = step * kRadialDepth + 4 * (lane % 4);
        const float* from = a.matrix + row * a.matrix_stride + unit.weight[q] + channel;
        float v[4][4];
#pragma unroll
        for (int r = 0; r < 4; ++r, from += a.matrix_stride) {
          const bool present = row + r < a.hidden;
          Pack<float, 4> pack{};
          if (a.matrix_vectors)
            pack.load_if(present && channel < x.mul, from);
          else
#pragma unroll
            for (int c = 0; c < 4; ++c) pack.set(c, present && channel + c < x.mul ? from[c] : 0.f);
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
            to[step * of_step + (m * kParts + p) * 32] = {word[0][p], word[1][p], word[2][p], word[3][p]};
        }
      }
    }
    to += (a.steps - 1) * of_step;
  }
}

template <int kParts, class U>
class RadialWarp {
  static constexpr int D1 = U::D1, N = 4;
  static constexpr int kXRow = radial_x_row(U::l1);
  // Components of y that are read, in fours, of which the unit's begin with one of the first.
  static constexpr int kBeginY = U::first_l2 * U::first_l2, kFirstY = kBeginY / 4 * 4;
  static constexpr int kYFours = (kBeginY - kFirstY + U::y_size + 3) / 4;

 public:
  // warp, in_team: the warp's number in its slice of channels, and in its team. matrix: the unit's; x: the slice's;
  // operands: the team's; own: the warp's.
  __device__ __forceinline__ RadialWarp(const RadialArguments& a, const XRecord& x, const UnitRecord& unit, int warp,
                                        int in_team, int team, int first_channel, const uint4* matrix, float* x_stage,
                                        unsigned char* operands, float* own)
      : a_(a),
        x_(x),
        unit_(unit),
        warp_(warp),
        in_team_(in_team),
        team_(team),
        lane_(static_cast<int>(threadIdx.x) % 32),
        first_channel_(first_channel),
        matrix_(matrix + lane_),
        x_stage_(x_stage),
        operands_(operands),
        own_(own) {}

  // Every so many (`apart`) of the groups.
  __device__ __forceinline__ void run(int first, int apart) {
    clear_sums();
#pragma unroll 1
    for (int group = first; group < a_.groups; group += apart) {
      const TileRange tiles = a_.group[group];
#pragma unroll 1
      for (int n = 0; n < tiles.count; ++n) {
        const EdgeTile& tile = a_.tile[tiles.first + n];
        const int quads = tile.quads;
        synchronize_team();  // nobody reads the tile before
        stage_x(tile, quads);
        stage_operands(tiles.first + n);
        commit_copies();
        wait_for_copies();
        synchronize_team();
        add_tile(tile, quads);
      }
    }
  }

 private:
  const RadialArguments& a_;
  const XRecord& x_;
  const UnitRecord& unit_;
  const int warp_, in_team_, team_, lane_, first_channel_;
  const uint4* const matrix_;
  float* const x_stage_;
  unsigned char* const operands_;
  float* const own_;
  float sum_[U::components(U::count)][N];

  __device__ __forceinline__ int slice() const { return min(kRadialChannels, x_.mul - first_channel_); }
  __device__ __forceinline__ void synchronize_team() const {
    asm volatile("bar.sync %0, %1;" ::"r"(team_ + 1), "r"(32 * a_.warps * a_.slices) : "memory");
  }

  __device__ __forceinline__ void clear_sums() {
#pragma unroll
    for (auto& component : sum_)
#pragma unroll
      for (float& v : component) v = 0;
  }

  __device__ __forceinline__ void add_tile(const EdgeTile& tile, int quads) {
    float w[kTilesOfEdges][U::count][2][4];
    // Else the parameters would be read for each quad.
    const int slots = opaque(unit_.slots);
    multiply(slots, w);
    const int edge = lane_ % 4, y_row = radial_y_row(a_.sets);
    const float *x = x_stage_ + edge * kXRow + lane_ / 4 * (N * D1),
                *y = reinterpret_cast<const float*>(operands_ + radial_h_bytes(a_.steps, kParts)) + edge * y_row +
                     unit_.y[0] + kFirstY;
    int ends = tile.ends;
#pragma unroll 1
    for (int q = 0; q < quads; ++q, ends >>= 1, x += 4 * kXRow, y += 4 * y_row) {
      if (q % 2 == 0) {
        add_edge<0>(slots, x, y, w[0]);
      } else {
        add_edge<1>(slots, x, y, w[0]);
        // The next weights take the place of these: registers have no index.
        static_assert(kTilesOfEdges == 3);
        if (q < 4) {
#pragma unroll
          for (int s = 0; s < U::count; ++s)
#pragma unroll
            for (int m = 0; m < 2; ++m)
#pragma unroll
              for (int v = 0; v < 4; ++v) w[0][s][m][v] = q == 1 ? w[1][s][m][v] : w[2][s][m][v];
        }
      }
      // Once: behind a branch, the compiler would keep the sums in other registers.
#pragma unroll 1
      for (; ends & 1; --ends) {
        const int destination = tile.destination[q], row = destination < 0 ? ~destination : destination;
        store(slots, a_.out + row * a_.out_stride, destination < 0);
        clear_sums();
      }
    }
  }

  // Eight lanes copy an edge's row; zeros where there is no edge and behind the last channel, since weights of zero
  // stand there.
  __device__ __forceinline__ void stage_x(const EdgeTile& tile, int quads) const {
    const int lane = lane_ % 8, slice = this->slice();
    const std::int32_t column = x_.column + first_channel_ * (a_.x_mul_ir ? D1 : 1);
#pragma unroll 1
    for (int q = warp_; q < quads; q += a_.warps) {
      const int e = 4 * q + lane_ / 8, source = tile.source[e];
      const bool present = source >= 0;
      const float* from = row_of(static_cast<const float*>(a_.x.value) + column, max(source, 0), a_.x.stride);
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

  __device__ __forceinline__ void stage_operands(int tile) const {
    const int bytes = radial_operand_bytes(a_.steps, kParts, a_.sets), apart = 512 * a_.warps * a_.slices;
    int n = 16 * (32 * in_team_ + lane_);
    const unsigned char* from = row_of(a_.operands, tile, bytes) + n;
    unsigned char* to = operands_ + n;
    constexpr int kAtOnce = 4;
#pragma unroll 1
    for (int first = 0; first < bytes; first += kAtOnce * apart)
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u, n += apart, from += apart, to += apart) copy_async<16>(n < bytes, to, from);
  }

  // Weights of a tile's edges: of the lane's channels 4 g + 2 m and the next one, each of columns 2 t and 2 t + 1.
  __device__ __forceinline__ void multiply(int slots, float (&w)[kTilesOfEdges][U::count][2][4]) const {
#pragma unroll
    for (auto& tile : w)
#pragma unroll
      for (auto& slot : tile)
#pragma unroll
        for (auto& half : slot)
#pragma unroll
          for (float& v : half) v = 0;
    const uint4* matrix = matrix_;
    const uint2* features =
        reinterpret_cast<const uint2*>(operands_) + lane_ / 4 * radial_h_row(a_.steps, kParts) + lane_ % 4;
#pragma unroll 1
    for (int step = 0; step < a_.steps; ++step, features += 4 * kParts) {
      uint2 h[kTilesOfEdges][kParts];
#pragma unroll
      for (int tile = 0; tile < kTilesOfEdges; ++tile)
#pragma unroll
        for (int p = 0; p < kParts; ++p) h[tile][p] = features[8 * tile * radial_h_row(a_.steps, kParts) + 4 * p];
      eqk::unroll<U::count>([&](auto slot) EQK_LAMBDA {
        if (!(slots >> slot & 1)) return;
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
              for (int tile = 0; tile < kTilesOfEdges; ++tile)
                multiply_add(w[tile][slot][m], part[p], h[tile][sum - p]);
        }
      });
    }
  }

  // n: of which of the lane's two columns its weights are.
  template <int n>
  __device__ __forceinline__ void add_edge(int slots, const float* x_row, const float* y_row,
                                           const float (&w)[U::count][2][4]) {
    float x[D1 * N], y[4 * kYFours];
    read(x_row, x);
    read(y_row, y);
    eqk::unroll<U::count>([&](auto slot) EQK_LAMBDA {
      constexpr int q = decltype(slot)::value, D3 = 2 * U::kOf.l3[q] + 1, first = U::components(q);
      using C = typename U::template C<q>;
      if (!(slots >> q & 1)) return;
      const auto weight = [&](int c) EQK_LAMBDA { return w[q][c / 2][c % 2 * 2 + n]; };
      // The weight is multiplied into the smaller of x and the product, if registers hold the product.
      constexpr bool kWeightFirst = D1 <= D3 || D3 > 3;
      float z[N], product[kWeightFirst ? 1 : D3][N];
      eqk::unroll<C::pairs>([&](auto pair) EQK_LAMBDA {
        constexpr int p = decltype(pair)::value, i = C::pair_i[p], k = C::pair_k[p];
        float m = 0;
        eqk::unroll<C::pair_terms[p + 1] - C::pair_terms[p]>([&](auto term) EQK_LAMBDA {
          constexpr int at = C::pair_terms[p] + decltype(term)::value,
                        column = kBeginY - kFirstY + U::y_columns(C::l2) + C::term_j[at];
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
  __device__ __forceinline__ void store(int slots, float* out, bool add) const {
    constexpr int kPair = radial_sums<U>();
    const int slice = this->slice(), lane = opaque(lane_), half = lane % 2;
    const float* const of_lane = own_ + lane * N;
    float* const of_pair = own_ + lane / 2 % 2 * kPair;
    eqk::unroll<U::count>([&](auto slot) EQK_LAMBDA {
      constexpr int q = decltype(slot)::value, D = 2 * U::kOf.l3[q] + 1, first = U::components(q);
      if (!(slots >> q & 1)) return;
      float kept[2 * D];
#pragma unroll
      for (int n = 0; n < 2 * D; ++n) {
        const float low = sum_[first + n % D][n / D], high = sum_[first + n % D][2 + n / D];
        kept[n] = (half ? high : low) + __shfl_xor_sync(~0u, half ? low : high, 1);
      }
      float* const at = of_pair + (lane / 4 * N + 2 * half) * D;
#pragma unroll
      for (int n = 0; n < D; ++n) {
        Pack<float, 2> pack;
        pack.set(0, kept[2 * n]), pack.set(1, kept[2 * n + 1]);
        pack.store_shared(at + 2 * n);
      }
      __syncwarp();
      float* to = out + unit_.out[q];
      if (a_.out_vectors) {
        to += first_channel_ * D;
#pragma unroll
        for (int begin = 0; begin < kRadialChannels * D; begin += 32 * N) {
          const int n = begin + lane * N;
          if (n >= slice * D) break;
          Pack<float, N> total, other;
          total.load_shared(of_lane + begin);
          other.load_shared(of_lane + begin + kPair);
          total.template add<float>(other);
          if (add) {
            other.load(to + n);
            total.template add<float>(other);
          }
          total.store(to + n);
        }
      } else {
        const int of_channel = a_.out_mul_ir ? D : 1, of_component = a_.out_mul_ir ? 1 : x_.mul;
        to += first_channel_ * of_channel;
#pragma unroll 1
        for (int k = 0; k < D; ++k, to += of_component)
          if (lane < slice) {
            const float total = own_[lane * D + k] + own_[kPair + lane * D + k];
            float& element = to[lane * of_channel];
            element = total + (add ? element : 0.f);
          }
      }
      __syncwarp();
    });
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
  const int first_channel = (tile - x.first_tile) * a.slices * kRadialChannels;
  for (int slice = 0; slice < a.slices; ++slice)
    stage_matrix<kParts>(a, x, first_channel + slice * kRadialChannels,
                         reinterpret_cast<uint4*>(shared + slice * a.matrix_bytes));
  __syncthreads();
  // The same for all lanes, which the compiler does not know of threadIdx.
  const int of_block = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0), warps = a.warps * a.slices;
  const int team = of_block / warps, in_team = of_block % warps, slice = in_team / a.warps, warp = in_team % a.warps;
  unsigned char* const of_team = shared + a.slices * a.matrix_bytes + team * a.team_bytes;
  int before = 0;  // slots of the units of other warps
  for (int u = 0; u < warp; ++u) before += __popc(a.unit[x.first_unit + u].slots);
  const uint4* const matrix =
      reinterpret_cast<const uint4*>(shared + slice * a.matrix_bytes + before * a.steps * radial_step_bytes(kParts));
  const UnitRecord& unit = a.unit[x.first_unit + warp];
  with_kind(unit.kind, [&](auto kind) EQK_LAMBDA {
    using U = Unit<decltype(kind)::value>;
    constexpr int kXBytes = radial_x_bytes(U::l1);
    unsigned char* const own = of_team + a.team_bytes - (warps - in_team) * a.own_bytes;
    RadialWarp<kParts, U>(a, x, unit, warp, in_team, team, first_channel + slice * kRadialChannels, matrix,
                          reinterpret_cast<float*>(of_team + slice * kXBytes), of_team + a.slices * kXBytes,
                          reinterpret_cast<float*>(own))
        .run(block * a.teams + team, a.blocks * a.teams);
  });
}

}  // namespace eqk::tensor_product_conv
