// libFuzzer's target: a text is read by every parser of plans and, where one takes it, made ready for the kernels, on
// the CPU and CUDA, as ops do before they touch a number. A refusal is a PlanError of printable text. `make fuzz`
// builds it with clang and runs it; tests/test_hostile_plans.py gives the ops themselves what it has found.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "gaunt_product/cuda_launches.h"
#include "s2_activation/lowered.h"
#include "so2_edge_message/plan.h"
#include "spherical_harmonics/plan.h"
#include "symmetric_contraction/lowered.h"
#include "tensor_product/cuda_tables.h"
#include "tensor_product_conv/cuda_launches.h"

namespace {

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "fuzz_plans: not so: %s\n", what);
  std::abort();
}

template <class Parse>
void parse(const Parse& parse_and_lower) {
  try {
    parse_and_lower();
  } catch (const eqk::PlanError& error) {
    const std::string_view text = error.what();
    require(text.starts_with("plan: expected ") && text.size() < 1000, "an error of one line says what was expected");
    require(std::ranges::all_of(text, [](char c) { return c >= ' ' && c <= '~'; }), "an error is printable");
  }
}

void tensor_product(std::string_view text) {
  using namespace eqk::tensor_product;
  const eqk::Plan plan = eqk::PlanParser(text).parse();
  for (int s = 0; s < 3; ++s) {
    std::int64_t columns = 0;
    for (const eqk::Segment& segment : plan.irreps[s]) {
      require(segment.offset == columns && segment.l <= eqk::kMaxDegree, "segments follow one another");
      columns += segment.size();
    }
    require(columns == plan.dim[s], "segments make up an operand");
  }
  std::int64_t weights = 0;
  for (const eqk::Instruction& ins : plan.instructions) {
    require(ins.weight_offset == weights && ins.weight_numel >= 0, "weights follow one another");
    weights += ins.weight_numel;
  }
  require(weights == plan.weight_numel, "the weights of the paths are those of the plan");
  for (const bool sum_rows : {false, true}) lower(plan, EQK_LMAX, sum_rows);
  for (const bool is_double : {false, true}) Tables(plan, is_double);
  const eqk::tensor_product_conv::UnitPlan units(plan);
}

void gaunt_product(std::string_view text) {
  using namespace eqk::gaunt_product;
  const Plan plan = PlanParser(text).parse();
  const Lowered<double> lowered(plan);
  constexpr int kMostOfKernels = 6;
  if (DeviceTables::degree_of(plan) <= kMostOfKernels) DeviceTables{plan};
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  parse([&] { tensor_product(text); });
  parse([&] { gaunt_product(text); });
  parse([&] { eqk::s2_activation::Lowered<double>{eqk::s2_activation::PlanParser(text).parse()}; });
  parse([&] {
    const auto plan = eqk::symmetric_contraction::PlanParser(text).parse();
    eqk::symmetric_contraction::Lowering(plan).run();
  });
  parse([&] { eqk::so2_edge_message::PlanParser(text).parse(); });
  parse([&] { eqk::spherical_harmonics::parse_plan(text); });
  return 0;
}
