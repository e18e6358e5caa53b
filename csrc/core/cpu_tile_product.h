#pragma once
// PanelProduct of floats on matrix tiles, which multiply numbers of bfloat16 and add in float, sixteen times as many as
// vectors multiply floats. A float is the sum of three numbers of bfloat16, exactly: its first eight bits, those of
// what is left, and those of what that leaves. Six of the nine products are all that float can tell, the others being
// smaller than its last bit; so that the result is as accurate as one of floats, and what is not finite makes NaN.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "core/lanes.h"
#include "core/matrix_tiles.h"
#include "core/panel_product.h"

namespace eqk {
inline namespace EQK_ISA {

#if defined(__AVX512F__) && defined(__AVX512BW__)

namespace tiles {

inline constexpr int kParts = 3;
// Of a tile: rows, or columns of a result; of a left factor's row and, in pairs, a right factor's column.
inline constexpr std::int64_t kSide = 16, kDepth = 32, kBytes = 1024;
// What is split at a time: of a right factor two columns of tiles, of a left one so many rows, and as deep as stays in
// a cache, since results go to memory once a depth.
inline constexpr std::int64_t kRowBlock = 256, kMinDepth = 256, kMaxDepth = 1024, kLeftBytes = 768 << 10;

// Of eight tiles, of which the first four are results. `n` and `to` are constants.
class Amx {
 public:
  Amx() {
    struct {
      std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
      std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shape;
    static_assert(sizeof(shape) == 64);
    asm volatile("ldtilecfg %0" ::"m"(shape));
  }
  ~Amx() { asm volatile("tilerelease"); }
  Amx(const Amx&) = delete;

  template <int n>
  EQK_HD void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(n));
  }
  template <int n>
  EQK_HD void load(const void* from, std::int64_t row_bytes) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(n), "r"(from), "r"(row_bytes) : "memory");
  }
  template <int n>
  EQK_HD void store(void* to, std::int64_t row_bytes) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(n), "r"(to), "r"(row_bytes) : "memory");
  }
  template <int to, int a, int b>
  EQK_HD void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(to), "i"(a), "i"(b));
  }
};

class Emulated {
 public:
  template <int n>
  void zero() {
    std::memset(tile_[n], 0, kBytes);
  }
  template <int n>
  void load(const void* from, std::int64_t row_bytes) {
    for (int r = 0; r < kSide; ++r)
      std::memcpy(tile_[n] + 64 * r, static_cast<const std::byte*>(from) + r * row_bytes, 64);
  }
  template <int n>
  void store(void* to, std::int64_t row_bytes) {
    for (int r = 0; r < kSide; ++r) std::memcpy(static_cast<std::byte*>(to) + r * row_bytes, tile_[n] + 64 * r, 64);
  }
  template <int to, int a, int b>
  void multiply() {
    using V = Vector<float, kSide>;
    for (int r = 0; r < kSide; ++r) {
      V even{}, odd{};
      for (int k = 0; k < kSide; ++k) {
        std::uint32_t pair;
        std::memcpy(&pair, tile_[a] + 64 * r + 4 * k, 4);
        const auto column = load_pairs(tile_[b] + 64 * k);
        even += __builtin_bit_cast(float, pair << 16) * __builtin_bit_cast(V, column << 16);
        odd += __builtin_bit_cast(float, pair & 0xffff0000u) * __builtin_bit_cast(V, column & 0xffff0000u);
      }
      auto* const sum = reinterpret_cast<float*>(tile_[to] + 64 * r);
      eqk::store<float, kSide>(sum, eqk::load<float, kSide>(sum) + (even + odd));
    }
  }

 private:
  alignas(64) std::byte tile_[8][kBytes];
  static Vector<std::uint32_t, kSide> load_pairs(const std::byte* from) {
    return eqk::load<std::uint32_t, kSide>(reinterpret_cast<const std::uint32_t*>(from));
  }
};

using Bits = Vector<std::uint32_t, kSide>;
using Floats = Vector<float, kSide>;

// f(part, pairs): lanes of the first and second as pairs of bfloat16, the first in the lower half.
template <class F>
EQK_HD void for_parts(Floats first, Floats second, const F& f) {
  unroll<kParts>([&](auto part) EQK_LAMBDA {
    const Bits a = __builtin_bit_cast(Bits, first), b = __builtin_bit_cast(Bits, second) & 0xffff0000u;
    f(part, (a >> 16) | b);
    if constexpr (part + 1 < kParts) {
      first -= __builtin_bit_cast(Floats, a & 0xffff0000u);
      second -= __builtin_bit_cast(Floats, b);
    }
  });
}

EQK_HD void store_row(std::byte* to, Bits row) {
  store<std::uint32_t, kSide>(reinterpret_cast<std::uint32_t*>(to), row);
}

inline std::int64_t tiles_of(std::int64_t n, std::int64_t size) { return (n + size - 1) / size; }

// Lanes are numbers of columns of which `pitch` are apart: of a tile's pairs of depths a row each.
EQK_HD void split_pairs(const float* from, std::int64_t pitch, std::int64_t depth, std::int64_t width, std::byte* to) {
  for (std::int64_t k = 0; k < kSide; ++k)
    for_parts(2 * k < depth ? load_n<float, kSide>(from + 2 * k * pitch, width) : Floats{},
              2 * k + 1 < depth ? load_n<float, kSide>(from + (2 * k + 1) * pitch, width) : Floats{},
              [&](auto part, Bits pairs) EQK_LAMBDA { store_row(to + part * kBytes + 64 * k, pairs); });
}

// The left factor: tile after tile of a row of them, each in three parts.
inline void split_left(const PanelProduct<float>& p, const float* a, std::int64_t rows, std::int64_t depth,
                       std::byte* to) {
  for (std::int64_t r = 0; r < rows; r += kSide)
    for (std::int64_t d = 0; d < depth; d += kDepth, to += kParts * kBytes) {
      const std::int64_t there = std::min(kSide, rows - r), deep = std::min(kDepth, depth - d);
      const float* const from = a + r * p.a_row + d * p.a_depth;
      if (p.a_row == 1) {
        split_pairs(from, p.a_depth, deep, there, to);
        for (int part = 0; part < kParts; ++part) {
          Floats tile[kSide];
          auto* const rows_of = reinterpret_cast<float*>(to + part * kBytes);
          for (int k = 0; k < kSide; ++k) tile[k] = load<float, kSide>(rows_of + kSide * k);
          transpose<float, kSide>(tile);
          for (int k = 0; k < kSide; ++k) store<float, kSide>(rows_of + kSide * k, tile[k]);
        }
        continue;
      }
      for (std::int64_t n = 0; n < kSide; ++n) {
        Floats first{}, second{};
        if (n < there) {
          first = load_n<float, kSide>(from + n * p.a_row, deep);
          if (deep > kSide) second = load_n<float, kSide>(from + n * p.a_row + kSide, deep - kSide);
        }
        // Pairs of neighbours.
        const auto even = __builtin_bit_cast(
            Floats,
            _mm512_permutex2var_epi32(__builtin_bit_cast(__m512i, first),
                                      _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30),
                                      __builtin_bit_cast(__m512i, second)));
        const auto odd = __builtin_bit_cast(
            Floats,
            _mm512_permutex2var_epi32(__builtin_bit_cast(__m512i, first),
                                      _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31),
                                      __builtin_bit_cast(__m512i, second)));
        for_parts(even, odd, [&](auto part, Bits pairs) EQK_LAMBDA { store_row(to + part * kBytes + 64 * n, pairs); });
      }
    }
}

// Columns of the right factor, of which `from` has the first depth: column after column of tiles, each in three parts.
inline void split_right(const float* from, std::int64_t pitch, std::int64_t depth, std::int64_t columns,
                        std::byte* to) {
  for (std::int64_t c = 0; c < columns; c += kSide)
    for (std::int64_t d = 0; d < depth; d += kDepth, to += kParts * kBytes)
      split_pairs(from + d * pitch + c, pitch, std::min(kDepth, depth - d), kSide, to);
}

// Two rows and two columns of tiles, or one of either. What is smallest comes first.
template <int Rows, int Columns, class Unit>
EQK_HD void multiply_tiles(Unit& unit, std::int64_t deep, const std::byte* a, std::int64_t a_next, const std::byte* b,
                           std::int64_t b_next) {
  const auto left = [&](int part) EQK_LAMBDA {
    unit.template load<4>(a + part * kBytes, 64);
    if constexpr (Rows > 1) unit.template load<5>(a + a_next + part * kBytes, 64);
  };
  const auto right = [&](int part) EQK_LAMBDA {
    unit.template load<6>(b + part * kBytes, 64);
    if constexpr (Columns > 1) unit.template load<7>(b + b_next + part * kBytes, 64);
  };
  const auto product = [&]() EQK_LAMBDA {
    unit.template multiply<0, 4, 6>();
    if constexpr (Columns > 1) unit.template multiply<1, 4, 7>();
    if constexpr (Rows > 1) unit.template multiply<2, 5, 6>();
    if constexpr (Rows > 1 && Columns > 1) unit.template multiply<3, 5, 7>();
  };
  for (std::int64_t d = 0; d < deep; ++d, a += kParts * kBytes, b += kParts * kBytes) {
    left(0), right(2), product();
    right(1), product();
    left(1), product();
    right(0), product();
    left(2), product();
    left(0), product();
  }
}

// A result of these tiles: to c, or what is there is added to.
template <int Rows, int Columns, class Unit>
void multiply_block(Unit& unit, std::int64_t deep, const std::byte* a, std::int64_t a_next, const std::byte* b,
                    std::int64_t b_next, float* c, std::int64_t c_row, std::int64_t rows, std::int64_t columns,
                    bool add, std::int64_t copy) {
  const std::int64_t row_bytes = c_row * static_cast<std::int64_t>(sizeof(float));
  const auto each = [&](const auto& f) EQK_LAMBDA {
    f(constant<0>{}, c);
    if constexpr (Columns > 1) f(constant<1>{}, c + kSide);
    if constexpr (Rows > 1) f(constant<2>{}, c + kSide * c_row);
    if constexpr (Rows > 1 && Columns > 1) f(constant<3>{}, c + kSide * c_row + kSide);
  };
  const bool whole = rows == Rows * kSide && columns == Columns * kSide;
  // Lines of the result come while products run.
  for (std::int64_t r = 0; r < rows; ++r)
    unroll<Columns>([&](auto n) EQK_LAMBDA { __builtin_prefetch(c + r * c_row + n * kSide, 1); });
  each([&](auto n, float* at) EQK_LAMBDA {
    if (whole && add)
      unit.template load<n>(at, row_bytes);
    else
      unit.template zero<n>();
  });
  multiply_tiles<Rows, Columns>(unit, deep, a, a_next, b, b_next);
  if (whole) {
    each([&](auto n, float* at) EQK_LAMBDA {
      unit.template store<n>(at, row_bytes);
      if (copy) unit.template store<n>(at + copy, row_bytes);
    });
    return;
  }
  each([&](auto n, float* at) EQK_LAMBDA {
    alignas(64) float part[kSide * kSide];
    unit.template store<n>(part, 64);
    const std::int64_t there = std::min(kSide, rows - n / 2 * kSide), wide = std::min(kSide, columns - n % 2 * kSide);
    for (std::int64_t r = 0; r < there; ++r) {
      float* const to = at + r * c_row;
      const Floats sum = load<float, kSide>(part + kSide * r);
      const Floats result = add ? load_n<float, kSide>(to, wide) + sum : sum;
      store_n<float, kSide>(to, result, wide);
      if (copy) store_n<float, kSide>(to + copy, result, wide);
    }
  });
}

// The rows of some split columns.
template <int Columns, class Unit>
void multiply_columns(Unit& unit, std::int64_t deep, const std::byte* a, const std::byte* b, std::int64_t b_next,
                      float* c, std::int64_t c_row, std::int64_t rows, std::int64_t columns, bool add,
                      std::int64_t copy) {
  const std::int64_t next = deep * kParts * kBytes;
  for (; rows > kSide; rows -= 2 * kSide, a += 2 * next, c += 2 * kSide * c_row)
    multiply_block<2, Columns>(unit, deep, a, next, b, b_next, c, c_row, std::min(rows, 2 * kSide), columns, add, copy);
  if (rows > 0) multiply_block<1, Columns>(unit, deep, a, next, b, b_next, c, c_row, rows, columns, add, copy);
}

template <class Unit>
void multiply(const PanelProduct<float>& p, std::int64_t panel) {
  Unit unit;
  constexpr std::int64_t kTile = kParts * kBytes;
  const std::int64_t high = tiles_of(std::min(p.rows, kRowBlock), kSide), all = tiles_of(p.depth, kDepth) * kTile;
  const std::int64_t block = std::clamp(kLeftBytes / (high * kTile) * kDepth, kMinDepth, kMaxDepth);
  const std::int64_t deepest = tiles_of(std::min(p.depth, block), kDepth);
  std::byte* const left = tile_scratch((high + 2) * deepest * kTile);
  std::byte* const scratch = left + high * deepest * kTile;
  for (std::int64_t r = 0; r < p.rows; r += kRowBlock)
    for (std::int64_t d = 0; d < p.depth; d += block) {
      const std::int64_t rows = std::min(kRowBlock, p.rows - r), depth = std::min(block, p.depth - d);
      const std::int64_t deep = tiles_of(depth, kDepth), b_next = p.split ? all : deep * kTile;
      const bool add = p.add || d > 0;
      const std::int64_t copy = d + depth < p.depth ? 0 : p.copy;
      split_left(p, p.a + r * p.a_row + d * p.a_depth, rows, depth, left);
      for (std::int64_t q = 0; q < p.columns; q += 2 * kSide) {
        const std::int64_t columns = std::min(2 * kSide, p.columns - q);
        const std::byte* right = scratch;
        if (p.split)
          right = p.split + q / kSide * all + d / kDepth * kTile;
        else
          for (std::int64_t c = q; c < q + columns; c += kSide)
            split_right(p.b + c / panel * p.b_panel + d * p.b_depth + c % panel, p.b_depth, depth, kSide,
                        scratch + (c - q) / kSide * b_next);
        const auto of = columns > kSide ? &multiply_columns<2, Unit> : &multiply_columns<1, Unit>;
        of(unit, deep, left, right, b_next, p.c + r * p.c_row + q, p.c_row, rows, columns, add, copy);
      }
    }
}

}  // namespace tiles

// Whether tiles are faster than vectors: 512 multiply-adds a cycle, six for one, of whole tiles, and a third of a cycle
// for each number of a factor that is split, instead of 32.
inline bool worth_tiles(const PanelProduct<float>& p) {
  if ((p.a_depth != 1 && p.a_row != 1) || p.rows < 1 || p.depth < 1) return false;
  const auto whole = [](std::int64_t n, std::int64_t size) { return tiles::tiles_of(n, size) * size; };
  const std::int64_t rows = whole(p.rows, tiles::kSide), columns = whole(p.columns, tiles::kSide);
  const std::int64_t split = 160 * p.depth * (p.rows + (p.split ? 0 : p.columns));
  return 6 * rows * columns * whole(p.depth, tiles::kDepth) + split < 16 * p.rows * p.columns * p.depth;
}

inline std::int64_t split_bytes(std::int64_t depth, std::int64_t columns) {
  if (tile_unit() == TileUnit::none) return 0;
  return tiles::tiles_of(columns, tiles::kSide) * tiles::tiles_of(depth, tiles::kDepth) * tiles::kParts * tiles::kBytes;
}

inline void split_panel(const float* b, std::int64_t b_depth, std::int64_t depth, std::int64_t first,
                        std::int64_t columns, std::byte* to) {
  const std::int64_t column = tiles::tiles_of(depth, tiles::kDepth) * tiles::kParts * tiles::kBytes;
  tiles::split_right(b, b_depth, depth, columns, to + first / tiles::kSide * column);
}

// Whether they ran; `panel`: columns of one.
inline bool multiply_on_tiles(const PanelProduct<float>& p, std::int64_t panel) {
  const TileUnit unit = tile_unit();
  if (unit == TileUnit::none || (p.b && !worth_tiles(p))) return false;
  const auto multiply = unit == TileUnit::amx ? &tiles::multiply<tiles::Amx> : &tiles::multiply<tiles::Emulated>;
  multiply(p, panel);
  return true;
}

#else

inline bool multiply_on_tiles(const PanelProduct<float>&, std::int64_t) { return false; }
inline std::int64_t split_bytes(std::int64_t, std::int64_t) { return 0; }
inline void split_panel(const float*, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::byte*) {}

#endif

}  // namespace EQK_ISA
}  // namespace eqk
