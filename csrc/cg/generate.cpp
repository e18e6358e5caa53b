// Prints the sparse Clebsch-Gordan coefficients up to a degree as constants for the unrolled kernels: cg_table.h of the
// build directory. usage: generate LMAX > cg_table.h
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "core/wigner_3j.h"

namespace {

template <class Items, class Get>
void print_array(const char* type, const char* name, const char* format, const Items& items, Get get) {
  std::printf("  static constexpr %s %s[] = {", type, name);
  const char* separator = "";
  for (const auto& item : items) {
    std::printf("%s", separator);
    std::printf(format, get(item));
    separator = ", ";
  }
  std::printf("};\n");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 1;
  const int lmax = std::atoi(argv[1]);
  std::printf(
      "#pragma once\n"
      "// Written by csrc/cg/generate.cpp. A pair is a component (i, k) of M[k, i] = sum_j C[i, j, k] y[j]; pairs are\n"
      "// sorted by i, terms by pair: those of pair p are [pair_terms[p], pair_terms[p + 1]).\n"
      "namespace eqk {\n"
      "template <int l1, int l2, int l3>\nstruct Cg;\n");
  for (int a = 0; a <= lmax; ++a)
    for (int b = 0; b <= lmax; ++b)
      for (int c = std::abs(a - b); c <= std::min(lmax, a + b); ++c) {
        struct Term {
          int pair, j;
          double c;
        };
        std::vector<std::pair<int, int>> pairs;
        std::vector<Term> terms;
        std::vector<std::size_t> ends{0};
        const auto entries = eqk::sparse_wigner_3j(a, b, c);
        for (int i = 0; i <= 2 * a; ++i)
          for (int k = 0; k <= 2 * c; ++k) {
            const std::size_t before = terms.size();
            for (const auto& e : entries)
              if (e.i == i && e.k == k) terms.push_back({static_cast<int>(pairs.size()), e.j, e.c});
            if (terms.size() == before) continue;
            pairs.emplace_back(i, k);
            ends.push_back(terms.size());
          }
        std::printf("template <>\nstruct Cg<%d, %d, %d> {\n", a, b, c);
        std::printf("  static constexpr int l1 = %d, l2 = %d, l3 = %d, pairs = %zu, terms = %zu;\n", a, b, c,
                    pairs.size(), terms.size());
        print_array("int", "pair_i", "%d", pairs, [](const auto& p) { return p.first; });
        print_array("int", "pair_k", "%d", pairs, [](const auto& p) { return p.second; });
        print_array("int", "pair_terms", "%zu", ends, [](std::size_t end) { return end; });
        print_array("int", "term_pair", "%d", terms, [](const Term& t) { return t.pair; });
        print_array("int", "term_j", "%d", terms, [](const Term& t) { return t.j; });
        print_array("double", "term_c", "%.17g", terms, [](const Term& t) { return t.c; });
        std::printf("};\n");
      }
  std::printf("}  // namespace eqk\n");
}
