#pragma once
// The description of a call: "L,L,... NORMALIZATION", for example "0,1,2,3 component"; "-" stands for no degree at all.
// Degrees come in any order and may repeat; each is 2 l + 1 columns. python/eqk/spherical_harmonics.py writes the same.
#include <algorithm>
#include <cmath>
#include <string>
#include <string_view>
#include <vector>

#include "core/dtype.h"
#include "core/plan.h"
#include "core/solid_harmonics.h"

namespace eqk::spherical_harmonics {

struct Plan {
  int lmax = 0;
  std::vector<int> index;     // for each column, its component in the list of all up to lmax
  std::vector<double> scale;  // for each column, the factor from component normalisation
  std::vector<float> scale_float;
};

inline Plan parse_plan(const std::string& text) {
  const auto fail = [&](const char* expected) {
    throw PlanError("plan: expected " + std::string(expected) + ", found " + excerpt(text.substr(0, 80)));
  };
  const auto space = text.find(' ');
  if (space == std::string::npos || text.size() > (1 << 16))
    fail("'DEGREES NORMALIZATION' such as '0,1,2 component', at most 64 KiB");
  const std::string_view name = std::string_view(text).substr(space + 1);
  if (name != "integral" && name != "component" && name != "norm")
    fail("a normalization (integral, component or norm)");
  Plan plan;
  std::string_view degrees = std::string_view(text).substr(0, space);
  if (degrees == "-") return plan;
  for (;;) {
    const auto comma = std::min(degrees.find(','), degrees.size());
    int l = comma == 0 || comma > 2 ? kMaxDegree + 1 : 0;
    for (const char digit : degrees.substr(0, l == 0 ? comma : 0))
      l = digit < '0' || digit > '9' ? kMaxDegree + 1 : 10 * l + (digit - '0');
    if (l > kMaxDegree) fail("degrees from 0 to 20 separated by commas");
    plan.lmax = std::max(plan.lmax, l);
    const double scale = name == "component" ? 1 : 1 / std::sqrt(name == "norm" ? 2 * l + 1 : 16 * std::atan(1.0));
    for (int m = -l; m <= l; ++m) {
      plan.index.push_back(solid_index(l, m));
      plan.scale.push_back(scale);
      plan.scale_float.push_back(static_cast<float>(scale));
    }
    if (comma == degrees.size()) return plan;
    degrees.remove_prefix(comma + 1);
  }
}

inline const Plan* cached_plan(const std::string& text) {
  return cached(text, [&] { return parse_plan(text); });
}

struct Problem {
  const Plan* plan = nullptr;
  Dtype dtype{};
  std::int64_t rows = 0;
  const void *x = nullptr, *g = nullptr;  // g: null for the values, the cotangent of the values for the gradient
  std::int64_t x_stride = 0, g_stride = 0;
  void* out = nullptr;  // contiguous: [rows, columns] for the values, [rows, 3] for the gradient
};

// Handles rows [begin, end).
using RowsKernel = void (*)(const Problem&, std::int64_t begin, std::int64_t end);

RowsKernel kernel_of_baseline();
RowsKernel kernel_of_avx2();
RowsKernel kernel_of_avx512();

// Built once by code for the baseline instruction set.
template <class T>
const SolidCoefficients<T>& solid_coefficients();

}  // namespace eqk::spherical_harmonics
