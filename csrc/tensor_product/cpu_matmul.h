#pragma once
// Paths whose weights, shared by all rows, mix channels (uvw, uuw, u<vw): the outer product of the channels is a sparse
// tensor product without weights, which the kernels run, and what remains is a matrix product, which the library runs.
// With z[row, k, q] = coefficient sum_ij C[i, j, k] x[row, u, i] y[row, v, j] for the pair of channels q = (u, v),
//
//   out_k = z_k W,   gW = sum_k z_k^T g_k,   h_k = g_k W^T,   and gx, gy are the backward of z for the cotangent h.
//
// On duals each product splits into two by the rule of Leibniz. z and h exist for a block of rows and a group of paths
// at a time.
#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <vector>

#include "core/aligned.h"
#include "core/tensor.h"
#include "tensor_product/cpu_kernels.h"

namespace eqk::tensor_product {

struct MatmulPath {
  std::int64_t pairs, channels, weight_offset,
      z;  // z: offset of component 0 in a row of z; component k is k * pairs on
  int components;
  View out;
};

struct MatmulGroup {
  std::vector<MatmulPath> paths;
  Plan outer;  // without weights, from x and y to z
  Lowered lowered;

  // The components of a row are then rows of one matrix.
  bool alone() const { return paths.size() == 1; }
};

struct MatmulPlan {
  std::vector<MatmulGroup> groups;
  Plan rest;  // what the matrix products leave
  Lowered rest_lowered;
  std::int64_t columns = 0;  // of a row of z, at most

  // Null where no path gains by it.
  static std::unique_ptr<const MatmulPlan> of(const Plan& plan, int lmax) {
    if (plan.weights != Weights::shared) return nullptr;
    auto result = std::make_unique<MatmulPlan>();
    Plan& rest = result->rest;
    rest = plan;
    rest.instructions.clear();
    for (const auto& ins : plan.instructions) {
      const Segment& out = plan.irreps[2][ins.io];
      const std::int64_t pairs = out.mul > 0 ? ins.weight_numel / out.mul : 0;
      // Below, a call of the library costs more than it saves.
      constexpr std::int64_t kMinPairs = 16, kMinChannels = 8, kMinWeights = 1024;
      if (!ins.weighted || !mixes(ins.mode) || pairs < kMinPairs || out.mul < kMinChannels ||
          ins.weight_numel < kMinWeights) {
        rest.instructions.push_back(ins);
        continue;
      }
      const Mode mode = ins.mode == Mode::uvw ? Mode::uvuv : ins.mode == Mode::uuw ? Mode::uuu : Mode::uvu_lt_v;
      MatmulGroup& group = result->group_for(plan, pairs * out.dim());
      Plan& outer = group.outer;
      const int io = static_cast<int>(outer.irreps[2].size());
      outer.instructions.push_back({ins.i1, ins.i2, io, mode, false, ins.coefficient, 0, 0});
      outer.irreps[2].push_back({pairs, out.l, out.p, outer.dim[2]});
      group.paths.push_back({pairs, out.mul, ins.weight_offset, outer.dim[2], out.dim(), view(out, plan.layout[2])});
      outer.dim[2] += pairs * out.dim();
    }
    if (result->groups.empty()) return nullptr;
    for (MatmulGroup& group : result->groups) {
      group.lowered = lower(group.outer, lmax);
      result->columns = std::max(result->columns, group.outer.dim[2]);
    }
    result->rest_lowered = lower(rest, lmax);
    return result;
  }

  // Rows of a block: many, to read the weights seldom, and few, for z to stay in a cache and every thread to have some.
  // By the number of rows alone, so that the bits do not depend on the number of threads.
  std::int64_t block(std::int64_t rows) const {
    const std::int64_t most = std::min(kMaxRows, kElements / columns / kMinRows * kMinRows);
    return std::clamp((rows / kMinParts + kMinRows - 1) / kMinRows * kMinRows, kMinRows, std::max(kMinRows, most));
  }

 private:
  static constexpr std::int64_t kElements = 1 << 21, kMinRows = 32, kMaxRows = 512, kMinParts = 4;
  // Where more columns were left for others, z of a block would not be in a cache.
  static constexpr std::int64_t kColumns = kElements / 128;

  MatmulGroup& group_for(const Plan& plan, std::int64_t z_columns) {
    if (groups.empty() || groups.back().outer.dim[2] + z_columns > kColumns) {
      Plan& outer = groups.emplace_back().outer;
      outer.irreps = {plan.irreps[0], plan.irreps[1], {}};
      outer.dim = {plan.dim[0], plan.dim[1], 0};
      outer.layout = {plan.layout[0], plan.layout[1], Layout::ir_mul};
    }
    return groups.back();
  }

  static bool mixes(Mode mode) { return mode == Mode::uvw || mode == Mode::uuw || mode == Mode::u_lt_vw; }
};

template <class T>
class MatmulRows {
 public:
  MatmulRows(const Problem& problem, const MatmulPlan& plan, RowsKernel kernel, const Tensor& like, T* weight_partial)
      : problem_(problem), plan_(plan), kernel_(kernel), like_(like), partial_(weight_partial) {
    const Operand &w = problem.in[kW], &g = problem.in[kG];
    const bool dual = problem.dual;
    want_out_ = problem.out[kG].data;
    want_inputs_ = problem.out[kX].data || problem.out[kY].data;
    const bool z_tangent = dual && (want_out_ || partial_);
    const bool z = (want_out_ && (!dual || w.tangent)) || (partial_ && (!dual || g.tangent));
    const bool h_tangent = dual && want_inputs_ && (w.tangent || g.tangent);
    block_rows_ = plan.block(problem.rows);
    const std::int64_t rows = std::min(block_rows_, problem.rows);
    const auto take = [&](bool wanted, std::int64_t columns) {
      return wanted ? aligned_array<T>(rows * columns) : AlignedArray<T>();
    };
    z_ = take(z, plan.columns);
    z_tangent_ = take(z_tangent, plan.columns);
    h_ = take(want_inputs_, plan.columns);
    h_tangent_ = take(h_tangent, plan.columns);
    gx_ = take(problem.out[kX].data, problem.plan->dim[0]);
    gy_ = take(problem.out[kY].data, problem.plan->dim[1]);
  }

  void run(std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; row += block_rows_) {
      block(row, std::min(block_rows_, end - row));
      first_block_ = false;
    }
  }

 private:
  const Problem& problem_;
  const MatmulPlan& plan_;
  RowsKernel kernel_;
  const Tensor& like_;
  T* partial_;
  std::int64_t block_rows_;
  bool want_out_, want_inputs_;

  struct Strides {
    std::int64_t row, component, column;
  };
  bool first_block_ = true;  // nothing has been added to the gradient of the weights yet
  AlignedArray<T> z_, z_tangent_, h_, h_tangent_, gx_, gy_;

  Tensor matrix(const void* data, std::int64_t rows, std::int64_t columns, std::int64_t row_stride,
                std::int64_t column_stride) const {
    return torch::stable::from_blob(const_cast<void*>(data), {rows, columns}, {row_stride, column_stride},
                                    like_.device(), like_.scalar_type());
  }

  // to[r, c] = (a b)[r, c], rows row_stride apart.
  void multiply(const Tensor& a, const Tensor& b, T* to, std::int64_t row_stride) const {
    torch_operation("aten::mm", "out", a, b, matrix(to, a.size(0), b.size(1), row_stride, 1));
  }

  // to[r, k, c] += (a b)[r * components + k, c]
  void add_product(const Tensor& a, const Tensor& b, T* to, int components, const Strides& strides) const {
    const Tensor product = torch::stable::matmul(a, b);
    const T* p = static_cast<const T*>(product.const_data_ptr());
    const std::int64_t columns = b.size(1);
    for (std::int64_t r = 0; r < a.size(0); ++r) {
      T* const t = to + r / components * strides.row + r % components * strides.component;
      for (std::int64_t c = 0; c < columns; ++c, ++p) t[c * strides.column] += *p;
    }
  }

  // The rows of a block as a problem of the outer product.
  Problem outer(const MatmulGroup& group, std::int64_t row, std::int64_t rows, bool dual) const {
    Problem p;
    p.plan = &group.outer;
    p.dtype = problem_.dtype;
    p.rows = rows;
    p.dual = dual;
    for (const Slot slot : {kX, kY}) {
      const Operand& in = problem_.in[slot];
      p.in[slot] = {at(in.value, row * in.stride),
                    dual && in.tangent ? at(in.tangent, row * in.tangent_stride) : nullptr, in.stride,
                    in.tangent_stride};
    }
    return p;
  }

  static const T* at(const void* base, std::int64_t offset) { return static_cast<const T*>(base) + offset; }

  void make_z(const MatmulGroup& group, std::int64_t row, std::int64_t rows, bool tangent, T* z) const {
    if (!z) return;
    Problem p = outer(group, row, rows, tangent);
    p.out[kG] = {z, group.outer.dim[2]};
    kernel_(p, group.lowered, 0, rows, nullptr);
  }

  void block(std::int64_t row, std::int64_t rows) {
    run_rest(row, rows);
    for (const MatmulGroup& group : plan_.groups) {
      make_z(group, row, rows, false, z_.get());
      make_z(group, row, rows, true, z_tangent_.get());
      for (const MatmulPath& path : group.paths)
        if (group.alone())
          products(group, path, 0, path.components, row, rows);
        else
          for (int k = 0; k < path.components; ++k) products(group, path, k, 1, row, rows);
      if (want_inputs_) input_gradients(group, row, rows);
    }
  }

  void input_gradients(const MatmulGroup& group, std::int64_t row, std::int64_t rows) {
    Problem p = outer(group, row, rows, problem_.dual);
    const std::int64_t pitch = group.outer.dim[2];
    p.in[kG] = {h_.get(), h_tangent_.get(), pitch, pitch};
    if (gx_) p.out[kX] = {gx_.get(), group.outer.dim[0]};
    if (gy_) p.out[kY] = {gy_.get(), group.outer.dim[1]};
    kernel_(p, group.lowered, 0, rows, nullptr);
    add(kX, gx_.get(), row, rows);
    add(kY, gy_.get(), row, rows);
  }

  // What the products then add to.
  void run_rest(std::int64_t row, std::int64_t rows) const {
    if (!plan_.rest_lowered.paths.empty()) {
      Problem rest = problem_;
      rest.plan = &plan_.rest;
      kernel_(rest, plan_.rest_lowered, row, row + rows, partial_);
      return;
    }
    for (const Slot slot : {kX, kY, kG}) {
      const Result& result = problem_.out[slot];
      if (result.data) std::fill_n(static_cast<T*>(result.data) + row * result.stride, rows * result.stride, T{});
    }
  }

  // Of components k to k + count of a path: as many if it is alone in its group, else one.
  void products(const MatmulGroup& group, const MatmulPath& path, int k, int count, std::int64_t row,
                std::int64_t rows) {
    const Operand &w = problem_.in[kW], &g = problem_.in[kG];
    const std::int64_t pitch = group.outer.dim[2] / count, z_at = path.z + k * path.pairs;
    const std::int64_t out_at = path.out.offset + k * path.out.component;
    const auto of_z = [&](const T* z) { return matrix(z + z_at, rows * count, path.pairs, pitch, 1); };
    const auto of_w = [&](const void* data) {
      return matrix(at(data, path.weight_offset), path.pairs, path.channels, path.channels, 1);
    };
    const auto of_g = [&](const void* data, std::int64_t stride, AlignedArray<T>& copy) {
      const T* const from = at(data, row * stride + out_at);
      if (count == 1) return matrix(from, rows, path.channels, stride, path.out.channel);
      copy = aligned_array<T>(rows * count * path.channels);
      T* to = copy.get();
      for (std::int64_t r = 0; r < rows; ++r)
        for (int n = 0; n < count; ++n)
          for (std::int64_t c = 0; c < path.channels; ++c)
            *to++ = from[r * stride + n * path.out.component + c * path.out.channel];
      return matrix(copy.get(), rows * count, path.channels, path.channels, 1);
    };
    const auto transposed = [](const Tensor& t) { return torch::stable::transpose(t, 0, 1); };
    const T* const part = problem_.dual ? z_tangent_.get() : z_.get();
    if (want_out_) {
      const Result& result = problem_.out[kG];
      const Strides strides{result.stride, path.out.component, path.out.channel};
      T* const to = static_cast<T*>(result.data) + row * result.stride + out_at;
      add_product(of_z(part), of_w(w.value), to, count, strides);
      if (problem_.dual && w.tangent) add_product(of_z(z_.get()), of_w(w.tangent), to, count, strides);
    }
    if (!partial_ && !want_inputs_) return;
    AlignedArray<T> g_copy, g_tangent_copy;
    const Tensor cotangent = of_g(g.value, g.stride, g_copy);
    std::optional<Tensor> cotangent_tangent;
    if (problem_.dual && g.tangent) cotangent_tangent = of_g(g.tangent, g.tangent_stride, g_tangent_copy);
    if (partial_) {
      T* const to = partial_ + path.weight_offset;
      const Strides strides{path.channels, 0, 1};
      const Tensor z_transposed = transposed(of_z(part));
      if (first_block_ && k == 0)
        multiply(z_transposed, cotangent, to, path.channels);
      else
        add_product(z_transposed, cotangent, to, 1, strides);
      if (cotangent_tangent) add_product(transposed(of_z(z_.get())), *cotangent_tangent, to, 1, strides);
    }
    if (want_inputs_) {
      const Tensor w_transposed = transposed(of_w(w.value));
      multiply(cotangent, w_transposed, h_.get() + z_at, pitch);
      if (!h_tangent_) return;
      T* const to = h_tangent_.get() + z_at;
      if (w.tangent) multiply(cotangent, transposed(of_w(w.tangent)), to, pitch);
      if (cotangent_tangent && w.tangent)
        add_product(*cotangent_tangent, w_transposed, to, 1, {pitch, 0, 1});
      else if (cotangent_tangent)
        multiply(*cotangent_tangent, w_transposed, to, pitch);
    }
  }

  void add(Slot slot, const T* from, std::int64_t row, std::int64_t rows) const {
    const Result& result = problem_.out[slot];
    if (!result.data) return;
    const std::int64_t columns = problem_.plan->dim[slot];
    for (std::int64_t r = 0; r < rows; ++r) {
      T* const to = static_cast<T*>(result.data) + (row + r) * result.stride;
      for (std::int64_t c = 0; c < columns; ++c) to[c] += from[r * columns + c];
    }
  }
};

}  // namespace eqk::tensor_product
