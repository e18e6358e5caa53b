#pragma once
// What the host and the kernels of the convolution with weights h a agree on, free of torch and of CUDA headers.
//
// Weights are products on tensor cores, of the transposed matrix with features: 16 channels of a path by 8 edges. The
// numbers are sums of two or three of bfloat16, whose products are added up in float32: all but the smallest. A warp
// runs one unit for a slice of 32 channels, on a tile of 24 edges at a time. The warps of a team do so for the units of
// one segment of x, whose rows they share, in one slice or several. The teams of a block run tiles one after the other,
// so that the block's part of the matrix stays in shared memory.
//
// A first kernel makes the tiles. Edges of a destination are cut into quads, which the four lanes that have the same
// channels take at once, and six quads are a tile, of whichever destinations: the matrix is read once for all of them.
// Destinations are cut into groups that begin a tile, so that teams share no sum.
#include "tensor_product_conv/cuda_units.h"

namespace eqk::tensor_product_conv {

inline constexpr int kRadialChannels = 32;  // of a warp: two tiles of 16
inline constexpr int kTilesOfEdges = 3;     // of 8
inline constexpr int kRadialEdges = 8 * kTilesOfEdges;
inline constexpr int kQuadsOfTile = kRadialEdges / 4;
inline constexpr int kRadialDepth = 16;      // features of a step of the product
inline constexpr int kRadialWarps = 8;       // of a block, at most: 255 registers a thread
inline constexpr int kThreadsOfGroup = 128;  // of the kernel that makes tiles

// What a tile is made of, in the order of its quads. ends: bit q, that quad q is the last of a sum, whose destination
// there is then, or ~destination: it is added to what is there.
struct EdgeTile {
  std::int32_t edge[kRadialEdges], source[kRadialEdges];  // -1: none
  std::int32_t quads, ends, destination[kQuadsOfTile];
};

// Tiles of a group of destinations.
struct TileRange {
  std::int32_t first, count;
};

// y has a set of 16 components for units that read the same segments, one of each degree.
inline constexpr int kSetsOfY = 16, kComponentsOfSet = 16;

// Of the kernel that makes the tiles, a block for each group.
struct RadialEdgesArguments {
  Rows y, h;
  // By the place of an edge in the order of destinations; row[d] to row[d + 1] are the places of destination d.
  const std::int32_t *row, *edge, *src;
  std::int32_t *first_quad;  // of a destination, in its group
  TileRange *group;
  EdgeTile *tile;
  unsigned char *operands;  // of tiles: split features by column of the product, and components of y by edge
  float *out;               // of which the kernel writes rows without edges
  std::int64_t out_stride;
  std::int32_t out_columns;
  std::int32_t edges, destinations, groups, hidden, steps, h_vectors, sets;
  std::int32_t y_column[kSetsOfY][4];  // of the segment of each degree, or -1
};

struct RadialArguments {
  Rows x;
  const float *matrix;
  std::int64_t matrix_stride;
  float *out;
  std::int64_t out_stride;
  const TileRange *group;
  const EdgeTile *tile;
  const unsigned char *operands;
  std::int32_t groups, hidden, steps, sets;  // steps: of the product
  std::int32_t x_mul_ir, out_mul_ir;
  // Whether memory and registers exchange vectors: of rows of x, of the matrix, of results.
  std::int32_t x_vectors, matrix_vectors, out_vectors;
  std::int32_t segments;
  std::int32_t blocks;                               // for each tile of channels
  std::int32_t teams, slices, warps;                 // of a block, of a team, of a slice of channels
  std::int32_t matrix_bytes, team_bytes, own_bytes;  // of shared memory: of a slice, of a team, of a warp
  XRecord segment[kUnitsOfLaunch];
  UnitRecord unit[kUnitsOfLaunch];  // y[0]: where the set of its components of y begins
};
static_assert(sizeof(RadialArguments) <= 4096, "more than a kernel's parameters may take");

constexpr int slot_count(std::int32_t slots) {
  int n = 0;
  for (; slots; slots &= slots - 1) ++n;
  return n;
}

// Of the matrix, in bytes: what a step of the product reads for a slot of a warp's 32 channels.
constexpr int radial_step_bytes(int parts) { return 2 * parts * 32 * 16; }

// Of an edge's row of x in shared memory, in elements: eight more than its channels take, so that lanes that read
// adjacent edges at once find them in different banks.
constexpr int radial_x_row(int l1) { return kRadialChannels * (2 * l1 + 1) + 8; }
constexpr int radial_x_bytes(int l1) { return 4 * kRadialEdges * radial_x_row(l1); }

// Of an edge's features, in pairs of words, one for each step, part and lane of four, and of its components of y, in
// elements: an odd number of fours, for the banks.
constexpr EQK_HD int radial_h_row(int steps, int parts) { return 4 * (steps * parts | 1); }
constexpr EQK_HD int radial_y_row(int sets) { return 4 * (kComponentsOfSet / 4 * sets | 1); }

// Of a tile's features, and of these and y.
constexpr EQK_HD int radial_h_bytes(int steps, int parts) { return 8 * kRadialEdges * radial_h_row(steps, parts); }
constexpr EQK_HD int radial_operand_bytes(int steps, int parts, int sets) {
  return radial_h_bytes(steps, parts) + 4 * kRadialEdges * radial_y_row(sets);
}

// Where the tiles of a group have room, whose first destination has its edges from a place on: the quads of e edges
// have room for e + 3 at most, and for 4 e.
constexpr EQK_HD std::int64_t first_tile(std::int64_t place, std::int64_t destination, std::int64_t group) {
  const std::int64_t few = place + 3 * destination, many = 4 * place;
  return (few < many ? few : many) / kRadialEdges + group;
}

// From the sums of one pair of lanes that have the same channels to those of the other: sixteen more than the channels
// take, for the banks.
template <class U>
constexpr EQK_HD int radial_sums() {
  return kRadialChannels * (2 * U::largest_l3() + 1) + 16;
}

// Of a warp's own shared memory: sums of a slot.
template <class U>
inline constexpr int kRadialOwnBytes = 8 * radial_sums<U>();

}  // namespace eqk::tensor_product_conv
