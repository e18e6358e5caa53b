// Prints the tables of the plans that get channel kernels of their own as constants, and which these are: cuda_plans.h
// of the build directory. usage: cuda_plans FILE NAME... > cuda_plans.h; FILE: see cuda_plans.txt, NAME: of plans in it
#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>
#include <fstream>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "tensor_product/cuda_kernels.h"

namespace {

using namespace eqk::tensor_product;
using Path = DeviceChannelPath<float>;

template <class E, class Print>
void print_array(const char* type, const char* name, const E* items, int count, Print print) {
  std::printf("  static constexpr %s %s[] = {", type, name);
  for (int n = 0; n < count; ++n) print(items[n]);
  std::printf("};\n");
}

void require(bool condition, const char* expected) {
  if (!condition) throw std::invalid_argument(expected);
}

struct Listed {
  std::string name, text;
  std::vector<int> kernels;  // 2 * backward + dual
};

constexpr std::string_view kKernels[] = {"forward", "forward_dual", "backward", "backward_dual"};

std::vector<Listed> read(const char* path) {
  std::ifstream file(path);
  std::vector<Listed> result;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] == '#') continue;
    if (line[0] == ' ') {
      require(!result.empty(), "expected a name before the text of a plan");
      result.back().text = line.substr(line.find_first_not_of(' '));
      continue;
    }
    std::istringstream words(line);
    Listed& listed = result.emplace_back();
    words >> listed.name;
    for (std::string word; words >> word;) {
      if (word == "development") continue;
      const auto* const found = std::find(std::begin(kKernels), std::end(kKernels), word);
      require(found != std::end(kKernels),
              "expected development, forward, forward_dual, backward or backward_dual after a name");
      listed.kernels.push_back(static_cast<int>(found - kKernels));
    }
  }
  return result;
}

void print_plan(const std::string& name, const std::string& text) {
  const auto plan = eqk::cached_plan(text);
  const Tables tables(*plan, false);
  require(tables.channels().covered && tables.channels().degree <= kSmallDegree,
          "expected a plan that the channel kernels of small degrees run");
  ChannelView v = tables.channels_at(tables.bytes().data());
  v.word_count = 0;  // the kernel copies none
  require(v.channel_ranges.count == 0 && v.out_ranges.count == 0, "expected paths that use every column");
  const auto* const segments = reinterpret_cast<const DeviceChannelSegment*>(v.words);
  const auto* const groups = reinterpret_cast<const DeviceChannelGroup*>(v.words + v.groups_at);
  const auto* const paths = reinterpret_cast<const Path*>(v.words + v.paths_at);
  for (int n = 0; n < v.segments; ++n)
    for (const bool dual : {false, true})
      require(segments[n].mul % (lanes_of_team(dual) * channels_of_pack(sizeof(float), dual)) == 0,
              "expected multiplicities that fill the packs of a team of lanes");
  for (int n = 0; n < v.segments; ++n) require(segments[n].flags & kAligned, "expected aligned segments");
  for (int n = 0; n < v.paths; ++n)
    require((paths[n].packed & kAligned) && (paths[n].packed & kFirst) && (paths[n].packed & kWeighted) &&
                (paths[n].packed & kWeightAligned),
            "expected weighted paths with outputs of their own, aligned to 16 bytes");
  std::printf("struct %s {\n  static constexpr bool channel_mul_ir = %d, out_mul_ir = %d;\n", name.c_str(),
              plan->layout[tables.channels().mirrored ? 1 : 0] == eqk::Layout::mul_ir,
              plan->layout[2] == eqk::Layout::mul_ir);
  print_array("DeviceChannelSegment", "segments", segments, v.segments, [](const DeviceChannelSegment& s) {
    std::printf("{%d, %d, %d, %d, %d, %d, %d, %d}, ", s.offset, s.mul, s.l, s.flags, s.group_begin, s.group_end,
                s.m_begin, s.m_end);
  });
  print_array(
      "DeviceChannelGroup", "groups", groups, segments[v.segments - 1].group_end,
      [](const DeviceChannelGroup& g) { std::printf("{%d, %d, %d, %d}, ", g.l, g.offset, g.path_begin, g.path_end); });
  print_array("DeviceChannelPath<float>", "paths", paths, v.paths, [](const Path& p) {
    std::printf("{%.9ef, %uu, %uu, %uu}, ", static_cast<double>(p.coefficient), p.out, p.weight, p.packed);
  });
  std::printf("  static constexpr ChannelLayout layouts[2][2] = {");
  for (const bool backward : {false, true}) {
    std::printf("{");
    for (const bool dual : {false, true}) {
      const auto layout = channel_layout(v, tables.channels(), sizeof(float), kSmallDegree, dual, backward);
      require(layout.has_value(), "expected a plan of which a block fits shared memory");
      std::printf("{");
      for (const std::int32_t n : std::bit_cast<std::array<std::int32_t, sizeof(ChannelLayout) / 4>>(*layout))
        std::printf("%d, ", n);
      std::printf("}, ");
    }
    std::printf("}, ");
  }
  std::printf("};\n};\n");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 1;
  const std::set<std::string> names(argv + 2, argv + argc);
  std::vector<Listed> plans;
  try {
    plans = read(argv[1]);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s: %s\n", argv[1], e.what());
    return 1;
  }
  std::erase_if(plans, [&](const Listed& plan) { return !names.contains(plan.name); });
  std::printf(
      "#pragma once\n"
      "// Written by csrc/tensor_product/cuda_plans.cpp.\n"
      "#include <array>\n\n"
      "#include \"tensor_product/cuda_kernels.h\"\n\n"
      "namespace eqk::tensor_product {\nnamespace plans {\n");
  for (const Listed& plan : plans) try {
      print_plan(plan.name, plan.text);
    } catch (const std::exception& e) {
      std::fprintf(stderr, "%s: %s: %s\n", argv[1], plan.name.c_str(), e.what());
      return 1;
    }
  std::printf("}  // namespace plans\n\ninline constexpr std::array<ListedPlan, %zu> kListedPlans{{\n", plans.size());
  for (const Listed& plan : plans) {
    int kernels = 0;
    for (const int kernel : plan.kernels) kernels |= 1 << kernel;
    std::printf("    {\"%s\", \"%s\", %d},\n", plan.name.c_str(), plan.text.c_str(), kernels);
  }
  std::printf("}};\n\n// X(plan, backward, dual) for each kernel\n#define EQK_LISTED_KERNELS(X)");
  for (const Listed& plan : plans)
    for (const int kernel : plan.kernels) std::printf(" X(%s, %d, %d)", plan.name.c_str(), kernel / 2, kernel % 2);
  std::printf("\n}  // namespace eqk::tensor_product\n");
}
