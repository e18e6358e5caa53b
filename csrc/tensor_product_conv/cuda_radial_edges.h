#pragma once
// The tiles of the convolution with weights h a: a block finds the quads of a group of destinations, and lays out what
// all warps read of their edges. kParts: as in cuda_radial_warp.h.
#include "tensor_product_conv/cuda_radial_warp.h"

namespace eqk::tensor_product_conv {

// The destination with which a group begins; groups have about equally many edges and destinations.
__device__ __forceinline__ int first_destination(const RadialEdgesArguments& a, std::int64_t group) {
  const std::int64_t before = (static_cast<std::int64_t>(a.edges) + a.destinations) * group / a.groups;
  int low = 0, high = a.destinations;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (a.row[middle] + static_cast<std::int64_t>(middle) < before)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// Of a group, the destinations from `begin` to `end`.
__device__ __forceinline__ int count_quads(const RadialEdgesArguments& a, int begin, int end) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int quads = 0;
#pragma unroll 1
  for (int first = begin; first < end; first += 32) {
    const int destination = first + lane;
    const int count = destination < end ? (a.row[destination + 1] - a.row[destination] + 3) / 4 : 0;
    int last = count;  // behind those of the lane
#pragma unroll
    for (int apart = 1; apart < 32; apart *= 2) {
      const int before = __shfl_up_sync(~0u, last, apart);
      if (lane >= apart) last += before;
    }
    if (destination < end) a.first_quad[destination] = quads + last - count;
    quads += __shfl_sync(~0u, last, 31);
  }
  return quads;
}

// Eight lanes have a tile, six of them its quads.
__device__ __forceinline__ void fill_tiles(const RadialEdgesArguments& a, int begin, int end, int quads,
                                           EdgeTile* tiles) {
  const int lane = static_cast<int>(threadIdx.x) % 32, count = (quads + kQuadsOfTile - 1) / kQuadsOfTile;
#pragma unroll 1
  for (int first = static_cast<int>(threadIdx.x) - lane; first < 8 * count; first += static_cast<int>(blockDim.x)) {
    const int n = (first + lane) / 8, q = lane % 8, quad = n * kQuadsOfTile + q;
    const bool of_tile = n < count && q < kQuadsOfTile, present = of_tile && quad < quads;
    int destination = begin, above = end;
    while (above - destination > 1) {
      const int middle = destination + (above - destination) / 2;
      if (a.first_quad[middle] <= quad)
        destination = middle;
      else
        above = middle;
    }
    const int row = a.row[destination], behind = a.row[destination + 1];
    const int place = row + 4 * (quad - a.first_quad[destination]);
    const bool ends = present && (place + 4 >= behind || (place + 4 - row) % kEdgesOfSum == 0);
    const unsigned all_ends = __ballot_sync(~0u, ends);
    if (!of_tile) continue;
    EdgeTile& tile = tiles[n];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const bool has_edge = present && place + e < behind;
      tile.edge[4 * q + e] = has_edge ? a.edge[place + e] : -1;
      tile.source[4 * q + e] = has_edge ? a.src[place + e] : -1;
    }
    if (q == 0) {
      tile.quads = min(quads - quad, kQuadsOfTile);
      tile.ends = static_cast<int>(all_ends >> (lane & 24) & 0xffu);
    }
    if (ends) tile.destination[q] = place - row >= kEdgesOfSum ? ~destination : destination;
  }
}

// Of a tile, features as the product reads them, in parts: four lanes have a column. Columns alternate between two
// quads, so that a lane gets the weights of one edge of each.
template <int kParts>
__device__ __forceinline__ void split_features(const RadialEdgesArguments& a, const EdgeTile& tile,
                                               unsigned char* operands) {
  const int lane = static_cast<int>(threadIdx.x) % 32, t = lane % 4, column = lane / 4;
#pragma unroll 1
  for (int n = 0; n < kTilesOfEdges; ++n) {
    const int edge = tile.edge[8 * n + 4 * (column % 2) + column / 2];
    const float* from = row_of(static_cast<const float*>(a.h.value) + 4 * t, max(edge, 0), a.h.stride);
    uint2* to = reinterpret_cast<uint2*>(operands) + (8 * n + column) * radial_h_row(a.steps, kParts) + t;
#pragma unroll 1
    for (int left = edge < 0 ? -4 * t : a.hidden - 4 * t, step = 0; step < a.steps;
         ++step, left -= kRadialDepth, from += kRadialDepth) {
      Pack<float, 4> v{};
      if (a.h_vectors)
        v.load_if(left > 0, from);
      else
#pragma unroll
        for (int e = 0; e < 4; ++e) v.set(e, e < left ? from[e] : 0.f);
      std::uint32_t word[2][kParts];
#pragma unroll
      for (int w = 0; w < 2; ++w) split(v.get<float>(2 * w), v.get<float>(2 * w + 1), word[w]);
#pragma unroll
      for (int p = 0; p < kParts; ++p, to += 4) *to = {word[0][p], word[1][p]};
    }
  }
}

// Sixteen lanes have an edge.
__device__ __forceinline__ void gather_y(const RadialEdgesArguments& a, const EdgeTile& tile, float* y) {
  const int lane = static_cast<int>(threadIdx.x) % 32, component = lane % kComponentsOfSet;
  const int l2 = (component >= 1) + (component >= 4) + (component >= 9), row = radial_y_row(a.sets);
#pragma unroll 1
  for (int set = 0; set < a.sets; ++set) {
    const int column = a.y_column[set][l2];
    const float* const from = static_cast<const float*>(a.y.value) + column + component - l2 * l2;
    float* to = y + lane / kComponentsOfSet * row + set * kComponentsOfSet + component;
#pragma unroll 4
    for (int e = lane / kComponentsOfSet; e < kRadialEdges; e += 32 / kComponentsOfSet) {
      const int edge = tile.edge[e];
      *to = edge >= 0 && column >= 0 ? *row_of(from, edge, a.y.stride) : 0.f;
      to += 32 / kComponentsOfSet * row;
    }
  }
}

// A warp looks at 32 destinations at a time.
__device__ __forceinline__ void clear_empty_rows(const RadialEdgesArguments& a, int begin, int end) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll 1
  for (int first = begin + static_cast<int>(threadIdx.x) - lane; first < end; first += static_cast<int>(blockDim.x)) {
    const int destination = first + lane;
    unsigned left = __ballot_sync(~0u, destination < end && a.row[destination] == a.row[destination + 1]);
#pragma unroll 1
    for (; left; left &= left - 1) {
      float* const out = a.out + (first + __ffs(left) - 1) * a.out_stride;
#pragma unroll 1
      for (int n = lane; n < a.out_columns; n += 32) out[n] = 0;
    }
  }
}

template <int kParts>
__device__ __forceinline__ void make_tiles(const RadialEdgesArguments& a) {
  __shared__ int quads_of_group;
  const int group = static_cast<int>(blockIdx.x);
  const int begin = first_destination(a, group), end = first_destination(a, group + 1);
  const auto first = static_cast<int>(first_tile(a.row[begin], begin, group));
  if (threadIdx.x < 32) {
    const int quads = count_quads(a, begin, end);
    if (threadIdx.x == 0) {
      quads_of_group = quads;
      a.group[group] = {first, (quads + kQuadsOfTile - 1) / kQuadsOfTile};
    }
  }
  __syncthreads();
  const int quads = quads_of_group, tiles = (quads + kQuadsOfTile - 1) / kQuadsOfTile;
  fill_tiles(a, begin, end, quads, a.tile + first);
  __syncthreads();
#pragma unroll 1
  for (int n = static_cast<int>(threadIdx.x) / 32; n < tiles; n += static_cast<int>(blockDim.x) / 32) {
    const EdgeTile& tile = a.tile[first + n];
    unsigned char* const operands = row_of(a.operands, first + n, radial_operand_bytes(a.steps, kParts, a.sets));
    split_features<kParts>(a, tile, operands);
    gather_y(a, tile, reinterpret_cast<float*>(operands + radial_h_bytes(a.steps, kParts)));
  }
  clear_empty_rows(a, begin, end);
}

}  // namespace eqk::tensor_product_conv
