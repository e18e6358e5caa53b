#pragma once
// What the host and the kernels agree on. A kernel is for signals of degrees 0 to L or less, all of as many channels,
// in float32 and layout ir_mul, without weights.
#include <array>
#include <cstdint>

#include "core/divisor.h"

namespace eqk::gaunt_product {

inline constexpr int kKernelDegrees = 6;
inline constexpr int kThreads = 128;

// The product, the bracket, or both.
enum class Kind { even, odd, all };

inline constexpr std::array kKinds{"even", "odd", "all"};

// One of the products that the family consists of, or two: the gradients of x and y, from x, y and g.
enum class Member { forward, backward };

inline constexpr std::array kMembers{"forward", "backward"};

// The rings of a kernel and the tables in its parameters, of half of them: [pair of rings][table][entry of l and m].
// The tables are value and, but for the product alone, slope of each operand, then analysis of each result (lowered.h).
struct TableShape {
  int lmax, rings, inputs, outputs, of_input;

  constexpr TableShape(Member member, Kind kind, int lmax)
      : lmax(lmax),
        rings(3 * lmax / 2 + 1),
        inputs(member == Member::forward ? 2 : 3),
        outputs(member == Member::forward ? 1 : 2),
        of_input(kind == Kind::even ? 1 : 2) {}

  constexpr int pairs() const { return rings / 2; }
  constexpr bool equator() const { return rings % 2; }
  constexpr int entries() const { return (lmax + 1) * (lmax + 2) / 2; }
  constexpr int of_ring() const { return (inputs * of_input + outputs) * entries(); }
  constexpr int numbers() const { return (pairs() + equator()) * of_ring(); }
  constexpr int input(int s) const { return s * of_input * entries(); }
  constexpr int output(int s) const { return (inputs * of_input + s) * entries(); }
  static constexpr int entry(int l, int m) { return l * (l + 1) / 2 + m; }
};

struct SignalsIn {
  const float* data = nullptr;
  std::int64_t stride = 0;
  int lmax = 0;
  int unused = 0;  // bytes of launches are compared
};

struct SignalsOut {
  float* data = nullptr;
  std::int64_t stride = 0;
  int lmax = 0;
  int add = 0;  // to what is there
};

// in: the two factors, or x, y, g; out: their product, or the gradients of x and y.
struct SignalArguments {
  std::array<SignalsIn, 3> in;
  std::array<SignalsOut, 2> out;
  std::int64_t rows = 0;
  Divisor channels;
};

template <int numbers>
struct Arguments {
  SignalArguments signals;
  float table[numbers];
};

}  // namespace eqk::gaunt_product
