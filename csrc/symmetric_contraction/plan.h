#pragma once
// The description of a symmetric contraction that travels through the ops as one readable string:
//
//   IN -> OUT [LAYOUT_IN,LAYOUT_OUT] {IO: COEFFICIENT CHAIN, COEFFICIENT CHAIN; ...}
//   1x0e+1x1o -> 1x0e+1x1o [mul_ir,mul_ir] {0: 1.0 0; 0: 0.5 1*1>0; 1: 1.0 0*1>1*0>1, -1.0 0*0>0*1>1}
//
// Each irrep of IN and OUT has multiplicity 1: channels are a dimension of their own. A path, from one ':' to the ';',
// is a sum of chains, possibly of none, and has one weight for each channel. A chain multiplies x by itself from left
// to right: 0*1>1*0>1 couples irrep 0 with irrep 1 to degree 1, and that with irrep 0 to degree 1, by Wigner 3j symbols
// of unit norm. python/eqk/symmetric_contraction_plan.py writes the same grammar.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/cached.h"
#include "core/plan.h"

namespace eqk::symmetric_contraction {

inline constexpr int kMaxCorrelation = 4;

// Couples what is there so far, of degree `from`, with an irrep of x to degree `to`.
struct Coupling {
  int from, irrep, to;
};

struct Chain {
  double coefficient;
  int first;
  std::vector<Coupling> couplings;
};

struct Path {
  int out;
  std::vector<Chain> chains;
};

struct Plan {
  std::vector<Segment> in, out;
  std::int64_t dim_in = 0, dim_out = 0;
  Layout layout_in{}, layout_out{};
  std::vector<Path> paths;
};

class PlanParser : private PlanReader {
 public:
  using PlanReader::PlanReader;

  Plan parse() {
    check_length();
    Plan plan;
    plan.in = read_single_irreps(plan.dim_in);
    expect("->");
    plan.out = read_single_irreps(plan.dim_out);
    expect("[");
    plan.layout_in = read_layout();
    expect(",");
    plan.layout_out = read_layout();
    expect("]");
    expect("{");
    while (!accept("}")) {
      if (!plan.paths.empty()) expect(";");
      read_path(plan);
    }
    expect_end();
    return plan;
  }

 private:
  std::vector<Segment> read_single_irreps(std::int64_t& dim) {
    skip_space();
    const std::size_t start = at_;
    auto segments = read_irreps(dim);
    at_ = std::any_of(segments.begin(), segments.end(), [](const Segment& s) { return s.mul != 1; }) ? start : at_;
    if (at_ == start && !segments.empty()) fail("irreps of multiplicity 1");
    if (segments.size() > 256) fail("at most 256 irreps");
    return segments;
  }

  int read_index(const std::vector<Segment>& segments) {
    skip_space();
    const std::size_t start = at_;
    const auto index = static_cast<std::size_t>(read_integer(1 << 20, "the index of an irrep"));
    if (index >= segments.size()) {
      at_ = start;
      fail("the index of one of " + std::to_string(segments.size()) + " irreps");
    }
    return static_cast<int>(index);
  }

  void read_path(Plan& plan) {
    Path path{read_index(plan.out), {}};
    expect(":");
    skip_space();
    const bool empty = at_ < text_.size() && (text_[at_] == ';' || text_[at_] == '}');
    if (!empty) do {
        skip_space();
        path.chains.push_back(read_chain(plan, plan.out[path.out]));
      } while (accept(","));
    plan.paths.push_back(std::move(path));
  }

  Chain read_chain(const Plan& plan, const Segment& out) {
    const std::size_t start = at_;
    Chain chain{};
    chain.coefficient = read_coefficient();
    chain.first = read_index(plan.in);
    int l = plan.in[chain.first].l, p = plan.in[chain.first].p;
    while (accept("*")) {
      const int irrep = read_index(plan.in);
      const Segment& b = plan.in[irrep];
      expect(">");
      skip_space();
      const std::size_t degree = at_;
      const int to = static_cast<int>(read_integer(kMaxDegree, "a degree l"));
      if (to < std::abs(l - b.l) || to > l + b.l) {
        at_ = degree;
        fail("a degree from " + std::to_string(std::abs(l - b.l)) + " to " + std::to_string(l + b.l));
      }
      chain.couplings.push_back({l, irrep, to});
      l = to;
      p *= b.p;
    }
    const std::size_t end = at_;
    at_ = start;
    if (chain.couplings.size() >= kMaxCorrelation) fail("a chain of at most 4 irreps");
    if (l != out.l || p != out.p) fail("a chain to the irrep of the output");
    at_ = end;
    return chain;
  }
};

inline const Plan* cached_plan(const std::string& text) {
  return cached(text, [&] { return PlanParser(text).parse(); });
}

}  // namespace eqk::symmetric_contraction
