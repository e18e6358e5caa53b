#pragma once
// Paths whose weights, shared by all rows, mix channels (uvw, uuw, u<vw): the outer product of the channels is a sparse
// tensor product without weights, which the kernels run, and what remains is a matrix product, which the library runs.
// With z[row, k, q] = coefficient sum_ij C[i, j, k] x[row, u, i] y[row, v, j] for the pair of channels q = (u, v),
//
//   out_k = z_k W,   gW = sum_k z_k^T g_k,   h_k = g_k W^T,   and gx, gy are the backward of z for the cotangent h.
//
// On duals each product splits into two by the rule of Leibniz. z and h exist for a block of rows at a time.
#include <algorithm>
#include <array>
#include <memory>
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

struct MatmulPlan {
  std::vector<MatmulPath> paths;
  Plan outer, rest;  // without weights, from x and y to z; what the matrix products leave
  Lowered outer_lowered, rest_lowered;

  // Null where no path gains by it.
  static std::unique_ptr<const MatmulPlan> of(const Plan& plan, int lmax) {
    if (plan.weights != Weights::shared) return nullptr;
    auto result = std::make_unique<MatmulPlan>();
    Plan &outer = result->outer, &rest = result->rest;
    outer.irreps = {plan.irreps[0], plan.irreps[1], {}};
    outer.dim = {plan.dim[0], plan.dim[1], 0};
    outer.layout = {plan.layout[0], plan.layout[1], Layout::ir_mul};
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
      const int io = static_cast<int>(outer.irreps[2].size());
      outer.instructions.push_back({ins.i1, ins.i2, io, mode, false, ins.coefficient, 0, 0});
      outer.irreps[2].push_back({pairs, out.l, out.p, outer.dim[2]});
      result->paths.push_back({pairs, out.mul, ins.weight_offset, outer.dim[2], out.dim(), view(out, plan.layout[2])});
      outer.dim[2] += pairs * out.dim();
    }
    if (result->paths.empty()) return nullptr;
    if (outer.dim[2] > kElements / kMinRows) return nullptr;
    result->outer_lowered = lower(outer, lmax);
    result->rest_lowered = lower(rest, lmax);
    return result;
  }

  // Rows of a block: many, to read the weights seldom, and few, for z to stay in a cache and every thread to have some.
  // By the number of rows alone, so that the bits do not depend on the number of threads.
  std::int64_t block(std::int64_t rows) const {
    const std::int64_t most = std::min(kMaxRows, kElements / outer.dim[2] / kMinRows * kMinRows);
    return std::clamp((rows / kMinParts + kMinRows - 1) / kMinRows * kMinRows, kMinRows, most);
  }

 private:
  static constexpr std::int64_t kElements = 1 << 21, kMinRows = 32, kMaxRows = 512, kMinParts = 4;

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
    z_ = take(z, plan.outer.dim[2]);
    z_tangent_ = take(z_tangent, plan.outer.dim[2]);
    h_ = take(want_inputs_, plan.outer.dim[2]);
    h_tangent_ = take(h_tangent, plan.outer.dim[2]);
    gx_ = take(problem.out[kX].data, plan.outer.dim[0]);
    gy_ = take(problem.out[kY].data, plan.outer.dim[1]);
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
  bool first_block_ = true;  // nothing has been added to the gradient of the weights yet
  AlignedArray<T> z_, z_tangent_, h_, h_tangent_, gx_, gy_;

  Tensor matrix(const void* data, std::int64_t rows, std::int64_t columns, std::int64_t row_stride,
                std::int64_t column_stride) const {
    return torch::stable::from_blob(const_cast<void*>(data), {rows, columns}, {row_stride, column_stride},
                                    like_.device(), like_.scalar_type());
  }

  // to[r * row_stride + c * column_stride] (+)= (a b)[r, c], both cut to matrices.
  void multiply(const Tensor& a, const Tensor& b, T* to, std::int64_t row_stride, std::int64_t column_stride,
                bool add) const {
    const std::int64_t rows = a.size(0), columns = b.size(1);
    if (!add && column_stride == 1) {
      std::array<StableIValue, 3> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                        torch::stable::detail::from(matrix(to, rows, columns, row_stride, 1))};
      STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
      torch::stable::detail::to<Tensor>(stack[0]);  // owns what the call returned
      return;
    }
    const Tensor product = torch::stable::matmul(a, b);
    const T* p = static_cast<const T*>(product.const_data_ptr());
    for (std::int64_t r = 0; r < rows; ++r) {
      T* const t = to + r * row_stride;
      for (std::int64_t c = 0; c < columns; ++c, ++p) t[c * column_stride] = add ? t[c * column_stride] + *p : *p;
    }
  }

  // The rows of a block as a problem of the outer product.
  Problem outer(std::int64_t row, std::int64_t rows, bool dual) const {
    Problem p;
    p.plan = &plan_.outer;
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

  void make_z(std::int64_t row, std::int64_t rows, bool tangent, T* z) const {
    if (!z) return;
    Problem p = outer(row, rows, tangent);
    p.out[kG] = {z, plan_.outer.dim[2]};
    kernel_(p, plan_.outer_lowered, 0, rows, nullptr);
  }

  void block(std::int64_t row, std::int64_t rows) {
    run_rest(row, rows);
    make_z(row, rows, false, z_.get());
    make_z(row, rows, true, z_tangent_.get());
    for (const MatmulPath& path : plan_.paths)
      for (int k = 0; k < path.components; ++k) products(path, k, row, rows);
    if (!want_inputs_) return;
    Problem p = outer(row, rows, problem_.dual);
    const std::int64_t pitch = plan_.outer.dim[2];
    p.in[kG] = {h_.get(), h_tangent_.get(), pitch, pitch};
    if (gx_) p.out[kX] = {gx_.get(), plan_.outer.dim[0]};
    if (gy_) p.out[kY] = {gy_.get(), plan_.outer.dim[1]};
    kernel_(p, plan_.outer_lowered, 0, rows, nullptr);
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

  void products(const MatmulPath& path, int k, std::int64_t row, std::int64_t rows) {
    const Operand &w = problem_.in[kW], &g = problem_.in[kG];
    const std::int64_t pitch = plan_.outer.dim[2], z_at = path.z + k * path.pairs;
    const std::int64_t out_at = path.out.offset + k * path.out.component;
    const auto of_z = [&](const T* z) { return matrix(z + z_at, rows, path.pairs, pitch, 1); };
    const auto of_w = [&](const void* data) {
      return matrix(at(data, path.weight_offset), path.pairs, path.channels, path.channels, 1);
    };
    const auto of_g = [&](const void* data, std::int64_t stride) {
      return matrix(at(data, row * stride + out_at), rows, path.channels, stride, path.out.channel);
    };
    const auto transposed = [](const Tensor& t) { return torch::stable::transpose(t, 0, 1); };
    const T* const part = problem_.dual ? z_tangent_.get() : z_.get();
    if (want_out_) {
      const Result& result = problem_.out[kG];
      T* const to = static_cast<T*>(result.data) + row * result.stride + out_at;
      multiply(of_z(part), of_w(w.value), to, result.stride, path.out.channel, true);
      if (problem_.dual && w.tangent)
        multiply(of_z(z_.get()), of_w(w.tangent), to, result.stride, path.out.channel, true);
    }
    if (partial_) {
      T* const to = partial_ + path.weight_offset;
      multiply(transposed(of_z(part)), of_g(g.value, g.stride), to, path.channels, 1, !first_block_ || k > 0);
      if (problem_.dual && g.tangent)
        multiply(transposed(of_z(z_.get())), of_g(g.tangent, g.tangent_stride), to, path.channels, 1, true);
    }
    if (want_inputs_) {
      const Tensor w_transposed = transposed(of_w(w.value)), cotangent = of_g(g.value, g.stride);
      multiply(cotangent, w_transposed, h_.get() + z_at, pitch, 1, false);
      if (!h_tangent_) return;
      T* const to = h_tangent_.get() + z_at;
      if (w.tangent) multiply(cotangent, transposed(of_w(w.tangent)), to, pitch, 1, false);
      if (g.tangent) multiply(of_g(g.tangent, g.tangent_stride), w_transposed, to, pitch, 1, w.tangent != nullptr);
    }
  }

  void add(Slot slot, const T* from, std::int64_t row, std::int64_t rows) const {
    const Result& result = problem_.out[slot];
    if (!result.data) return;
    const std::int64_t columns = plan_.outer.dim[slot];
    for (std::int64_t r = 0; r < rows; ++r) {
      T* const to = static_cast<T*>(result.data) + (row + r) * result.stride;
      for (std::int64_t c = 0; c < columns; ++c) to[c] += from[r * columns + c];
    }
  }
};

}  // namespace eqk::tensor_product
