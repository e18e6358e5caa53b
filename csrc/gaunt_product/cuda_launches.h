#pragma once
// Chooses the launches of a problem, free of CUDA, so that tests obtain them without a device.
#include <algorithm>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "core/cached.h"
#include "gaunt_product/cuda_kernels.h"
#include "gaunt_product/lowered.h"
#include "gaunt_product/problem.h"

namespace eqk::gaunt_product {

// The tables of a plan in the parameters of its kernels.
struct DeviceTables {
  Kind kind;
  int lmax;
  std::array<std::vector<float>, 3> forward;  // whose result is a gradient of x, of y, or the product
  std::vector<float> backward;

  explicit DeviceTables(const Plan& plan)
      : kind(plan.odd == 0    ? Kind::even
             : plan.even == 0 ? Kind::odd
                              : Kind::all),
        lmax(degree_of(plan)) {
    const Lowered<float> lowered(plan, TableShape(Member::forward, kind, lmax).rings);
    for (int s = 0; s < 3; ++s) forward[s] = table(Member::forward, lowered, {(s + 1) % 3, (s + 2) % 3}, {s});
    backward = table(Member::backward, lowered, {0, 1, 2}, {0, 1});
  }

  // That of the kernels which run a plan.
  static int degree_of(const Plan& plan) { return std::max({1, plan.of[0].lmax, plan.of[1].lmax, plan.of[2].lmax}); }

 private:
  std::vector<float> table(Member member, const Lowered<float>& lowered, const std::vector<int>& in,
                           const std::vector<int>& out) const {
    const TableShape shape(member, kind, lmax);
    std::vector<float> result(shape.numbers());
    const auto fill = [&](int first, const Tables<float>& tables, const std::vector<float>& from) {
      for (int k = 0; k < lowered.half(); ++k)
        for (int l = 0; l <= tables.lmax; ++l)
          for (int m = 0; m <= l; ++m)
            result[k * shape.of_ring() + first + TableShape::entry(l, m)] =
                from[tables.row(m, lowered.half()) + k * tables.count(m) + l - m];
    };
    for (int n = 0; n < shape.inputs; ++n) {
      const Tables<float>& tables = lowered.of[in[n]];
      fill(shape.input(n), tables, tables.value);
      if (shape.of_input == 2) fill(shape.input(n) + shape.entries(), tables, tables.slope);
    }
    for (int n = 0; n < shape.outputs; ++n) fill(shape.output(n), lowered.of[out[n]], lowered.of[out[n]].analysis);
    return result;
  }
};

struct Launch {
  Member member;
  Kind kind;
  int lmax;
  std::int64_t grid;
  std::vector<std::uint64_t> arguments;  // SignalArguments, then the tables
  static constexpr int block = kThreads, shared = 0;

  std::string name() const {
    return std::string("eqk_gaunt_product_") + kMembers[static_cast<int>(member)] + "_" +
           kKinds[static_cast<int>(kind)] + "_l" + std::to_string(lmax) + "_f32";
  }
  const void* argument() const { return arguments.data(); }
  std::size_t argument_size() const { return arguments.size() * sizeof(std::uint64_t); }
};

class Launches {
 public:
  // Whether there are kernels for a member of the family.
  static bool cover(const Problem& problem) {
    const Plan& plan = *problem.plan;
    constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
    if (problem.dtype != Dtype::float32 || plan.rank != 1 || (plan.even == 0 && plan.odd == 0)) return false;
    for (const Slot weight : kWeight)
      if (problem.in[weight].value) return false;
    for (const Signals& signals : plan.of)
      if (signals.layout != Layout::ir_mul || signals.channels != plan.channels()) return false;
    if (plan.channels() < 1 || plan.channels() > kMost / 4 || DeviceTables::degree_of(plan) > kKernelDegrees ||
        blocks(problem) > kMost)
      return false;
    return true;
  }

  explicit Launches(const Problem& problem)
      : problem_(problem), tables_(*cached(problem.plan, [&] { return DeviceTables(*problem.plan); })) {}

  std::vector<Launch> all() && {
    if (problem_.rows == 0) return {};
    // Of the product of dual numbers, the parts of epsilon: each operand once with its tangent.
    if (!problem_.dual) {
      add_gradients({value(0), value(1), value(2)});
      add_forward(2, value(0), value(1));
    } else {
      add_gradients({tangent(0), tangent(1), value(2)});
      add_gradients({value(0), value(1), tangent(2)});
      add_forward(2, tangent(0), value(1));
      add_forward(2, value(0), tangent(1));
    }
    // Tangents that are missing may leave a result without a term: the product of signals without degrees.
    constexpr SignalsIn kNothing{nullptr, 0, -1};
    for (int s = 0; s < 3; ++s)
      if (wanted(s) && !written_[s]) add(Member::forward, tables_.forward[s], {kNothing, kNothing}, {result(s)});
    return std::move(launches_);
  }

 private:
  const Problem& problem_;
  const DeviceTables& tables_;
  std::vector<Launch> launches_;
  std::array<bool, 3> written_{};

  static std::int64_t blocks(const Problem& problem) {
    return (problem.rows * problem.plan->channels() + kThreads - 1) / kThreads;
  }

  SignalsIn value(int s) const {
    const Operand& in = problem_.in[kSignal[s]];
    return {static_cast<const float*>(in.value), in.stride, problem_.plan->of[s].lmax};
  }
  SignalsIn tangent(int s) const {
    const Operand& in = problem_.in[kSignal[s]];
    return {static_cast<const float*>(in.tangent), in.tangent_stride, problem_.plan->of[s].lmax};
  }
  bool wanted(int s) const { return problem_.out[kSignal[s]].data; }

  SignalsOut result(int s) {
    const Result& out = problem_.out[kSignal[s]];
    return {static_cast<float*>(out.data), out.stride, problem_.plan->of[s].lmax, std::exchange(written_[s], true)};
  }

  // Those of x and y, as far as they are wanted and have both factors.
  void add_gradients(const std::array<SignalsIn, 3>& in) {
    if (wanted(0) && wanted(1) && in[0].data && in[1].data && in[2].data)
      return add(Member::backward, tables_.backward, in, {result(0), result(1)});
    add_forward(0, in[1], in[2]);
    add_forward(1, in[2], in[0]);
  }

  // The product in slot s, of the two others.
  void add_forward(int s, const SignalsIn& f, const SignalsIn& g) {
    if (wanted(s) && f.data && g.data) add(Member::forward, tables_.forward[s], {f, g}, {result(s)});
  }

  void add(Member member, const std::vector<float>& table, const std::array<SignalsIn, 3>& in,
           const std::array<SignalsOut, 2>& out) {
    const SignalArguments signals{in, out, problem_.rows, Divisor(problem_.plan->channels())};
    const std::size_t bytes = sizeof(signals) + table.size() * sizeof(float);
    Launch launch{member, tables_.kind, tables_.lmax, blocks(problem_), std::vector<std::uint64_t>((bytes + 7) / 8)};
    char* const to = reinterpret_cast<char*>(launch.arguments.data());
    std::memcpy(to, &signals, sizeof(signals));
    std::memcpy(to + sizeof(signals), table.data(), table.size() * sizeof(float));
    launches_.push_back(std::move(launch));
  }
};

}  // namespace eqk::gaunt_product
