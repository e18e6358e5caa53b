#pragma once
// The description of a product of signals on the sphere that travels through the ops as one readable string:
//
//   C1xL1 * C2xL2 -> CxL even COEFFICIENT odd COEFFICIENT rank R [LAYOUT1,LAYOUT2,LAYOUT] {SCALES; SCALES; SCALES}
//   128x2 * 1x2 -> 128x2 even 1.0 odd 0.0 rank 1 [ir_mul,ir_mul,ir_mul] {1.0 1.0 1.0; 1.0 1.0 1.0; 1.0 1.0 1.0}
//
// CxL: C signals of degrees 0 to L. Of the two factors one may be a single signal, which multiplies all of the other.
// Scales: of each degree of x, of y and of the result. python/eqk/gaunt_plan.py writes the same grammar.
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "core/cached.h"
#include "core/plan.h"

namespace eqk::gaunt_product {

inline constexpr std::int64_t kMaxRank = 4096;

struct Signals {
  std::int64_t channels;
  int lmax;
  Layout layout;
  std::vector<double> scale;

  int components() const { return (lmax + 1) * (lmax + 1); }
};

struct Plan {
  std::array<Signals, 3> of;  // x, y, result
  std::array<std::int64_t, 3> dim{};
  double even = 0, odd = 0;
  std::int64_t rank = 1;

  std::int64_t channels() const { return of[2].channels; }
};

class PlanParser : private PlanReader {
 public:
  using PlanReader::PlanReader;

  Plan parse() {
    check_length();
    Plan plan;
    read_signals(plan, 0);
    expect("*");
    read_signals(plan, 1);
    expect("->");
    skip_space();
    const std::size_t start = at_;
    read_signals(plan, 2);
    const std::int64_t c1 = plan.of[0].channels, c2 = plan.of[1].channels, c = c1 == 1 ? c2 : c1;
    if (plan.channels() != c || (c2 != 1 && c2 != c)) {
      at_ = start;
      fail("as many signals in the result as in both factors, of which one may be single");
    }
    expect("even");
    plan.even = read_coefficient();
    expect("odd");
    plan.odd = read_coefficient();
    expect("rank");
    skip_space();
    const std::size_t of_rank = at_;
    plan.rank = read_integer(kMaxRank, "a rank");
    if (plan.rank == 0) {
      at_ = of_rank;
      fail("a rank of at least 1");
    }
    expect("[");
    for (int s = 0; s < 3; ++s) {
      if (s) expect(",");
      plan.of[s].layout = read_layout();
    }
    expect("]");
    expect("{");
    for (int s = 0; s < 3; ++s) {
      if (s) expect(";");
      for (int l = 0; l <= plan.of[s].lmax; ++l) plan.of[s].scale.push_back(read_coefficient());
    }
    expect("}");
    expect_end();
    return plan;
  }

 private:
  void read_signals(Plan& plan, int s) {
    plan.of[s].channels = read_integer(std::int64_t{1} << 31, "a number of signals");
    expect("x");
    plan.of[s].lmax = static_cast<int>(read_integer(kMaxDegree, "a degree l"));
    plan.dim[s] = product(plan.of[s].channels, plan.of[s].components());
  }
};

inline const Plan* cached_plan(const std::string& text) {
  return cached(text, [&] { return PlanParser(text).parse(); });
}

}  // namespace eqk::gaunt_product
