#pragma once
// A plan's tables on the device, one block of bytes, free of torch and of CUDA headers: what cuda_general.h walks for
// any plan, and what cuda_channels.h walks where it can run the plan.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <tuple>
#include <vector>

#include "core/divisor.h"
#include "tensor_product/lowered.h"
#include "tensor_product/problem.h"

#if !defined(EQK_LMAX)
#error "the build defines EQK_LMAX"
#endif

namespace eqk::tensor_product {

struct DeviceSegment {
  std::int64_t offset;
  Divisor inner;                      // what is adjacent: components of a channel or,
  std::int64_t channels_inner;        // if this is not 0, channels of a component
  std::int32_t path_begin, path_end;  // into TableView::path_of
};

struct DevicePath {
  View view[3];  // x, y, out
  std::int64_t m1;
  Divisor m2, mo;
  std::int64_t weight_offset;
  double coefficient;
  std::int32_t mode, weighted, coupling;
};

// Entries of one (l1, l2, l3), sorted by i, by j and by k: those of component c in order s are
// [range[begin[s] + c], range[begin[s] + c + 1]) of TableView::entry.
struct DeviceCoupling {
  std::int32_t begin[3], entries, first;
};

template <class T>
struct DeviceEntry {
  T c;
  std::uint8_t at[4];  // i, j, k
};

// Pointers into the block of bytes. Slots in the order of Slot: x, y, w, g.
struct TableView {
  const DeviceSegment* segment[3];
  std::int32_t segments[3];
  const std::int32_t* path_of;
  const DevicePath* path;
  const std::int32_t* weighted;  // the weighted paths in the order of their weights
  std::int32_t weighted_paths;
  const DeviceCoupling* coupling;
  const std::int32_t* range;
  const void* entry;  // DeviceEntry<T>
};

// The operands of the channel kernels in the order of Slot, but that x and y are told apart by what they are: the one
// with channels, and the one that all channels of a row share.
inline constexpr int kChannel = kX, kShared = kY;

// Of a segment with channels or of a path. The table has the first four; a block makes the others from these and its
// arguments.
enum ChannelFlag {
  kAligned = 1,  // the offset of the segment, or of the path's output, and the channels are multiples of 16 bytes
  kFirst = 2,    // no path before it adds to the same output
  kWeighted = 4,
  kWeightAligned = 8,
  kTangentWeighted = 16,
  kWantWeight = 32,
  // Memory and registers exchange vectors: of the weights, of their tangents, of their gradients.
  kVectorW = 64,
  kVectorTangentW = 128,
  kVectorResultW = 256,
  // Likewise of what is read, x or g, of its tangent, and of what is written: vectors of a mul_ir row, or of the planes
  // of an ir_mul row, one for each component.
  kVectorIn = 512,
  kPlanesIn = 1024,
  kVectorTangent = 2048,
  kPlanesTangent = 4096,
  kVectorOut = 8192,
  kPlanesOut = 16384,
};

struct DeviceChannelSegment {
  std::int32_t offset, mul, l, flags;
  std::int32_t group_begin, group_end;
  std::int32_t m_begin, m_end;  // the numbers of M of all paths of this degree
};

// Paths from one segment with channels and one of the shared operand.
struct alignas(16) DeviceChannelGroup {
  std::int32_t l, offset;
  std::int32_t path_begin, path_end;
};

// 16 bytes in float32: a thread reads it in one instruction.
template <class T>
struct alignas(16) DeviceChannelPath {
  T coefficient;
  std::uint32_t out, weight;  // offsets of the output and of the weights
  // From the lowest bit on: flags (ChannelFlag), the degree of the output, and where its M[k, i] lie among those of its
  // l1, in units of four numbers.
  std::uint32_t packed;
  static constexpr int kFlagBits = 15, kDegreeBits = 3, kMBits = 32 - kFlagBits - kDegreeBits;
  EQK_HD constexpr int degree() const { return static_cast<int>(packed >> kFlagBits & ((1u << kDegreeBits) - 1)); }
};
static_assert(EQK_LMAX < 8, "the degree of a path has three bits");

template <class T>
struct DeviceTerm {
  std::int32_t column;
  T c;
};

inline constexpr int kTermStep = 32;

// (offset, size) pairs in the words.
struct DeviceRanges {
  std::int32_t first, count;
};

struct ChannelView {
  const std::int32_t* words;  // segments, groups, paths and ranges, which a block copies to shared memory
  std::int32_t word_count, segments, groups_at, paths_at, paths;
  DeviceRanges channel_ranges, out_ranges;  // columns that no path reads or writes
  // M[k, i] of a row, times the path's coefficient: number n sums m_range[n] % 256 terms of c s[column], which are
  // kTermStep apart from number m_range[n] / 256 on: of kTermStep numbers, which the lanes of a warp form, the first
  // terms are adjacent, then the second ones. Those of one (l1, segment of s, l3, coefficient), in the order of Cg and
  // padded to a multiple of 4, serve all such paths. A block holds those of one l1 at a time, m_size at most.
  std::int32_t m_size, shared_dim;
  const std::int32_t* m_range;
  const void* m_term;  // DeviceTerm<T>
};

// The tables of a plan for accumulation type T, to be copied to the device once.
class Tables {
 public:
  // What the host needs to choose and launch a channel kernel.
  struct Channels {
    bool covered = false;   // they run the plan
    bool mirrored = false;  // the operand with channels is y
    // The largest degree: of all, of the operand with channels, of that and the outputs.
    int degree = 0, channel_degree = 0, staged_degree = 0;
  };

  Tables(const Plan& plan, bool is_double, int degree_limit = EQK_LMAX) {
    add_general(plan, is_double);
    const ChannelPlan lowered = lower_channels(plan, degree_limit);
    constexpr std::int64_t kMaxColumns = std::numeric_limits<std::int32_t>::max();
    if (lowered.paths.empty() || plan.weight_numel > kMaxColumns ||
        std::max({plan.dim[0], plan.dim[1], plan.dim[2]}) > kMaxColumns)
      return;
    if (is_double)
      add_channels<double>(plan, lowered);
    else
      add_channels<float>(plan, lowered);
  }

  const std::vector<std::byte>& bytes() const { return bytes_; }
  const Channels& channels() const { return channels_; }

  // The tables once their bytes lie at `base`, which is aligned to 16.
  TableView general_at(const void* base) const {
    TableView v = general_;
    for (auto& segment : v.segment) move(segment, base);
    move(v.path_of, base);
    move(v.path, base);
    move(v.weighted, base);
    move(v.coupling, base);
    move(v.range, base);
    move(v.entry, base);
    return v;
  }
  ChannelView channels_at(const void* base) const {
    ChannelView v = channel_view_;
    move(v.words, base);
    move(v.m_range, base);
    move(v.m_term, base);
    return v;
  }

 private:
  std::vector<std::byte> bytes_;
  TableView general_{};         // its pointers are offsets into bytes_
  ChannelView channel_view_{};  // likewise
  Channels channels_;

  template <class E>
  static void move(const E*& pointer, const void* base) {
    pointer =
        reinterpret_cast<const E*>(reinterpret_cast<std::uintptr_t>(pointer) + reinterpret_cast<std::uintptr_t>(base));
  }

  template <class E>
  const E* append(const std::vector<E>& items) {
    const std::size_t at = (bytes_.size() + 15) / 16 * 16;
    bytes_.resize(at + std::max<std::size_t>(1, items.size()) * sizeof(E));
    if (!items.empty()) std::memcpy(bytes_.data() + at, items.data(), items.size() * sizeof(E));
    return reinterpret_cast<const E*>(at);
  }

  void add_general(const Plan& plan, bool is_double) {
    std::vector<DevicePath> paths;
    std::vector<std::int32_t> weighted;
    std::vector<DeviceCoupling> couplings;
    std::vector<std::int32_t> range;
    std::vector<CgEntry> entries;
    std::array<std::vector<std::vector<std::int32_t>>, 3> used;
    for (int s = 0; s < 3; ++s) used[s].resize(plan.irreps[s].size());
    std::map<std::tuple<int, int, int>, std::int32_t> known;
    for (const auto& ins : plan.instructions) {
      const Segment* segment[3] = {&plan.irreps[0][ins.i1], &plan.irreps[1][ins.i2], &plan.irreps[2][ins.io]};
      if (segment[0]->mul == 0 || segment[1]->mul == 0 || segment[2]->mul == 0) continue;
      const auto [it, fresh] = known.try_emplace({segment[0]->l, segment[1]->l, segment[2]->l}, couplings.size());
      if (fresh) couplings.push_back(add_coupling(segment, range, entries));
      DevicePath path{};
      for (int s = 0; s < 3; ++s) path.view[s] = view(*segment[s], plan.layout[s]);
      path.m1 = segment[0]->mul, path.m2 = Divisor(segment[1]->mul), path.mo = Divisor(segment[2]->mul);
      path.weight_offset = ins.weight_offset;
      path.coefficient = ins.coefficient;
      path.mode = static_cast<std::int32_t>(ins.mode), path.weighted = ins.weighted, path.coupling = it->second;
      const auto number = static_cast<std::int32_t>(paths.size());
      if (ins.weighted && ins.weight_numel) weighted.push_back(number);
      used[0][ins.i1].push_back(number);
      used[1][ins.i2].push_back(number);
      used[2][ins.io].push_back(number);
      paths.push_back(path);
    }
    std::vector<std::int32_t> path_of;
    for (int s = 0; s < 3; ++s) {
      std::vector<DeviceSegment> segments;
      for (std::size_t n = 0; n < plan.irreps[s].size(); ++n) {
        const Segment& segment = plan.irreps[s][n];
        if (segment.mul == 0) continue;
        const auto begin = static_cast<std::int32_t>(path_of.size());
        path_of.insert(path_of.end(), used[s][n].begin(), used[s][n].end());
        const bool channels_inner = plan.layout[s] == Layout::ir_mul;
        segments.push_back({segment.offset, Divisor(channels_inner ? segment.mul : segment.dim()), channels_inner,
                            begin, static_cast<std::int32_t>(path_of.size())});
      }
      general_.segment[s] = append(segments);
      general_.segments[s] = static_cast<std::int32_t>(segments.size());
    }
    general_.path_of = append(path_of);
    general_.path = append(paths);
    general_.weighted = append(weighted);
    general_.weighted_paths = static_cast<std::int32_t>(weighted.size());
    general_.coupling = append(couplings);
    general_.range = append(range);
    if (is_double)
      general_.entry = append(converted<double>(entries));
    else
      general_.entry = append(converted<float>(entries));
  }

  static DeviceCoupling add_coupling(const Segment* const (&segment)[3], std::vector<std::int32_t>& range,
                                     std::vector<CgEntry>& entries) {
    auto sorted = sparse_wigner_3j(segment[0]->l, segment[1]->l, segment[2]->l);
    DeviceCoupling coupling{};
    coupling.entries = static_cast<std::int32_t>(sorted.size());
    coupling.first = static_cast<std::int32_t>(entries.size());
    for (int s = 0; s < 3; ++s) {
      const auto key = [s](const CgEntry& e) { return s == 0 ? e.i : s == 1 ? e.j : e.k; };
      std::stable_sort(sorted.begin(), sorted.end(), [&](const auto& a, const auto& b) { return key(a) < key(b); });
      coupling.begin[s] = static_cast<std::int32_t>(range.size());
      const auto start = static_cast<std::int32_t>(entries.size());
      for (int c = 0; c <= segment[s]->dim(); ++c)
        range.push_back(start + static_cast<std::int32_t>(std::count_if(sorted.begin(), sorted.end(),
                                                                        [&](const CgEntry& e) { return key(e) < c; })));
      entries.insert(entries.end(), sorted.begin(), sorted.end());
    }
    return coupling;
  }

  template <class T>
  static std::vector<DeviceEntry<T>> converted(const std::vector<CgEntry>& entries) {
    std::vector<DeviceEntry<T>> result;
    for (const auto& e : entries)
      result.push_back(
          {static_cast<T>(e.c),
           {static_cast<std::uint8_t>(e.i), static_cast<std::uint8_t>(e.j), static_cast<std::uint8_t>(e.k), 0}});
    return result;
  }

  template <class T>
  void add_channels(const Plan& plan, const ChannelPlan& lowered) {
    std::vector<DeviceChannelSegment> segments;
    std::vector<DeviceChannelGroup> groups;
    std::vector<DeviceChannelPath<T>> paths;
    std::vector<std::vector<DeviceTerm<T>>> numbers;  // of M: the terms of each
    // (l1, offset of the segment of s, l3, coefficient) -> m
    std::map<std::tuple<int, std::int64_t, int, double>, std::int32_t> known;
    std::map<std::int64_t, int> uses;  // of an output, by its offset
    std::int32_t m_begin = 0;
    constexpr int kUnit = 16 / sizeof(T);
    // By degree, so that M is formed once for each.
    std::vector<PaddedSegment> sorted = lowered.c_segments;
    std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.l < b.l; });
    for (const PaddedSegment& s : sorted) {
      if (segments.empty() || segments.back().l != s.l) m_begin = static_cast<std::int32_t>(numbers.size());
      std::map<std::int64_t, std::vector<const ChannelPath*>> by_shared;
      for (const ChannelPath& p : lowered.paths)
        if (p.c_scratch == s.scratch) by_shared[p.shared.offset].push_back(&p);
      const auto begin = static_cast<std::int32_t>(groups.size());
      for (const auto& [offset, members] : by_shared) {
        const auto path_begin = static_cast<std::int32_t>(paths.size());
        for (const ChannelPath* p : members) {
          const auto [m, fresh] = known.try_emplace({p->lc, offset, p->lo, p->coefficient}, numbers.size() - m_begin);
          if (fresh) add_numbers(*p, numbers);
          if ((numbers.size() - m_begin) / 4 >= std::size_t{1} << DeviceChannelPath<T>::kMBits) return;
          const bool first = uses[p->out.offset]++ == 0;
          channels_.degree = std::max({channels_.degree, p->lc, p->ls, p->lo});
          channels_.channel_degree = std::max(channels_.channel_degree, p->lc);
          channels_.staged_degree = std::max({channels_.staged_degree, p->lc, p->lo});
          const int flags = (p->weighted ? kWeighted : 0) | (first ? kFirst : 0) |
                            ((p->out.offset | p->channels) % kUnit ? 0 : kAligned) |
                            (p->weight_offset % kUnit ? 0 : kWeightAligned);
          using Path = DeviceChannelPath<T>;
          const auto packed = static_cast<std::uint32_t>(m->second / 4) << (Path::kFlagBits + Path::kDegreeBits) |
                              static_cast<std::uint32_t>(p->lo) << Path::kFlagBits | static_cast<std::uint32_t>(flags);
          paths.push_back({static_cast<T>(p->coefficient), static_cast<std::uint32_t>(p->out.offset),
                           static_cast<std::uint32_t>(p->weight_offset), packed});
        }
        groups.push_back(
            {members[0]->ls, static_cast<std::int32_t>(offset), path_begin, static_cast<std::int32_t>(paths.size())});
      }
      const auto offset = static_cast<std::int32_t>(s.memory.offset), mul = static_cast<std::int32_t>(s.mul);
      segments.push_back({offset, mul, s.l, (offset | mul) % kUnit ? 0 : kAligned, begin,
                          static_cast<std::int32_t>(groups.size()), m_begin, 0});
    }
    ChannelView& v = channel_view_;
    for (std::size_t n = segments.size(); n-- > 0;) {
      DeviceChannelSegment& s = segments[n];
      if (n + 1 == segments.size())
        s.m_end = static_cast<std::int32_t>(numbers.size());
      else
        s.m_end = segments[n + 1].l == s.l ? segments[n + 1].m_end : segments[n + 1].m_begin;
      v.m_size = std::max(v.m_size, s.m_end - s.m_begin);
    }
    channels_.covered = true;
    channels_.mirrored = lowered.mirrored;
    std::vector<std::int32_t> words;
    append_words(words, segments);
    v.segments = static_cast<std::int32_t>(segments.size());
    v.groups_at = append_words(words, groups);
    v.paths_at = append_words(words, paths);
    v.paths = static_cast<std::int32_t>(paths.size());
    v.channel_ranges = {static_cast<std::int32_t>(words.size()), static_cast<std::int32_t>(lowered.c_untouched.size())};
    for (const auto& [offset, size] : lowered.c_untouched)
      words.insert(words.end(), {static_cast<std::int32_t>(offset), static_cast<std::int32_t>(size)});
    v.out_ranges = {static_cast<std::int32_t>(words.size()), static_cast<std::int32_t>(lowered.out_untouched.size())};
    for (const auto& [offset, size] : lowered.out_untouched)
      words.insert(words.end(), {static_cast<std::int32_t>(offset), static_cast<std::int32_t>(size)});
    words.resize((words.size() + 3) / 4 * 4);  // blocks copy 16 bytes at a time
    v.word_count = static_cast<std::int32_t>(words.size());
    v.words = append(words);
    v.shared_dim = static_cast<std::int32_t>(plan.dim[lowered.mirrored ? 0 : 1]);
    add_terms(segments, numbers);
  }

  // The terms in the order in which a block reads them.
  template <class T>
  void add_terms(const std::vector<DeviceChannelSegment>& segments,
                 const std::vector<std::vector<DeviceTerm<T>>>& numbers) {
    std::vector<std::int32_t> m_range(numbers.size());
    std::vector<DeviceTerm<T>> terms;
    std::int32_t begin = 0;
    for (const DeviceChannelSegment& s : segments)
      for (; begin < s.m_end; begin += std::min(kTermStep, s.m_end - begin)) {
        const auto first = static_cast<std::int32_t>(terms.size());
        const std::int32_t lanes = std::min(kTermStep, s.m_end - begin);
        for (std::int32_t lane = 0; lane < lanes; ++lane) {
          const auto& of_number = numbers[begin + lane];
          const auto count = static_cast<std::int32_t>(of_number.size());
          m_range[begin + lane] = (first + lane) * 256 + count;
          if (terms.size() < static_cast<std::size_t>(first + count * kTermStep))
            terms.resize(first + count * kTermStep, {});
          for (std::int32_t n = 0; n < count; ++n) terms[first + lane + n * kTermStep] = of_number[n];
        }
      }
    channel_view_.m_range = append(m_range);
    channel_view_.m_term = append(terms);
  }

  template <class E>
  static std::int32_t append_words(std::vector<std::int32_t>& words, const std::vector<E>& items) {
    const std::size_t at = words.size();
    words.resize(at + items.size() * sizeof(E) / 4);
    std::memcpy(words.data() + at, items.data(), items.size() * sizeof(E));
    return static_cast<std::int32_t>(at);
  }

  template <class T>
  static void add_numbers(const ChannelPath& path, std::vector<std::vector<DeviceTerm<T>>>& numbers) {
    const auto entries = sparse_wigner_3j(path.lc, path.ls, path.lo);
    for (int i = 0; i <= 2 * path.lc; ++i)
      for (int k = 0; k <= 2 * path.lo; ++k) {
        std::vector<DeviceTerm<T>> terms;
        for (const auto& e : entries)
          if (e.i == i && e.k == k)
            terms.push_back({static_cast<std::int32_t>(path.shared.offset + e.j * path.shared.component),
                             static_cast<T>(path.coefficient * e.c)});
        if (!terms.empty()) numbers.push_back(std::move(terms));
      }
    while (numbers.size() % 4) numbers.emplace_back();
  }
};

}  // namespace eqk::tensor_product
