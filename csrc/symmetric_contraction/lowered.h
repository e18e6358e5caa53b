#pragma once
// A plan as one sparse polynomial. With T[e] = sum over paths of U[e, path] w[path], h[r] = g[o] x[k] and z the
// products of up to three components of x that occur,
//
//   Q = <g, F(x, w)> = sum over entries e of T[e] h[row of e] z[column of e].
//
// The components of a monomial are sorted, and the last one is the k of its row: each monomial of each output component
// is one entry, whatever chains and orders of arguments it comes from.
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
  int at;  // an entry or a path
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
  int dim_in = 0, dim_out = 0, paths = 0;
  std::vector<Segment> in, out;
  Layout layout_in{}, layout_out{};
  std::vector<Product> products;
  std::vector<Row> rows;
  std::vector<int> column;      // of each entry
  Lists<Use> by_column;         // entries of each column
  Lists<Coefficient> by_entry;  // U: paths of each entry
  Lists<Coefficient> by_path;   // U: entries of each path
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
    result.paths = static_cast<int>(plan_.paths.size());
    result.in = plan_.in, result.out = plan_.out;
    result.layout_in = plan_.layout_in, result.layout_out = plan_.layout_out;
    // (output component, last component of x), rest of the monomial -> U of the paths
    std::map<std::pair<int, int>, std::map<Monomial, std::vector<Coefficient>>> terms;
    for (int p = 0; p < result.paths; ++p) {
      const Path& path = plan_.paths[p];
      const Segment& out = plan_.out[path.out];
      std::vector<Polynomial> sum(out.dim());
      double scale = 0;
      for (const Chain& chain : path.chains) {
        scale += std::abs(chain.coefficient);
        const auto& product = expand(chain.first, chain.couplings);
        for (int k = 0; k < out.dim(); ++k)
          for (const auto& [monomial, c] : product[k]) sum[k][monomial] += chain.coefficient * c;
      }
      for (int k = 0; k < out.dim(); ++k)
        for (const auto& [monomial, c] : sum[k])
          // Not what adds up to zero, as it does where arguments are equal and the coupling antisymmetric.
          if (std::abs(c) > 1e-13 * scale)
            terms[{static_cast<int>(out.offset) + k, last_of(monomial)}][rest_of(monomial)].push_back(
                {p, static_cast<float>(c), c});
    }
    std::map<Monomial, int> columns{{0, 0}};
    result.products.push_back({0, 0});
    std::vector<std::vector<Coefficient>> by_path(result.paths);
    result.by_entry.begin.push_back(0);
    for (const auto& [row, monomials] : terms) {
      const int begin = result.entries();
      for (const auto& [monomial, coefficients] : monomials) {
        for (const auto& c : coefficients) by_path[c.at].push_back({result.entries(), c.value_float, c.value});
        result.by_entry.values.insert(result.by_entry.values.end(), coefficients.begin(), coefficients.end());
        result.by_entry.begin.push_back(static_cast<int>(result.by_entry.values.size()));
        result.column.push_back(column_of(monomial, columns, result.products));
      }
      result.rows.push_back({row.first, row.second, begin, result.entries()});
    }
    result.by_path = joined(by_path);
    std::vector<std::vector<Use>> by_column(result.products.size());
    for (int r = 0; r < static_cast<int>(result.rows.size()); ++r)
      for (int e = result.rows[r].begin; e < result.rows[r].end; ++e) by_column[result.column[e]].push_back({r, e});
    result.by_column = joined(by_column);
    return result;
  }

 private:
  const Plan& plan_;
  // Of the first irrep and the couplings up to one: they are prefixes of many chains.
  std::map<std::vector<int>, std::vector<Polynomial>> expanded_;
  std::map<std::array<int, 3>, std::vector<CgEntry>> symbols_;
  std::int64_t work_ = 0;

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
        work_ += static_cast<std::int64_t>(left[c.i].size());
        if (work_ > (std::int64_t{1} << 26))
          throw PlanError("plan: expected chains of at most 2^26 products of components, got more");
        for (const auto& [monomial, value] : left[c.i])
          result[c.k][times(monomial, static_cast<int>(s.offset) + c.j)] += c.c * value;
      }
    }
    return expanded_.emplace(std::move(key), std::move(result)).first->second;
  }

  static int column_of(Monomial m, std::map<Monomial, int>& columns, std::vector<Product>& products) {
    if (const auto it = columns.find(m); it != columns.end()) return it->second;
    const int parent = column_of(rest_of(m), columns, products);
    products.push_back({parent, last_of(m)});
    return columns[m] = static_cast<int>(products.size()) - 1;
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
