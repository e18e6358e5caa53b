#pragma once
// Nodes of edges as tensors on the CPU, and the edges of each node.
#include <cstdint>
#include <iterator>
#include <span>
#include <string>
#include <vector>

#include "core/edges.h"
#include "core/tensor.h"

namespace eqk {

inline std::vector<std::int64_t> read_indices(const char* op, const char* name, const Tensor& t, std::int64_t size) {
  std::vector<std::int64_t> result(t.size(0));
  const std::int64_t stride = t.stride(0);
  const auto read = [&]<class I>(const I* data) {
    for (std::size_t n = 0; n < result.size(); ++n) {
      const std::int64_t index = data[static_cast<std::int64_t>(n) * stride];
      if (index < 0 || index >= size)
        fail("eqk::", op, ": ", name, ": expected indices from 0 to ", size - 1, ", got ", index, " at position ", n);
      result[n] = index;
    }
  };
  if (t.scalar_type() == ScalarType::Long)
    read(static_cast<const std::int64_t*>(t.const_data_ptr()));
  else
    read(static_cast<const std::int32_t*>(t.const_data_ptr()));
  return result;
}

// Rows [begin, end) of the index, one after another.
inline std::vector<std::int64_t> read_index(const char* op, const Tensor& index, std::int64_t begin, std::int64_t end,
                                            std::int64_t nodes) {
  std::vector<std::int64_t> result;
  result.reserve((end - begin) * index.size(1));
  for (std::int64_t k = begin; k < end; ++k) {
    const std::string name = "index[" + std::to_string(k) + "]";
    const auto ends = read_indices(op, name.c_str(), torch::stable::select(index, 0, k), nodes);
    result.insert(result.end(), ends.begin(), ends.end());
  }
  return result;
}

// Edges::row of edges into these nodes.
inline std::vector<std::int64_t> first_places(std::span<const std::int64_t> index, std::int64_t nodes) {
  std::vector<std::int64_t> row(static_cast<std::size_t>(nodes) + 1);
  for (const std::int64_t node : index) ++row[node + 1];
  for (std::int64_t n = 0; n < nodes; ++n) row[n + 1] += row[n];
  return row;
}

// Edges::edge of them. Stable: the sum of a node has the order of its edges.
inline std::vector<std::int64_t> order_by_node(std::span<const std::int64_t> index,
                                               const std::vector<std::int64_t>& row) {
  std::vector<std::int64_t> edge(index.size()), next(row.begin(), row.end() - 1);
  for (std::size_t n = 0; n < index.size(); ++n) edge[next[index[n]]++] = static_cast<std::int64_t>(n);
  return edge;
}

// Their sources are not known.
inline Edges by_node(std::span<const std::int64_t> index, std::int64_t nodes) {
  Edges e;
  e.count = std::ssize(index);
  e.num_dst = nodes;
  e.row = first_places(index, nodes);
  e.edge = order_by_node(index, e.row);
  return e;
}

}  // namespace eqk
