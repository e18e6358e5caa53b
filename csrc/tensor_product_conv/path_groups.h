#pragma once
// Paths of a plan a few at a time, so that what their weights need stays in a cache while all edges of a part use it.
#include <algorithm>
#include <cstdint>
#include <map>
#include <numeric>
#include <vector>

#include "tensor_product/lowered.h"

namespace eqk::tensor_product_conv {

using tensor_product::ChannelPath;
using tensor_product::ChannelPlan;
using tensor_product::PaddedSegment;

struct PathGroup {
  ChannelPlan channels;
  std::vector<std::int64_t> columns;  // of its weights, which `channels` counts from 0, those among all
};

namespace detail {

// Leaves the segments whose rows some paths have, one after another; `at`: where a path says where its row begins.
inline std::int64_t keep_segments(std::vector<PaddedSegment>& segments, std::vector<ChannelPath>& paths,
                                  std::int64_t ChannelPath::* at) {
  std::map<std::int64_t, std::int64_t> moved;
  for (const ChannelPath& p : paths) moved[p.*at] = 0;
  std::erase_if(segments, [&](const PaddedSegment& s) { return !moved.contains(s.scratch); });
  std::int64_t size = 0;
  for (PaddedSegment& s : segments) {
    moved[s.scratch] = size;
    s.scratch = size;
    size += s.pitch * (2 * s.l + 1);
  }
  for (ChannelPath& p : paths) p.*at = moved[p.*at];
  return size;
}

// Scratch rows of the operand with channels are those of the whole plan.
inline PathGroup group_of(const ChannelPlan& plan, std::vector<ChannelPath> paths) {
  PathGroup group{plan, {}};
  ChannelPlan& channels = group.channels;
  channels.paths = std::move(paths);
  channels.g_size = keep_segments(channels.g_segments, channels.paths, &ChannelPath::g_scratch);
  channels.out_size = keep_segments(channels.out_segments, channels.paths, &ChannelPath::out_scratch);
  for (ChannelPath& p : channels.paths) {
    if (!p.weighted) continue;
    const auto first = static_cast<std::int64_t>(group.columns.size());
    group.columns.resize(first + p.channels);
    std::iota(group.columns.begin() + first, group.columns.end(), p.weight_offset);
    p.weight_offset = first;
  }
  return group;
}

}  // namespace detail

// Of a plan whose results are summed in scratch. Each but the last has at least so many columns; no two have paths that
// are added to one row of the result, and the first alone has the ranges that no path writes. Paths of one segment of
// the operand with channels come together, since its rows and those of its gradient take room in the cache too.
inline std::vector<PathGroup> path_groups(const ChannelPlan& plan, std::int64_t columns) {
  std::vector<ChannelPath> paths = plan.paths;
  const auto by_segment = [](const ChannelPath& a, const ChannelPath& b) { return a.c_scratch < b.c_scratch; };
  if (plan.out_segments.size() == paths.size()) std::ranges::stable_sort(paths, by_segment);
  std::map<std::int64_t, std::size_t> last_use;
  for (std::size_t n = 0; n < paths.size(); ++n) last_use[paths[n].out_scratch] = n;
  std::vector<PathGroup> groups;
  std::size_t begin = 0, open_until = 0;
  std::int64_t taken = 0;
  for (std::size_t n = 0; n < paths.size(); ++n) {
    open_until = std::max(open_until, last_use[paths[n].out_scratch]);
    if (paths[n].weighted) taken += paths[n].channels;
    if (n + 1 < paths.size() && (taken < columns || open_until > n)) continue;
    groups.push_back(detail::group_of(plan, {paths.begin() + begin, paths.begin() + n + 1}));
    if (begin > 0) groups.back().channels.out_untouched.clear();
    begin = n + 1;
    taken = 0;
  }
  return groups;
}

}  // namespace eqk::tensor_product_conv
