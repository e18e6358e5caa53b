#pragma once
// Intel's AMX: a core has eight tiles, matrices of 16 rows of 64 bytes, and an instruction for the product of two.
#include <cstddef>

namespace eqk {

// Emulated: the same arithmetic, but for numbers that AMX takes for zero, on any machine that has AVX-512.
enum class TileUnit { none, amx, emulated };

// In library.cpp, so that the code is none of those compiled for one instruction set.
TileUnit tile_unit();
// Of this thread, the same from one call to the next, at the start of a cache line.
std::byte* tile_scratch(std::size_t bytes);

}  // namespace eqk
