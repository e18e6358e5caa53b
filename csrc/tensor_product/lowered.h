#pragma once
// A plan made ready for loops: coefficients as sparse tables, strides of each segment, and which loop order runs it.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/cached.h"
#include "core/plan.h"
#include "core/wigner_3j.h"

namespace eqk::tensor_product {

// The nonzero coefficients of one (l1, l2, l3), in the two orders that the table-driven contraction walks.
struct Coupling {
  struct Term {
    int at;  // by_k: the pair (i, j) it multiplies; by_pair: the component k
    double c;
  };
  struct Pair {
    int i, j;
  };
  std::vector<Pair> pairs;               // distinct (i, j)
  std::vector<int> k_begin, pair_begin;  // ranges into by_k and by_pair
  std::vector<Term> by_k, by_pair;
};

inline Coupling couple(int l1, int l2, int l3) {
  Coupling c;
  const auto entries = sparse_wigner_3j(l1, l2, l3);
  const int d1 = 2 * l1 + 1, d2 = 2 * l2 + 1, d3 = 2 * l3 + 1;
  std::vector<std::vector<Coupling::Term>> per_pair;
  std::vector<int> index(static_cast<std::size_t>(d1) * d2, -1);
  c.k_begin.assign(1, 0);
  for (int k = 0; k < d3; ++k) {
    for (const auto& e : entries) {
      if (e.k != k) continue;
      int& q = index[static_cast<std::size_t>(e.i) * d2 + e.j];
      if (q < 0) {
        q = static_cast<int>(c.pairs.size());
        c.pairs.push_back({e.i, e.j});
        per_pair.emplace_back();
      }
      c.by_k.push_back({q, e.c});
      per_pair[q].push_back({k, e.c});
    }
    c.k_begin.push_back(static_cast<int>(c.by_k.size()));
  }
  c.pair_begin.assign(1, 0);
  for (const auto& terms : per_pair) {
    c.by_pair.insert(c.by_pair.end(), terms.begin(), terms.end());
    c.pair_begin.push_back(static_cast<int>(c.by_pair.size()));
  }
  return c;
}

inline const Coupling* coupling(int l1, int l2, int l3) {
  return cached((l1 * (kMaxDegree + 1) + l2) * (kMaxDegree + 1) + l3, [&] { return couple(l1, l2, l3); });
}

// Element (u, i) of a segment is at offset + u * channel + i * component.
struct View {
  std::int64_t offset, channel, component;
};

inline View view(const Segment& s, Layout layout) {
  if (layout == Layout::mul_ir) return {s.offset, s.dim(), 1};
  return {s.offset, 1, s.mul};
}

struct Path {
  Mode mode;
  bool weighted;
  double coefficient;
  std::int64_t m1, m2, mo, weight_offset;
  int l1, l2, l3;
  View x, y, out;
  const Coupling* cg;
};

// A path in which one input has a single channel, so that its components are shared by all channels of a row: mode uvu
// or uvuv with mul2 = 1, or their mirror images. "c" names the operand with channels, "s" the shared one.
struct ChannelPath {
  int lc, ls, lo;
  double coefficient;
  bool weighted;
  std::int64_t channels, weight_offset;
  View shared, out;
  // Offsets in rows of padded segments; out_scratch < 0: written to memory directly.
  std::int64_t c_scratch, g_scratch, out_scratch;
  bool first;  // the first path of its output segment
};

// Segment of an operand, as it is in memory and in a scratch row, where its channels are padded to `pitch`.
struct PaddedSegment {
  int l;
  std::int64_t mul;
  View memory;
  std::int64_t scratch, pitch;
};

// What the kernel whose lanes are channels needs, if it can run the plan.
struct ChannelPlan {
  static constexpr std::int64_t kPad = 16;
  bool mirrored = false;  // the operand with channels is y
  std::vector<ChannelPath> paths;
  // Those that paths read; those of the cotangent that paths read; those that are summed in scratch.
  std::vector<PaddedSegment> c_segments, g_segments, out_segments;
  // Ranges of a row that no path reads or writes: (offset, size).
  std::vector<std::pair<std::int64_t, std::int64_t>> c_untouched, out_untouched;
  std::int64_t c_size = 0, g_size = 0, out_size = 0, max_channels = 0;
  double work = 0;  // sum over paths of channels times components, to weigh the lanes that padding wastes
};

struct Lowered {
  std::vector<Path> paths;
  ChannelPlan channels;  // without paths where only the general kernel runs the plan
};

inline std::int64_t padded(std::int64_t n) {
  return (n + ChannelPlan::kPad - 1) / ChannelPlan::kPad * ChannelPlan::kPad;
}

// Lanes of a vector of `width` that do useful work, averaged over the paths.
inline double lane_utilisation(const ChannelPlan& plan, std::int64_t width) {
  double spent = 0;
  for (const auto& p : plan.paths)
    spent += (2 * p.lc + 1) * (2 * p.lo + 1) * static_cast<double>((p.channels + width - 1) / width * width);
  return spent > 0 ? plan.work / spent : 0;
}

// sum_rows: rows of results are summed, so each segment of an output is in scratch and no path is the first.
inline ChannelPlan lower_channels(const Plan& plan, int lmax, bool sum_rows = false) {
  ChannelPlan result;
  const auto shared_by_channels = [&](const Instruction& ins, int shared, Mode mode) {
    return plan.irreps[shared][shared == 1 ? ins.i2 : ins.i1].mul == 1 && (ins.mode == mode || ins.mode == Mode::uvuv);
  };
  bool straight = true, mirrored = true;
  for (const auto& ins : plan.instructions) {
    const Segment &a = plan.irreps[0][ins.i1], &b = plan.irreps[1][ins.i2], &o = plan.irreps[2][ins.io];
    if (a.l > lmax || b.l > lmax || o.l > lmax) return {};
    straight = straight && shared_by_channels(ins, 1, Mode::uvu);
    mirrored = mirrored && shared_by_channels(ins, 0, Mode::uvv);
  }
  if (!straight && !mirrored) return {};
  result.mirrored = !straight;
  const int c = result.mirrored ? 1 : 0, s = 1 - c;
  if (plan.dim[s] > 1024) return {};  // the kernel keeps a vector for each component of the shared operand

  std::vector<int> uses(plan.irreps[2].size()), seen(plan.irreps[2].size()), c_uses(plan.irreps[c].size());
  const auto counts = [&](const Instruction& ins) {
    return plan.irreps[0][ins.i1].mul > 0 && plan.irreps[1][ins.i2].mul > 0 && plan.irreps[2][ins.io].mul > 0;
  };
  for (const auto& ins : plan.instructions) {
    uses[ins.io] += counts(ins);
    c_uses[c ? ins.i2 : ins.i1] += counts(ins);
  }
  std::vector<std::int64_t> c_scratch(plan.irreps[c].size());
  for (std::size_t n = 0; n < c_uses.size(); ++n) {
    const Segment& seg = plan.irreps[c][n];
    if (c_uses[n] == 0) {
      if (seg.mul > 0) result.c_untouched.emplace_back(seg.offset, seg.size());
      continue;
    }
    c_scratch[n] = result.c_size;
    result.c_segments.push_back({seg.l, seg.mul, view(seg, plan.layout[c]), result.c_size, padded(seg.mul)});
    result.c_size += padded(seg.mul) * seg.dim();
  }
  std::vector<std::int64_t> scratch(plan.irreps[2].size(), -1), g_scratch(plan.irreps[2].size(), -1);
  for (std::size_t n = 0; n < uses.size(); ++n) {
    const Segment& seg = plan.irreps[2][n];
    if (uses[n] == 0 && seg.mul > 0) result.out_untouched.emplace_back(seg.offset, seg.size());
    if (uses[n] == 0) continue;
    g_scratch[n] = result.g_size;
    result.g_segments.push_back({seg.l, seg.mul, view(seg, plan.layout[2]), result.g_size, padded(seg.mul)});
    result.g_size += padded(seg.mul) * seg.dim();
    if (uses[n] < 2 && !sum_rows) continue;
    scratch[n] = result.out_size;
    result.out_segments.push_back({seg.l, seg.mul, view(seg, plan.layout[2]), result.out_size, padded(seg.mul)});
    result.out_size += padded(seg.mul) * seg.dim();
  }
  for (const auto& ins : plan.instructions) {
    if (!counts(ins)) continue;
    const int ic = c ? ins.i2 : ins.i1, is = c ? ins.i1 : ins.i2;
    const Segment &cs = plan.irreps[c][ic], &ss = plan.irreps[s][is], &os = plan.irreps[2][ins.io];
    // C(l2, l1, l3)[j, i, k] = (-1)^(l1 + l2 + l3) C(l1, l2, l3)[i, j, k]
    const double sign = result.mirrored && (cs.l + ss.l + os.l) % 2 ? -1 : 1;
    result.paths.push_back({cs.l, ss.l, os.l, sign * ins.coefficient, ins.weighted, cs.mul, ins.weight_offset,
                            view(ss, plan.layout[s]), view(os, plan.layout[2]), c_scratch[ic], g_scratch[ins.io],
                            scratch[ins.io], seen[ins.io]++ == 0 && !sum_rows});
    result.max_channels = std::max(result.max_channels, padded(cs.mul));
    result.work += static_cast<double>(cs.dim()) * os.dim() * static_cast<double>(cs.mul);
  }
  return result;
}

inline Lowered lower(const Plan& plan, int lmax) {
  Lowered lowered;
  for (const auto& ins : plan.instructions) {
    const Segment &a = plan.irreps[0][ins.i1], &b = plan.irreps[1][ins.i2], &o = plan.irreps[2][ins.io];
    if (a.mul == 0 || b.mul == 0 || o.mul == 0) continue;
    lowered.paths.push_back({ins.mode, ins.weighted, ins.coefficient, a.mul, b.mul, o.mul, ins.weight_offset, a.l, b.l,
                             o.l, view(a, plan.layout[0]), view(b, plan.layout[1]), view(o, plan.layout[2]),
                             coupling(a.l, b.l, o.l)});
  }
  lowered.channels = lower_channels(plan, lmax);
  return lowered;
}

}  // namespace eqk::tensor_product
