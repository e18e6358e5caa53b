#pragma once
// A plan as one sparse polynomial. With T[e] = sum over paths of U[e, path] w[path], h[r] = g[o] x[k] and z the
// products of up to three components of x that occur,
//
//   Q = <g, F(x, w)> = sum over entries e of T[e] h[row of e] z[column of e].
//
// The components of a monomial are sorted, and the last one is the k of its row: each monomial of each output component
// is one entry, whatever chains and orders of arguments it comes from. Paths whose polynomials are the same up to a
// factor, as are those of chains in another order, are one group; it weighs the sum of their weights times these
// factors.
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "symmetric_contraction/plan.h"

namespace eqk::symmetric_contraction {

// z[0] = 1, and after it z[n] = z[parent] x[last], parents first.
struct Product {
  int parent, last;
};

// Entries [begin, end) have h = g[out] x[last].
struct Row {
  int out, last, begin, end;
};

struct Coefficient {
  int at;  // an entry, a group or a path
  float value_float;
  double value;
  template <class T>
  T as() const {
    if constexpr (sizeof(T) == 8)
      return value;
    else
      return value_float;
  }
};

struct Use {
  int row, entry;
};

// Values of list n are at [begin[n], begin[n + 1]).
template <class V>
struct Lists {
  std::vector<int> begin;
  std::vector<V> values;
};

struct Lowered {
  int dim_in = 0, dim_out = 0, groups = 0;
  std::vector<Segment> in, out;
  Layout layout_in{}, layout_out{};
  std::vector<Product> products;  // by degree
  int parents = 0;                // the first so many have products that continue them
  std::vector<Row> rows;
  std::vector<int> column;         // of each entry
  Lists<Use> by_column;            // entries of each column
  Lists<Coefficient> by_entry;     // U: groups of each entry
  Lists<Coefficient> by_group;     // U: entries of each group
  std::vector<Coefficient> paths;  // of each path its group, with the factor; -1 where it is zero
  int entries() const { return static_cast<int>(column.size()); }
};

// Components of x in ascending order from the lowest bits, 16 bits each: 1 + i stands for component i, 0 for none.
using Monomial = std::uint64_t;
using Polynomial = std::map<Monomial, double>;

class Lowering {
 public:
  explicit Lowering(const Plan& plan) : plan_(plan) {}

  Lowered run() {
    Lowered result;
    result.dim_in = static_cast<int>(plan_.dim_in);
    result.dim_out = static_cast<int>(plan_.dim_out);
    result.in = plan_.in, result.out = plan_.out;
    result.layout_in = plan_.layout_in, result.layout_out = plan_.layout_out;
    std::vector<std::vector<Term>> groups;
    Rows rows;
    for (const Path& path : plan_.paths) {
      auto terms = expand(path);
      const double factor = terms.empty() ? 0 : terms.front().value;
      for (Term& t : terms) t.value /= factor;
      count_work(groups.size());
      const auto known = std::find_if(groups.begin(), groups.end(), [&](const auto& g) { return same(g, terms); });
      const int group = terms.empty() ? -1 : static_cast<int>(known - groups.begin());
      result.paths.push_back({group, static_cast<float>(factor), factor});
      if (terms.empty() || known != groups.end()) continue;
      for (const Term& t : terms)
        rows[{t.out, last_of(t.monomial)}][rest_of(t.monomial)].push_back(
            {group, static_cast<float>(t.value), t.value});
      groups.push_back(std::move(terms));
    }
    result.groups = static_cast<int>(groups.size());
    const std::map<Monomial, int> columns = number_products(rows, result);
    std::vector<std::vector<Coefficient>> by_group(groups.size());
    std::vector<std::vector<Use>> by_column(result.products.size());
    result.by_entry.begin.push_back(0);
    for (const auto& [row, monomials] : rows) {
      const int begin = result.entries();
      for (const auto& [monomial, coefficients] : monomials) {
        for (const auto& c : coefficients) by_group[c.at].push_back({result.entries(), c.value_float, c.value});
        by_column[columns.at(monomial)].push_back({static_cast<int>(result.rows.size()), result.entries()});
        result.by_entry.values.insert(result.by_entry.values.end(), coefficients.begin(), coefficients.end());
        result.by_entry.begin.push_back(static_cast<int>(result.by_entry.values.size()));
        result.column.push_back(columns.at(monomial));
      }
      result.rows.push_back({row.first, row.second, begin, result.entries()});
    }
    result.by_group = joined(by_group);
    result.by_column = joined(by_column);
    return result;
  }

 private:
  struct Term {
    int out;
    Monomial monomial;
    double value;
  };

  // (component of the output, last component of a monomial), the rest of the monomial -> U of the groups
  using Rows = std::map<std::pair<int, int>, std::map<Monomial, std::vector<Coefficient>>>;

  const Plan& plan_;
  // Of the first irrep and the couplings up to one: they are prefixes of many chains.
  std::map<std::vector<int>, std::vector<Polynomial>> expanded_;
  std::map<std::array<int, 3>, std::vector<CgEntry>> symbols_;
  std::size_t work_ = 0;

  // Some seconds and 300 MB at most, however few characters ask for more. Four irreps of degree 20 take 2.3 million.
  void count_work(std::size_t steps) {
    constexpr std::size_t kMaxWork = 1 << 22;
    work_ += steps;
    if (work_ > kMaxWork) throw PlanError("plan: expected polynomials of at most 2^22 products and sums, got more");
  }

  std::vector<Term> expand(const Path& path) {
    const Segment& out = plan_.out[path.out];
    std::vector<Polynomial> sum(out.dim());
    double scale = 0;
    for (const Chain& chain : path.chains) {
      scale += std::abs(chain.coefficient);
      const auto& product = expand(chain.first, chain.couplings);
      for (int k = 0; k < out.dim(); ++k) {
        count_work(product[k].size());
        for (const auto& [monomial, c] : product[k]) sum[k][monomial] += chain.coefficient * c;
      }
    }
    std::vector<Term> terms;
    for (int k = 0; k < out.dim(); ++k)
      for (const auto& [monomial, c] : sum[k])
        // Not what adds up to zero, as it does where arguments are equal and the coupling antisymmetric.
        if (std::abs(c) > 1e-13 * scale) terms.push_back({static_cast<int>(out.offset) + k, monomial, c});
    return terms;
  }

  static bool same(const std::vector<Term>& a, const std::vector<Term>& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const Term& s, const Term& t) {
      return s.out == t.out && s.monomial == t.monomial && std::abs(s.value - t.value) <= 1e-13 * std::abs(s.value);
    });
  }

  static int last_of(Monomial m) {
    while (m >> 16) m >>= 16;
    return static_cast<int>(m) - 1;
  }

  static Monomial rest_of(Monomial m) {
    Monomial top = m;
    int shift = 0;
    for (; top >> 16; shift += 16) top >>= 16;
    return m ^ (top << shift);
  }

  // The smallest component is in the lowest 16 bits.
  static Monomial times(Monomial m, int component) {
    const Monomial factor = static_cast<Monomial>(component) + 1;
    int shift = 0;
    while (m >> shift && (m >> shift & 0xffff) <= factor) shift += 16;
    const Monomial low = shift ? m & ((Monomial{1} << shift) - 1) : 0, high = shift < 64 ? m >> shift : 0;
    return low | factor << shift | (shift < 48 ? high << (shift + 16) : 0);
  }

  const std::vector<CgEntry>& symbol(int l1, int l2, int l3) {
    auto& entries = symbols_[{l1, l2, l3}];
    if (entries.empty()) entries = sparse_wigner_3j(l1, l2, l3);
    return entries;
  }

  const std::vector<Polynomial>& expand(int first, const std::vector<Coupling>& couplings) {
    std::vector<int> key{first};
    for (const auto& c : couplings) key.insert(key.end(), {c.irrep, c.to});
    if (const auto it = expanded_.find(key); it != expanded_.end()) return it->second;
    std::vector<Polynomial> result;
    if (couplings.empty()) {
      const Segment& s = plan_.in[first];
      for (int i = 0; i < s.dim(); ++i) result.push_back({{static_cast<Monomial>(s.offset) + i + 1, 1.0}});
    } else {
      const Coupling& last = couplings.back();
      const Segment& s = plan_.in[last.irrep];
      const auto& left = expand(first, {couplings.begin(), couplings.end() - 1});
      result.resize(2 * last.to + 1);
      for (const CgEntry& c : symbol(last.from, s.l, last.to)) {
        count_work(left[c.i].size());
        for (const auto& [monomial, value] : left[c.i])
          result[c.k][times(monomial, static_cast<int>(s.offset) + c.j)] += c.c * value;
      }
    }
    return expanded_.emplace(std::move(key), std::move(result)).first->second;
  }

  static std::map<Monomial, int> number_products(const Rows& rows, Lowered& result) {
    std::vector<Monomial> needed{0};
    for (const auto& [row, monomials] : rows)
      for (const auto& term : monomials)
        for (Monomial m = term.first; m; m = rest_of(m)) needed.push_back(m);
    // A monomial of more components is a larger number.
    std::sort(needed.begin(), needed.end());
    needed.erase(std::unique(needed.begin(), needed.end()), needed.end());
    std::map<Monomial, int> columns;
    for (const Monomial m : needed) {
      const int parent = m ? columns.at(rest_of(m)) : 0;
      columns.emplace(m, static_cast<int>(result.products.size()));
      result.products.push_back({parent, m ? last_of(m) : 0});
      result.parents = std::max(result.parents, parent + 1);
    }
    return columns;
  }

  template <class V>
  static Lists<V> joined(const std::vector<std::vector<V>>& lists) {
    Lists<V> result{{0}, {}};
    for (const auto& list : lists) {
      result.values.insert(result.values.end(), list.begin(), list.end());
      result.begin.push_back(static_cast<int>(result.values.size()));
    }
    return result;
  }
};

}  // namespace eqk::symmetric_contraction
