#pragma once
// Arguments of the op, checked and turned into a Problem.
#include <algorithm>
#include <array>
#include <span>
#include <vector>

#include "core/plan.h"
#include "core/tensor.h"
#include "rotate/problem.h"

namespace eqk::rotate {

struct Sizes {
  std::int64_t num_nodes, groups, columns;  // the first where x is missing, the others where weights are
};

class Call {
 public:
  Call(const std::array<OptionalTensor, kSlots>& operands, const OptionalTensor& index, const Sizes& sizes,
       std::int64_t lmax, std::int64_t mmax, bool rescale, std::int64_t missing)
      : operands_(operands) {
    if (lmax < 0 || lmax > kMaxDegree) fail(kOp, "lmax: expected a degree from 0 to ", kMaxDegree, ", got ", lmax);
    if (mmax < 0 || mmax > lmax) fail(kOp, "mmax: expected an order from 0 to lmax, ", lmax, ", got ", mmax);
    if (missing < 0 || missing >= kSlots)
      fail(kOp, "missing: expected 0 (x), 1 (D), 2 (weights) or 3 (z), got ", missing);
    problem_.missing = static_cast<Slot>(missing);
    for (int s = 0; s < kSlots; ++s) {
      if (s == missing && operands[s])
        fail(kOp, kSlotNames[s], ": expected None for what is missing, got shape ", shape_string(*operands[s]));
      if (s != missing && s != kWeights && !operands[s]) fail(kOp, kSlotNames[s], ": expected a tensor, got None");
      if (operands[s] && operands[s]->dim() != kDims[s])
        fail(kOp, kSlotNames[s], ": expected ", kDims[s], " dimensions, got shape ", shape_string(*operands[s]));
    }
    first_ = operands[kX] ? kX : kZ;
    problem_.dtype = kernel_dtype("rotate", *operands[first_], kSlotNames[first_]);
    problem_.edges = operands[operands[kD] ? kD : kZ]->size(0);
    check_index(index);
    take_shape_of(sizes, static_cast<int>(lmax), static_cast<int>(mmax), rescale);
    for (int s = 0; s < kSlots; ++s)
      if (operands[s]) accept(s);
  }

  Problem& problem() { return problem_; }
  const Tensor& like() const { return *operands_[first_]; }

  Tensor result() const {
    const auto& shape = shapes_[problem_.missing];
    return problem_.missing == kD ? empty(like(), {shape[0], shape[1]}) : empty(like(), {shape[0], shape[1], shape[2]});
  }

 private:
  static constexpr const char* kOp = "eqk::rotate: ";
  static constexpr std::array<int, kSlots> kDims{3, 2, 3, 3};
  using Shape = std::array<std::int64_t, 3>;

  const std::array<OptionalTensor, kSlots>& operands_;
  Problem problem_;
  int first_;
  bool has_index_ = false;
  std::array<Shape, kSlots> shapes_{};
  std::vector<Tensor> kept_;

  void check_index(const OptionalTensor& index) {
    problem_.nodes_of_edge = 1;
    if (!index) return;
    if (index->dim() != 2 || index->size(0) == 0 || index->size(1) != problem_.edges)
      fail(kOp, "index: expected shape [nodes of an edge, ", problem_.edges, "], got ", shape_string(*index));
    if (index->scalar_type() != ScalarType::Int && index->scalar_type() != ScalarType::Long)
      fail(kOp, "index: expected dtype int32 or int64, got ", index->scalar_type());
    check_device("rotate", "index", *index, like(), kSlotNames[first_]);
    problem_.nodes_of_edge = index->size(0);
    has_index_ = true;
  }

  // Of every operand, from those that say it.
  void take_shape_of(const Sizes& sizes, int lmax, int mmax, bool rescale) {
    Problem& p = problem_;
    const auto& [x, d, weights, z] = operands_;
    p.nodes = !has_index_ ? p.edges : x ? x->size(0) : sizes.num_nodes;
    if (!x && (sizes.num_nodes < 0 || sizes.num_nodes != p.nodes))
      fail(kOp, "num_nodes: expected ", has_index_ ? "at least 0" : "edges, without an index", ", got ",
           sizes.num_nodes);
    if (!x && z->size(2) % p.nodes_of_edge)
      fail(kOp, "z: expected channels of ", p.nodes_of_edge, " nodes, got shape ", shape_string(*z));
    p.channels = x ? x->size(2) : z->size(2) / p.nodes_of_edge;
    const std::int64_t of_edge = p.nodes_of_edge * p.channels, degrees = lmax + 1;
    std::int64_t orders = 0;
    for (int m = 0; m <= mmax; ++m) orders += degrees - m;
    if (weights || p.missing == kWeights) {
      p.groups = weights ? weights->size(1) : sizes.groups;
      p.columns = weights ? weights->size(2) : sizes.columns;
      const char* const name = weights ? "weights" : "groups, columns";
      if (p.groups != 1 && p.groups != degrees && p.groups != orders)
        fail(kOp, name, ": expected 1 row for an edge, ", degrees, " for degrees or ", orders,
             " for degrees and orders, got ", p.groups);
      if (p.columns < 0 || (p.columns ? of_edge % p.columns : of_edge))
        fail(kOp, name, ": expected a divisor of ", of_edge, " columns, got ", p.columns);
    }
    // Where two of these numbers agree, so do the groups.
    p.frame = make_frame(lmax, mmax, rescale,
                         p.groups == orders    ? Group::order
                         : p.groups == degrees ? Group::degree
                                               : Group::edge,
                         of_edge);
    shapes_ = {Shape{p.nodes, p.frame.components, p.channels}, Shape{p.edges, p.frame.numbers},
               Shape{p.edges, p.groups, p.columns}, Shape{p.edges, p.frame.rows, of_edge}};
  }

  void accept(int slot) {
    const Tensor& t = *operands_[slot];
    check_shape("rotate", kSlotNames[slot], t, std::span(shapes_[slot]).first(kDims[slot]));
    check_like("rotate", kSlotNames[slot], t, like(), kSlotNames[first_]);
    kept_.push_back(torch::stable::contiguous(t));
    problem_.in[slot] = kept_.back().const_data_ptr();
  }
};

}  // namespace eqk::rotate
