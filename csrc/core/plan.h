#pragma once
// The description of a tensor product that travels through the ops as one readable string:
//
//   IN1 * IN2 -> OUT [LAYOUT1,LAYOUT2,LAYOUT_OUT] WEIGHTS {I1 I2 IO MODE w|- COEFFICIENT; ...}
//   128x0e+128x1o * 1x0e+1x1o -> 128x0e+128x1o [mul_ir,mul_ir,mul_ir] per_sample {0 0 0 uvu w 1.0; 1 0 1 uvu w 0.5}
//
// "-" stands for empty irreps. python/eqk/plan.py writes the same grammar. The string may come from a file that nobody
// trusts: every number is bounded, every product is checked for overflow, and an error says where the text went wrong.
#include <array>
#include <cmath>
#include <cstdint>
#include <locale>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/cached.h"
#include "core/wigner_3j.h"

namespace eqk {

enum class Layout { mul_ir, ir_mul };
enum class Weights { none, shared, per_sample };
enum class Mode { uvw, uvu, uvv, uuw, uuu, uvuv, uvu_lt_v, u_lt_vw };

inline constexpr std::array<std::string_view, 2> kLayoutNames{"mul_ir", "ir_mul"};
inline constexpr std::array<std::string_view, 3> kWeightsNames{"none", "shared", "per_sample"};
inline constexpr std::array<std::string_view, 8> kModeNames{"uvw", "uvu", "uvv", "uuw", "uuu", "uvuv", "uvu<v", "u<vw"};

struct Segment {
  std::int64_t mul;
  int l, p;
  std::int64_t offset;
  int dim() const { return 2 * l + 1; }
  std::int64_t size() const { return mul * dim(); }
  bool operator==(const Segment&) const = default;
};

struct Instruction {
  int i1, i2, io;
  Mode mode;
  bool weighted;
  double coefficient;
  std::int64_t weight_offset, weight_numel;
  bool operator==(const Instruction&) const = default;
};

struct Plan {
  std::array<std::vector<Segment>, 3> irreps;  // x, y, out
  std::array<std::int64_t, 3> dim{};
  std::array<Layout, 3> layout{};
  Weights weights{};
  std::int64_t weight_numel = 0;
  std::vector<Instruction> instructions;
  bool operator==(const Plan&) const = default;
};

class PlanError : public std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// For a message: a NUL would end it, and a cut through a character of several bytes would not be text any more.
inline std::string excerpt(std::string_view text) {
  std::string s = "'";
  for (const char c : text) s += c >= ' ' && c <= '~' ? c : '?';
  return s + "'";
}

// Reads the words of a plan's text; what does not fit is a PlanError that says where.
class PlanReader {
 public:
  explicit PlanReader(std::string_view text) : text_(text) {}

 protected:
  static constexpr std::size_t kMaxLength = 1 << 20;
  static constexpr std::int64_t kMaxSize = std::int64_t{1} << 40;

  std::string_view text_;
  std::size_t at_ = 0;

  [[noreturn]] void fail(const std::string& expected) const {
    throw PlanError("plan: expected " + expected + " at character " + std::to_string(at_) + ", found " +
                    (at_ < text_.size() ? excerpt(text_.substr(at_, 24)) : "the end"));
  }

  void check_length() const {
    if (text_.size() > kMaxLength) fail("at most 1 MiB of text");
  }

  void expect_end() {
    skip_space();
    if (at_ != text_.size()) fail("nothing after '}'");
  }

  Layout read_layout() { return static_cast<Layout>(read_name(kLayoutNames, "a layout (mul_ir or ir_mul)")); }

  void skip_space() {
    while (at_ < text_.size() && text_[at_] == ' ') ++at_;
  }

  bool accept(std::string_view token) {
    skip_space();
    if (text_.substr(at_, token.size()) != token) return false;
    at_ += token.size();
    return true;
  }

  void expect(std::string_view token) {
    if (!accept(token)) fail(excerpt(token));
  }

  std::int64_t read_integer(std::int64_t limit, const char* what) {
    skip_space();
    std::int64_t value = 0;
    const std::size_t start = at_;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
      value = 10 * value + (text_[at_] - '0');
      if (value > limit) {
        at_ = start;
        fail(std::string(what) + " of at most " + std::to_string(limit));
      }
    }
    if (at_ == start) fail(what);
    return value;
  }

  std::string_view read_word() {
    skip_space();
    const std::size_t start = at_;
    while (at_ < text_.size() && std::string_view(" ;,]}{").find(text_[at_]) == std::string_view::npos) ++at_;
    return text_.substr(start, at_ - start);
  }

  template <std::size_t N>
  int read_name(const std::array<std::string_view, N>& names, const char* what) {
    skip_space();
    const std::size_t start = at_;
    const auto word = read_word();
    for (std::size_t n = 0; n < N; ++n)
      if (names[n] == word) return static_cast<int>(n);
    at_ = start;
    fail(what);
  }

  double read_coefficient() {
    skip_space();
    const std::size_t start = at_;
    std::istringstream stream{std::string(read_word())};
    stream.imbue(std::locale::classic());
    double value = 0;
    if (!(stream >> std::noskipws >> value) || !stream.eof() || !std::isfinite(value)) {
      at_ = start;
      fail("a finite coefficient");
    }
    return value;
  }

  std::int64_t product(std::int64_t a, std::int64_t b) const {
    if (a != 0 && b > kMaxSize / a) fail("sizes whose product is at most 2^40");
    return a * b;
  }

  std::vector<Segment> read_irreps(std::int64_t& dim) {
    std::vector<Segment> segments;
    if (accept("->")) {
      at_ -= 2;
      fail("irreps");
    }
    if (accept("-")) return segments;
    do {
      Segment s{};
      s.mul = read_integer(std::int64_t{1} << 31, "a multiplicity");
      expect("x");
      s.l = static_cast<int>(read_integer(kMaxDegree, "a degree l"));
      if (accept("e")) {
        s.p = 1;
      } else {
        if (!accept("o")) fail("a parity (e or o)");
        s.p = -1;
      }
      s.offset = dim;
      dim += product(s.mul, s.dim());
      if (dim > kMaxSize) fail("irreps of dimension at most 2^40");
      segments.push_back(s);
    } while (accept("+"));
    return segments;
  }
};

class PlanParser : private PlanReader {
 public:
  using PlanReader::PlanReader;

  Plan parse() {
    check_length();
    Plan plan;
    plan.irreps[0] = read_irreps(plan.dim[0]);
    expect("*");
    plan.irreps[1] = read_irreps(plan.dim[1]);
    expect("->");
    plan.irreps[2] = read_irreps(plan.dim[2]);
    expect("[");
    for (int s = 0; s < 3; ++s) {
      if (s) expect(",");
      plan.layout[s] = read_layout();
    }
    expect("]");
    plan.weights = static_cast<Weights>(read_name(kWeightsNames, "none, shared or per_sample"));
    expect("{");
    while (!accept("}")) {
      if (!plan.instructions.empty()) expect(";");
      read_instruction(plan);
    }
    expect_end();
    if ((plan.weights == Weights::none) == any_weighted(plan))
      fail("weights 'none' exactly when no instruction is weighted");
    return plan;
  }

 private:
  static bool any_weighted(const Plan& plan) {
    for (const auto& ins : plan.instructions)
      if (ins.weighted) return true;
    return false;
  }

  const Segment& read_segment(const Plan& plan, int slot, int& index) {
    skip_space();
    const std::size_t start = at_;
    const auto& segments = plan.irreps[slot];
    index = static_cast<int>(read_integer(1 << 20, "the index of an irrep"));
    if (static_cast<std::size_t>(index) >= segments.size()) {
      at_ = start;
      fail("the index of one of " + std::to_string(segments.size()) + " irreps");
    }
    return segments[index];
  }

  void read_instruction(Plan& plan) {
    skip_space();
    const std::size_t start = at_;
    Instruction ins{};
    const Segment& a = read_segment(plan, 0, ins.i1);
    const Segment& b = read_segment(plan, 1, ins.i2);
    const Segment& o = read_segment(plan, 2, ins.io);
    ins.mode = static_cast<Mode>(read_name(kModeNames, "a connection mode"));
    ins.weighted = accept("w");
    if (!ins.weighted) expect("-");
    ins.coefficient = read_coefficient();

    const std::size_t end = at_;
    at_ = start;
    if (a.p * b.p != o.p || o.l < std::abs(a.l - b.l) || o.l > a.l + b.l)
      fail("an instruction that obeys the selection rules");
    const bool lt = ins.mode == Mode::uvu_lt_v || ins.mode == Mode::u_lt_vw;
    const std::int64_t pairs = lt ? product(a.mul, a.mul > 0 ? a.mul - 1 : 0) / 2 : product(a.mul, b.mul);
    const bool square = lt || ins.mode == Mode::uuw || ins.mode == Mode::uuu;
    if (square && a.mul != b.mul) fail("equal multiplicities in both inputs of a uuw, uuu, uvu<v or u<vw instruction");
    bool fits = true;
    switch (ins.mode) {
      case Mode::uvw:
      case Mode::u_lt_vw:
        fits = ins.weighted;
        ins.weight_numel = product(pairs, o.mul);
        break;
      case Mode::uvu:
        fits = o.mul == a.mul;
        ins.weight_numel = pairs;
        break;
      case Mode::uvv:
        fits = o.mul == b.mul;
        ins.weight_numel = pairs;
        break;
      case Mode::uuw:
        fits = ins.weighted || o.mul == 1;
        ins.weight_numel = product(a.mul, o.mul);
        break;
      case Mode::uuu:
        fits = o.mul == a.mul;
        ins.weight_numel = a.mul;
        break;
      case Mode::uvuv:
      case Mode::uvu_lt_v:
        fits = o.mul == pairs;
        ins.weight_numel = pairs;
        break;
    }
    if (!fits) fail("an instruction whose multiplicities and weight fit its mode");
    ins.weight_offset = plan.weight_numel;
    if (!ins.weighted) ins.weight_numel = 0;
    plan.weight_numel += ins.weight_numel;
    if (plan.weight_numel > kMaxSize) fail("at most 2^40 weights");
    plan.instructions.push_back(ins);
    at_ = end;
  }
};

inline const Plan* cached_plan(const std::string& text) {
  return cached(text, [&] { return PlanParser(text).parse(); });
}

}  // namespace eqk
