#pragma once
// The description of a function applied to signals on the sphere, which travels through the ops as one string:
//
//   CxL -> L MMAX ORDER FUNCTION GAIN BETAxALPHA QUADRATURE [LAYOUT,LAYOUT] {SCALES; SCALES}
//   128x4 -> 4 4 l_primary silu 1.0 7x13 gausslegendre [ir_mul,ir_mul] {1.0 1.0 1.0 1.0 1.0; 1.0 1.0 1.0 1.0 1.0}
//
// Components are those of |m| <= MMAX. Scales: of each degree of x and of the result. python/eqk/s2_activation_plan.py
// writes the same grammar.
#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/cached.h"
#include "core/plan.h"

namespace eqk::s2_activation {

enum class Function { identity, square, cube, quartic, relu, abs, sigmoid, silu, tanh, gelu, softplus, ssp };
inline constexpr std::array<std::string_view, 12> kFunctionNames{
    "identity", "square", "cube", "quartic", "relu", "abs", "sigmoid", "silu", "tanh", "gelu", "softplus", "ssp"};

// Of components: by degree, m ascending; or by |m|, those of cosines by degree and then those of sines (eSCN).
enum class Order { l_primary, m_primary };
inline constexpr std::array<std::string_view, 2> kOrderNames{"l_primary", "m_primary"};

enum class Quadrature { gausslegendre, soft };
inline constexpr std::array<std::string_view, 2> kQuadratureNames{"gausslegendre", "soft"};

inline constexpr int kMaxResolution = 1024;

struct Side {
  int lmax;
  int mmax;  // at most lmax
  Layout layout;
  std::vector<double> scale;

  int components() const { return (mmax + 1) * (mmax + 1) + (lmax - mmax) * (2 * mmax + 1); }
};

struct Plan {
  std::int64_t channels = 0;
  std::array<Side, 2> of;  // x, the result
  std::array<std::int64_t, 2> dim{};
  Order order{};
  Function function{};
  double gain = 1;
  int res_beta = 0, res_alpha = 0;
  Quadrature quadrature{};
};

class PlanParser : private PlanReader {
 public:
  using PlanReader::PlanReader;

  Plan parse() {
    check_length();
    Plan plan;
    plan.channels = read_integer(std::int64_t{1} << 31, "a number of signals");
    expect("x");
    plan.of[0].lmax = read_degree();
    expect("->");
    plan.of[1].lmax = read_degree();
    const int mmax = read_degree();
    for (Side& side : plan.of) side.mmax = std::min(side.lmax, mmax);
    plan.order = static_cast<Order>(read_name(kOrderNames, "l_primary or m_primary"));
    plan.function = static_cast<Function>(read_name(kFunctionNames, "the name of a function"));
    plan.gain = read_coefficient();
    plan.res_beta = read_resolution();
    expect("x");
    plan.res_alpha = read_resolution();
    skip_space();
    const std::size_t start = at_;
    plan.quadrature = static_cast<Quadrature>(read_name(kQuadratureNames, "gausslegendre or soft"));
    if (plan.quadrature == Quadrature::soft && plan.res_beta % 2) {
      at_ = start;
      fail("an even number of rings of quadrature soft");
    }
    expect("[");
    plan.of[0].layout = read_layout();
    expect(",");
    plan.of[1].layout = read_layout();
    for (const Side& side : plan.of)
      if (side.layout == Layout::mul_ir && (side.mmax < side.lmax || plan.order == Order::m_primary))
        fail("layout ir_mul of components that are not all of each degree");
    expect("]");
    expect("{");
    for (int s = 0; s < 2; ++s) {
      if (s) expect(";");
      for (int l = 0; l <= plan.of[s].lmax; ++l) plan.of[s].scale.push_back(read_coefficient());
      plan.dim[s] = product(plan.channels, plan.of[s].components());
    }
    expect("}");
    expect_end();
    return plan;
  }

 private:
  int read_degree() { return static_cast<int>(read_integer(kMaxDegree, "a degree l")); }

  int read_resolution() {
    skip_space();
    const std::size_t start = at_;
    const auto n = read_integer(kMaxResolution, "a resolution");
    if (n == 0) {
      at_ = start;
      fail("a resolution of at least 1");
    }
    return static_cast<int>(n);
  }
};

inline const Plan* cached_plan(const std::string& text) {
  return cached(text, [&] { return PlanParser(text).parse(); });
}

}  // namespace eqk::s2_activation
