#pragma once
// What the host and the kernels of cuda.cu agree on, free of torch and of CUDA headers: the tables of a plan as one
// block of bytes, the arguments of each kernel, and the launches that solve a problem.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "tensor_product/lowered.h"
#include "tensor_product/problem.h"

#if !defined(EQK_LMAX)
#error "the build defines EQK_LMAX"
#endif

namespace eqk::tensor_product {

struct DeviceSegment {
  std::int64_t offset, mul;
  std::int32_t components, channels_adjacent;
  std::int32_t path_begin, path_end;  // into TableView::path_of
};

struct DevicePath {
  View view[3];  // x, y, out
  std::int64_t m1, m2, mo, weight_offset, weight_numel;
  double coefficient;
  std::int32_t mode, weighted, coupling;
  std::int32_t components[3];
  std::int32_t m_begin;  // where the path's M[k, i] lie in a row of them, see TableView::m_term
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

template <class T>
struct DeviceTerm {
  std::int64_t column;
  T c;
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
  // Where y has one channel, all channels of a row share M[k, i] = coefficient sum_j C[i, j, k] y[j]: one number for
  // each pair (k, i) of each path, those of a path in the order of Cg and padded to a multiple of 4. Number n sums the
  // terms [m_range[n], m_range[n + 1]) of c y[column].
  std::int32_t m_size;  // 0: the plan has paths that no unrolled kernel covers
  const std::int32_t* m_range;
  const void* m_term;  // DeviceTerm<T>
};

// Whether the unrolled kernels cover this path: y has one channel, and degrees are at most the compiled limit.
inline bool unrolled(const DevicePath& path, const Segment* const (&segment)[3], int degree_limit) {
  const auto mode = static_cast<Mode>(path.mode);
  return (mode == Mode::uvu || mode == Mode::uvuv) && path.m2 == 1 &&
         std::max({segment[0]->l, segment[1]->l, segment[2]->l}) <= degree_limit;
}

// The tables of a plan for accumulation type T, to be copied to the device once.
class Tables {
 public:
  Tables(const Plan& plan, bool is_double, int degree_limit = EQK_LMAX) {
    std::vector<DevicePath> paths;
    std::vector<std::int32_t> weighted;
    std::vector<DeviceCoupling> couplings;
    std::vector<std::int32_t> range;
    std::vector<CgEntry> entries;
    std::array<std::vector<std::vector<std::int32_t>>, 3> used;
    for (int s = 0; s < 3; ++s) used[s].resize(plan.irreps[s].size());
    std::map<std::tuple<int, int, int>, std::int32_t> known;
    std::vector<std::int32_t> m_range{0};
    std::vector<DeviceTerm<double>> terms;
    bool all_unrolled = true;
    for (const auto& ins : plan.instructions) {
      const Segment* segment[3] = {&plan.irreps[0][ins.i1], &plan.irreps[1][ins.i2], &plan.irreps[2][ins.io]};
      if (segment[0]->mul == 0 || segment[1]->mul == 0 || segment[2]->mul == 0) continue;
      const auto [it, fresh] = known.try_emplace({segment[0]->l, segment[1]->l, segment[2]->l}, couplings.size());
      if (fresh) couplings.push_back(add_coupling(segment, range, entries));
      DevicePath path{};
      for (int s = 0; s < 3; ++s) {
        path.view[s] = view(*segment[s], plan.layout[s]);
        path.components[s] = segment[s]->dim();
      }
      path.m1 = segment[0]->mul, path.m2 = segment[1]->mul, path.mo = segment[2]->mul;
      path.weight_offset = ins.weight_offset, path.weight_numel = ins.weight_numel;
      path.coefficient = ins.coefficient;
      path.mode = static_cast<std::int32_t>(ins.mode), path.weighted = ins.weighted, path.coupling = it->second;
      all_unrolled = all_unrolled && unrolled(path, segment, degree_limit);
      if (all_unrolled) {
        path.m_begin = static_cast<std::int32_t>(m_range.size()) - 1;
        add_terms(segment, path, m_range, terms);
      }
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
        segments.push_back({segment.offset, segment.mul, segment.dim(), plan.layout[s] == Layout::ir_mul, begin,
                            static_cast<std::int32_t>(path_of.size())});
      }
      segment_at_[s] = append(segments);
      segments_[s] = static_cast<std::int32_t>(segments.size());
    }
    path_of_at_ = append(path_of);
    path_at_ = append(paths);
    weighted_at_ = append(weighted);
    weighted_paths_ = static_cast<std::int32_t>(weighted.size());
    coupling_at_ = append(couplings);
    range_at_ = append(range);
    entry_at_ = is_double ? append(converted<double>(entries)) : append(converted<float>(entries));
    m_size_ = all_unrolled ? static_cast<std::int32_t>(m_range.size()) - 1 : 0;
    m_range_at_ = append(m_range);
    if (is_double) {
      m_term_at_ = append(terms);
    } else {
      std::vector<DeviceTerm<float>> narrow;
      for (const auto& t : terms) narrow.push_back({t.column, static_cast<float>(t.c)});
      m_term_at_ = append(narrow);
    }
  }

  const std::vector<std::byte>& bytes() const { return bytes_; }

  // The tables once their bytes lie at `base`, which is aligned to 16.
  TableView view_at(const void* base) const {
    const auto* p = static_cast<const std::byte*>(base);
    TableView v{};
    for (int s = 0; s < 3; ++s) {
      v.segment[s] = reinterpret_cast<const DeviceSegment*>(p + segment_at_[s]);
      v.segments[s] = segments_[s];
    }
    v.path_of = reinterpret_cast<const std::int32_t*>(p + path_of_at_);
    v.path = reinterpret_cast<const DevicePath*>(p + path_at_);
    v.weighted = reinterpret_cast<const std::int32_t*>(p + weighted_at_);
    v.weighted_paths = weighted_paths_;
    v.coupling = reinterpret_cast<const DeviceCoupling*>(p + coupling_at_);
    v.range = reinterpret_cast<const std::int32_t*>(p + range_at_);
    v.entry = p + entry_at_;
    v.m_size = m_size_;
    v.m_range = reinterpret_cast<const std::int32_t*>(p + m_range_at_);
    v.m_term = p + m_term_at_;
    return v;
  }

 private:
  std::vector<std::byte> bytes_;
  std::array<std::size_t, 3> segment_at_{};
  std::array<std::int32_t, 3> segments_{};
  std::size_t path_of_at_, path_at_, weighted_at_, coupling_at_, range_at_, entry_at_, m_range_at_, m_term_at_;
  std::int32_t weighted_paths_, m_size_;

  template <class E>
  std::size_t append(const std::vector<E>& items) {
    const std::size_t at = (bytes_.size() + 15) / 16 * 16;
    bytes_.resize(at + std::max<std::size_t>(1, items.size()) * sizeof(E));
    if (!items.empty()) std::memcpy(bytes_.data() + at, items.data(), items.size() * sizeof(E));
    return at;
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

  static void add_terms(const Segment* const (&segment)[3], const DevicePath& path, std::vector<std::int32_t>& m_range,
                        std::vector<DeviceTerm<double>>& terms) {
    const auto entries = sparse_wigner_3j(segment[0]->l, segment[1]->l, segment[2]->l);
    for (int i = 0; i < segment[0]->dim(); ++i)
      for (int k = 0; k < segment[2]->dim(); ++k) {
        const std::size_t before = terms.size();
        for (const auto& e : entries)
          if (e.i == i && e.k == k)
            terms.push_back({path.view[1].offset + e.j * path.view[1].component, e.c * path.coefficient});
        if (terms.size() != before) m_range.push_back(static_cast<std::int32_t>(terms.size()));
      }
    while ((m_range.size() - 1) % 4) m_range.push_back(static_cast<std::int32_t>(terms.size()));
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
};

// Of a kernel that computes one slot of the result.
struct SlotArguments {
  TableView table;
  Operand in[kSlots];
  void* out;
  std::int64_t out_stride, columns, rows;
  std::int64_t parts;                 // of the rows, in the gradient of shared weights: out is then T[parts, columns]
  std::int32_t block_rows, m_stride;  // unrolled kernel: rows of a block, and numbers from one's M to the next's
};

// out[q] = sum over p of partial[p, q]
struct ReduceArguments {
  const void* partial;
  void* out;
  std::int64_t parts, columns;
};

enum class Kernel { general, unrolled, reduce };

struct Launch {
  Kernel kernel;
  Slot slot;
  Dtype dtype;
  bool dual;
  bool partial;  // general: writes partial sums over rows
  std::int64_t grid;
  int block, shared;
  SlotArguments slot_arguments;
  ReduceArguments reduce;

  std::string name() const {
    static constexpr const char* kSlot[] = {"x", "y", "w", "g"};
    static constexpr const char* kDtype[] = {"f32", "f64", "f16", "bf16"};
    if (kernel == Kernel::reduce) return std::string("eqk_tensor_product_reduce_") + kDtype[static_cast<int>(dtype)];
    return std::string("eqk_tensor_product_") + (kernel == Kernel::general ? "general_" : "unrolled_") + kSlot[slot] +
           (partial ? "_partial" : "") + (dual ? "_dual_" : "_") + kDtype[static_cast<int>(dtype)];
  }
};

inline constexpr std::int64_t kMaxGrid = (std::int64_t{1} << 31) - 1;

inline std::int64_t accumulator_size(Dtype dtype) { return dtype == Dtype::float64 ? 8 : 4; }

// How many partial sums the gradient of shared weights takes: a function of the problem alone, so that results do not
// depend on the device.
inline std::int64_t weight_parts(const Problem& problem) {
  if (!problem.out[kW].data || problem.plan->weights != Weights::shared) return 0;
  constexpr std::int64_t kPartialBytes = 32 << 20, kRowsPerPart = 16, kMaxParts = 1024;
  const std::int64_t bytes = std::max<std::int64_t>(1, problem.plan->weight_numel * accumulator_size(problem.dtype));
  return std::clamp<std::int64_t>(std::min(problem.rows / kRowsPerPart, kPartialBytes / bytes), 1, kMaxParts);
}

// Of the scratch memory that the launches of a problem share.
inline std::int64_t scratch_bytes(const Problem& problem) {
  return weight_parts(problem) * problem.plan->weight_numel * accumulator_size(problem.dtype);
}

// Makes the launch that of the unrolled kernel where there is one for the problem.
inline void unroll(Launch& launch) {
  constexpr int kBlockRows = 8, kSharedBytes = 24 << 10;
  SlotArguments& a = launch.slot_arguments;
  const bool compiled = launch.dtype == Dtype::float32 || (launch.dtype == Dtype::float64 && !launch.dual);
  if (a.table.m_size == 0 || launch.slot == kY || launch.partial || !compiled) return;
  // An odd number of 16-byte units: the rows of a warp that spans several start in different banks.
  const int stride = a.table.m_size / 4 % 2 ? a.table.m_size : a.table.m_size + 4;
  const int bytes = stride * static_cast<int>(accumulator_size(launch.dtype)) * (launch.dual ? 2 : 1);
  if (bytes > kSharedBytes) return;
  launch.kernel = Kernel::unrolled;
  a.m_stride = stride;
  a.block_rows = std::min(kBlockRows, kSharedBytes / bytes);
  launch.shared = a.block_rows * bytes;
  launch.grid = std::min(kMaxGrid, (a.rows + a.block_rows - 1) / a.block_rows);
}

// The launches of a problem, in stream order; `partial` holds scratch_bytes(problem).
inline std::vector<Launch> launches(const Problem& problem, const TableView& table, void* partial) {
  constexpr int kBlock = 128;
  const auto blocks = [](std::int64_t threads) { return std::min(kMaxGrid, (threads + kBlock - 1) / kBlock); };
  const std::int64_t columns[kSlots] = {problem.plan->dim[0], problem.plan->dim[1], problem.plan->weight_numel,
                                        problem.plan->dim[2]};
  const std::int64_t parts = weight_parts(problem);
  std::vector<Launch> result;
  for (const Slot slot : {kX, kY, kW, kG}) {
    if (!problem.out[slot].data || columns[slot] == 0) continue;
    Launch launch{};
    launch.kernel = Kernel::general;
    launch.slot = slot;
    launch.dtype = problem.dtype;
    launch.dual = problem.dual;
    launch.partial = slot == kW && parts > 0;
    const std::int64_t threads = (launch.partial ? parts : problem.rows) * columns[slot];
    if (threads == 0) continue;
    launch.grid = blocks(threads);
    launch.block = kBlock;
    launch.slot_arguments.table = table;
    std::copy(problem.in.begin(), problem.in.end(), launch.slot_arguments.in);
    launch.slot_arguments.out = launch.partial ? partial : problem.out[slot].data;
    launch.slot_arguments.out_stride = problem.out[slot].stride;
    launch.slot_arguments.columns = columns[slot];
    launch.slot_arguments.rows = problem.rows;
    launch.slot_arguments.parts = parts;
    unroll(launch);
    result.push_back(launch);
    if (!launch.partial) continue;
    launch.kernel = Kernel::reduce;
    launch.shared = 0;
    launch.grid = blocks(columns[slot]);
    launch.slot_arguments = {};
    launch.reduce = {partial, problem.out[kW].data, parts, columns[slot]};
    result.push_back(launch);
  }
  return result;
}

}  // namespace eqk::tensor_product
