#include <algorithm>
#include <atomic>
#include <span>
#include <tuple>
#include <vector>

#include "core/aligned.h"
#include "core/cpu_dispatch.h"
#include "core/node_order.h"
#include "so2_edge_message/op.h"

#define EQK_ISA host
#include "core/cpu_sums.h"

namespace eqk::so2_edge_message {
namespace {

// Nodes of edges: [sources, edges] and [edges].
struct Graph {
  std::vector<std::int64_t> sources, targets;

  Graph(const char* op, const Tensor& index, const Problem& p)
      : sources(read_index(op, index, 0, p.sources(), p.nodes)),
        targets(read_index(op, index, index.size(0) - 1, index.size(0), p.nodes)) {}
};

// Tiles of edges, and what they give to nodes: rows of the nodes that a tile has, added up tile by tile, so that
// results are the same bits for any number of threads. Rounds bound what such rows there are at a time.
class Tiles {
  // Large tiles take less of the memory's time for each product; there should be some for each thread. Of edges, a
  // multiple of the rows that a product has at a time.
  static constexpr std::int64_t kMinEdges = 64, kMaxEdges = 256, kStep = 16, kTiles = 20, kTileBytes = 4 << 20;
  static constexpr std::int64_t kRoundBytes = 64 << 20, kMaxSums = 16;

 public:
  // out: [nodes, components, channels] of zeros, where what nodes get is added; null: not wanted.
  Tiles(Problem& problem, const Kernels& kernels, const Tensor& like, const Graph& graph, void* out,
        std::int64_t channels)
      : p_(problem), kernels_(kernels), like_(like), graph_(graph), out_(out) {
    const Plan& plan = *p_.plan;
    bytes_ = element_bytes(like.scalar_type());
    const std::int64_t row = bytes_ * plan.rows() * std::max(plan.channels_in, plan.channels_out);
    const std::int64_t most = std::clamp(kTileBytes / row, kStep, kMaxEdges);
    p_.tile = std::clamp(p_.edges / kTiles, std::min(kMinEdges, most), most) / kStep * kStep;
    p_.tile = std::clamp<std::int64_t>(p_.edges, 1, p_.tile);
    count_ = (p_.edges + p_.tile - 1) / p_.tile;
    size_ = plan.components() * channels;
    make_steps();
    if (out) find_nodes();
  }

  // out: where the gradients of a and the parameters go.
  void run(const std::array<void*, kSlots>& out) {
    const Tensor matrices = empty(like_, {kernels_.matrices_bytes(p_) / bytes_});
    parallel_for(kernels_.pack_tasks(p_), 16, [&](std::int64_t begin, std::int64_t end) {
      kernels_.pack(p_, matrices.mutable_data_ptr(), begin, end);
    });
    const std::int64_t numel = kernels_.sums_numel(p_);
    // How many sums hangs on the problem alone.
    sums_ = numel ? std::clamp<std::int64_t>(std::min(count_ / 4, kRoundBytes / (numel * bytes_)), 1, kMaxSums) : 0;
    OptionalTensor sums;
    if (sums_) sums = torch::stable::new_zeros(like_, {sums_, numel});
    for (std::int64_t begin = 0; begin < count_;) {
      const std::int64_t end = end_of_round(begin);
      run_round(begin, end, matrices.mutable_data_ptr(), sums ? static_cast<char*>(sums->mutable_data_ptr()) : nullptr,
                numel);
      begin = end;
    }
    if (!sums_) return;
    p_.with_type([&]<class T>(T) {
      T* const first = static_cast<T*>(sums->mutable_data_ptr());
      parallel_for(numel, 4096, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t s = 1; s < sums_; ++s) add_row(first + s * numel + begin, end - begin, first + begin);
      });
    });
    kernels_.finish(p_, sums->const_data_ptr(), out);
  }

 private:
  Problem& p_;
  const Kernels& kernels_;
  const Tensor& like_;
  const Graph& graph_;
  void* out_;
  std::int64_t bytes_, count_, size_, sums_ = 0;  // of a number; tiles; numbers of a row
  Steps steps_;
  // Tile by tile, the nodes that it has, and of each of its ends, [ends, edges of the tile], which of them.
  std::vector<std::int64_t> nodes_, first_node_, node_of_end_;

  std::int64_t ends() const { return p_.g ? p_.sources() : 1; }
  std::int64_t begin_of(std::int64_t tile) const { return tile * p_.tile; }
  std::int64_t edges_of(std::int64_t tile) const { return std::min(p_.tile, p_.edges - begin_of(tile)); }

  void make_steps() {
    const Plan& plan = *p_.plan;
    const auto rotation = [&](std::int64_t nodes, std::int64_t channels, rotate::Group group, std::int64_t groups,
                              std::int64_t columns, bool rescale) {
      rotate::Problem r;
      r.frame = rotate::make_frame(plan.lmax, plan.mmax, rescale, group, nodes * channels);
      r.dtype = p_.dtype, r.channels = channels, r.nodes_of_edge = nodes;
      r.groups = groups, r.columns = columns;
      return r;
    };
    const auto group = p_.groups == plan.orders() ? rotate::Group::order : rotate::Group::degree;
    steps_.in = rotation(p_.sources(), p_.channels, group, p_.groups, p_.groups ? plan.channels_in : 0, false);
    steps_.out = rotation(1, plan.channels_out, rotate::Group::edge, p_.heads ? 1 : 0, p_.heads, plan.rescale);
    steps_.wigner = {.dtype = p_.dtype, .lmax = plan.lmax, .mmax = plan.mmax};
    steps_.wigner.columns = wigner::numbers(plan.lmax, plan.mmax);
    steps_.wigner.q_stride = 4, steps_.wigner.g_stride = steps_.wigner.columns;
    if (!plan.s2) return;
    const std::int64_t row = plan.rows() * plan.hidden;
    const bool two = plan.activation == Activation::swiglu_s2;
    using s2_activation::Operand;
    s2_activation::Problem& value = steps_.value;
    value.plan = plan.s2, value.dtype = p_.dtype, value.x = {nullptr, row, s2_activation::kX};
    value.result = s2_activation::kZ;
    s2_activation::Problem& gradient = steps_.gradient = value;
    if (two) value.factors = {Operand{nullptr, row, s2_activation::kX}};
    gradient.derivative = two ? 0 : 1;
    gradient.factors = {Operand{nullptr, row, s2_activation::kZ}};
    gradient.result = s2_activation::kX;
  }

  void find_nodes() {
    std::vector<std::int64_t> seen(p_.nodes, -1), place(p_.nodes);
    const auto& of_ends = p_.g ? graph_.sources : graph_.targets;
    node_of_end_.reserve(of_ends.size());
    for (std::int64_t tile = 0; tile < count_; ++tile) {
      first_node_.push_back(static_cast<std::int64_t>(nodes_.size()));
      for (std::int64_t k = 0; k < ends(); ++k)
        for (std::int64_t e = begin_of(tile); e < begin_of(tile) + edges_of(tile); ++e) {
          const std::int64_t node = of_ends[k * p_.edges + e];
          if (seen[node] != tile) {
            seen[node] = tile;
            place[node] = static_cast<std::int64_t>(nodes_.size()) - first_node_.back();
            nodes_.push_back(node);
          }
          node_of_end_.push_back(place[node]);
        }
    }
    first_node_.push_back(static_cast<std::int64_t>(nodes_.size()));
  }

  std::int64_t end_of_round(std::int64_t begin) const {
    if (!out_) return count_;
    std::int64_t end = begin + 1;
    while (end < count_ && (first_node_[end + 1] - first_node_[begin]) * size_ * bytes_ <= kRoundBytes) ++end;
    return end;
  }

  void run_round(std::int64_t first, std::int64_t last, const void* matrices, char* sums, std::int64_t numel) {
    OptionalTensor rows;
    if (out_) rows = empty(like_, {first_node_[last] - first_node_[first], size_});
    // Of tiles that add to the same sums, one after the other. Threads take what is next: none waits for a slow one.
    const std::int64_t tasks = sums_ ? sums_ : last - first;
    std::atomic<std::int64_t> next = 0;
    parallel_for(tasks, 1, [&](std::int64_t, std::int64_t) {
      const auto scratch = aligned_array<std::byte>(kernels_.scratch_bytes(p_));
      Steps steps = steps_;
      for (std::int64_t task; (task = next++) < tasks;)
        for (std::int64_t n = first + (last - first) * task / tasks; n < first + (last - first) * (task + 1) / tasks;
             ++n) {
          char* const to = rows ? static_cast<char*>(rows->mutable_data_ptr()) +
                                      (first_node_[n] - first_node_[first]) * size_ * bytes_
                                : nullptr;
          run_tile(n, matrices, steps, scratch.get(), to, sums ? sums + task * numel * bytes_ : nullptr);
        }
    });
    if (rows) add_rows(first, last, rows->mutable_data_ptr());
  }

  void run_tile(std::int64_t n, const void* matrices, Steps& steps, void* scratch, void* rows, void* sums) const {
    const std::int64_t begin = begin_of(n), count = edges_of(n);
    std::vector<std::int64_t> sources;
    for (std::int64_t k = 0; k < p_.sources(); ++k) {
      const auto from = graph_.sources.begin() + k * p_.edges + begin;
      sources.insert(sources.end(), from, from + count);
    }
    Edges by;
    if (out_) {
      const std::span all(node_of_end_);
      by = by_node(all.subspan(ends() * begin, ends() * count), first_node_[n + 1] - first_node_[n]);
    }
    kernels_.run(p_, matrices, steps, scratch,
                 {begin, count, sources.data(), graph_.targets.data() + begin, &by, rows, sums});
  }

  // Those of each node, in the order of tiles, and their sum to the result.
  void add_rows(std::int64_t first, std::int64_t last, void* rows) const {
    const Edges by = by_node({nodes_.begin() + first_node_[first], nodes_.begin() + first_node_[last]}, p_.nodes);
    p_.with_type([&]<class T>(T) {
      const auto row = [&](void* of, std::int64_t n) { return static_cast<T*>(of) + n * size_; };
      parallel_for(p_.nodes, 8, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t node = begin; node < end; ++node) {
          const std::int64_t *const edge = by.edge.data(), from = by.row[node], to = by.row[node + 1];
          for (std::int64_t n = from + 1; n < to; ++n) add_row(row(rows, edge[n]), size_, row(rows, edge[from]));
          if (from < to) add_row(row(rows, edge[from]), size_, row(out_, node));
        }
      });
    });
  }
};

const Kernels& kernels() { return EQK_CHOOSE_KERNEL(); }

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& q, const OptionalTensor& h,
                                                   const OptionalTensor& a, const OptionalTensor& w,
                                                   const Tensor& conv1, const Tensor& conv2, const Tensor& index,
                                                   StringArgument plan, bool keep) {
  constexpr const char* kOp = "so2_edge_message";
  const Call::Operands operands{x, q, h, a, w, conv1, conv2};
  Call call(kOp, operands, std::nullopt, {}, index, plan);
  Problem& p = call.problem();
  const Graph graph(kOp, index, p);
  const Layer first = p.plan->first();
  const bool keep_message = keep && p.plan->keeps_message;
  const auto kept = [&](bool wanted, std::initializer_list<std::int64_t> shape) {
    return wanted ? call.make(shape) : call.make({0});
  };
  Tensor y = kept(keep, {p.edges, p.plan->rows(), first.out}), s = kept(keep, {p.edges, first.extra}),
         message = kept(keep_message, {p.edges, p.plan->rows(), p.plan->channels_out});
  if (keep) p.y = y.mutable_data_ptr(), p.s = s.mutable_data_ptr();
  if (keep_message) p.message = message.mutable_data_ptr();
  Tensor out = torch::stable::new_zeros(call.like(), {p.nodes, p.plan->components(), p.plan->channels_out});
  Tiles(p, kernels(), call.like(), graph, out.mutable_data_ptr(), p.plan->channels_out).run({});
  return {call.result(out), y, s, message};
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients backward(const Tensor& x, const Tensor& q, const OptionalTensor& h, const OptionalTensor& a,
                   const OptionalTensor& w, const Tensor& conv1, const Tensor& conv2, const Tensor& g,
                   const OptionalTensor& y, const OptionalTensor& s, const OptionalTensor& message, const Tensor& index,
                   StringArgument plan, const std::vector<bool>& wanted) {
  constexpr const char* kOp = "so2_edge_message_backward";
  const Call::Operands operands{x, q, h, a, w, conv1, conv2};
  Call call(kOp, operands, g, {y, s, message}, index, plan);
  if (wanted.size() != kSlots) fail("eqk::", kOp, ": wanted: expected ", kSlots, " flags, got ", wanted.size());
  Problem& p = call.problem();
  const Graph graph(kOp, index, p);
  std::vector<Tensor> results;
  std::array<void*, kSlots> out{};
  for (int n = 0; n < kSlots; ++n) {
    p.wanted[n] = wanted[n] && operands[n];
    if (p.wanted[n])
      results.push_back(n == kX ? torch::stable::new_zeros(call.like(), {x.size(0), x.size(1), x.size(2)})
                                : call.make_like(*operands[n]));
    else
      results.push_back(call.make({0}));
    if (p.wanted[n]) out[n] = results[n].mutable_data_ptr();
  }
  for (const Slot slot : {kQ, kH, kW}) p.out[slot] = out[slot];
  Tiles(p, kernels(), call.like(), graph, out[kX], p.channels).run(out);
  for (Tensor& t : results) t = call.result(t);
  return {results[0], results[1], results[2], results[3], results[4], results[5], results[6]};
}

}  // namespace
}  // namespace eqk::so2_edge_message

STABLE_TORCH_LIBRARY_IMPL(eqk, CPU, m) {
  m.impl("so2_edge_message", TORCH_BOX(&eqk::so2_edge_message::forward));
  m.impl("so2_edge_message_backward", TORCH_BOX(&eqk::so2_edge_message::backward));
}
