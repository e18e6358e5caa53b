#pragma once
// What a call has beside tensors, as one string that python/eqk/so2_edge_message.py writes:
//
//   LMAX,MMAX,CHANNELS_IN,HIDDEN,CHANNELS_OUT,ACTIVATION,RESCALE,RECOMPUTE,S2PLAN
#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "core/macros.h"
#include "core/plan.h"
#include "s2_activation/plan.h"

namespace eqk::so2_edge_message {

enum class Activation { gate, s2, swiglu_s2 };
inline constexpr std::array<std::string_view, 3> kActivationNames{"gate", "s2", "swiglu_s2"};

// The functions of Layer and Plan are part of the kernels of each instruction set, so inlined everywhere.

// Of one linear layer; `extra` outputs of order 0 come before those of degree 0. Its parameters come one after another:
// the matrix of order 0, its bias, and of each order from 1 the matrix [A; B].
struct Layer {
  int lmax, mmax;
  std::int64_t in, out, extra;  // channels

  EQK_HD int degrees(int m) const { return lmax + 1 - m; }
  // Rows of lower orders; those of -m follow those of m.
  EQK_HD int first_row(int m) const { return m ? degrees(0) + (m - 1) * (degrees(1) + degrees(m - 1)) : 0; }
  EQK_HD int rows() const { return first_row(mmax) + (mmax ? 2 : 1) * degrees(mmax); }

  EQK_HD std::int64_t zero_rows() const { return degrees(0) * out + extra; }
  EQK_HD std::int64_t bias() const { return zero_rows() * degrees(0) * in; }
  EQK_HD std::int64_t half(int m) const { return degrees(m) * out * degrees(m) * in; }  // elements of A, and of B
  EQK_HD std::int64_t order(int m) const {
    std::int64_t first = bias() + zero_rows();
    for (int k = 1; k < m; ++k) first += 2 * half(k);
    return first;
  }
  EQK_HD std::int64_t numel() const { return order(mmax + 1); }
};

struct Plan {
  int lmax, mmax;
  std::int64_t channels_in, hidden, channels_out;
  Activation activation;
  bool rescale, recomputes, keeps_message;  // recomputes: the results of both layers, in the backward pass
  const s2_activation::Plan* s2;

  EQK_HD int rows() const { return second().rows(); }
  EQK_HD int components() const { return (lmax + 1) * (lmax + 1); }
  EQK_HD int orders() const {  // degrees and orders
    int sum = 0;
    for (int m = 0; m <= mmax; ++m) sum += lmax + 1 - m;
    return sum;
  }
  EQK_HD Layer first() const {
    const bool two = activation == Activation::swiglu_s2;
    const int extra = activation == Activation::gate ? lmax : two ? 3 : 1;
    return {lmax, mmax, channels_in, (two ? 2 : 1) * hidden, extra * hidden};
  }
  EQK_HD Layer second() const { return {lmax, mmax, hidden, channels_out, 0}; }
};

class PlanParser : private PlanReader {
 public:
  using PlanReader::PlanReader;

  Plan parse() {
    check_length();
    Plan plan{};
    plan.lmax = static_cast<int>(read(kMaxDegree, 0));
    plan.mmax = static_cast<int>(read(plan.lmax, 0));
    for (std::int64_t* n : {&plan.channels_in, &plan.hidden, &plan.channels_out}) *n = read(999999999, 1);
    const std::string_view name = text_.substr(at_, text_.find(',', at_) - at_);
    const auto found = std::find(kActivationNames.begin(), kActivationNames.end(), name);
    if (found == kActivationNames.end()) fail("an activation");
    plan.activation = static_cast<Activation>(found - kActivationNames.begin());
    expect(name);
    expect(",");
    plan.rescale = read(1, 0);
    const std::int64_t recompute = read(2, 0);
    plan.recomputes = recompute == 1;
    plan.keeps_message = recompute < 2;
    for (const Layer& layer : {plan.first(), plan.second()})  // no product of sizes overflows
      product(product(4 * plan.components(), layer.in), product(plan.components(), layer.out + layer.extra));
    if (plan.activation == Activation::gate) {
      expect_end();
      return plan;
    }
    plan.s2 = s2_activation::cached_plan(std::string(text_.substr(at_)));
    for (const std::int64_t dim : plan.s2->dim)
      if (dim != plan.rows() * plan.hidden) fail("the plan of an activation of all rows and hidden channels");
    return plan;
  }

 private:
  std::int64_t read(std::int64_t most, std::int64_t least) {
    const std::int64_t n = read_integer(most, "a number");
    if (n < least) fail("a positive number");
    expect(",");
    return n;
  }
};

inline const Plan* cached_plan(const std::string& text) {
  return cached(text, [&] {
    try {
      return PlanParser(text).parse();
    } catch (const PlanError&) {
      throw PlanError(
          "plan: expected 'LMAX,MMAX,CHANNELS_IN,HIDDEN,CHANNELS_OUT,ACTIVATION,RESCALE,RECOMPUTE,S2PLAN' with one of "
          "gate, s2, swiglu_s2, got " +
          excerpt(std::string_view(text).substr(0, 200)));
    }
  });
}

}  // namespace eqk::so2_edge_message
