#pragma once
// Nodes of edges as tensors on the CPU, and the edges of each node.
#include <cstdint>
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

// Stable: the sum of a node has the order of its edges.
inline Edges by_node(const std::vector<std::int64_t>& index, std::int64_t nodes) {
  Edges e;
  e.count = static_cast<std::int64_t>(index.size());
  e.num_dst = nodes;
  e.row.assign(static_cast<std::size_t>(nodes) + 1, 0);
  for (const std::int64_t node : index) ++e.row[node + 1];
  for (std::int64_t n = 0; n < nodes; ++n) e.row[n + 1] += e.row[n];
  std::vector<std::int64_t> next(e.row.begin(), e.row.end() - 1);
  e.edge.resize(index.size());
  for (std::int64_t n = 0; n < e.count; ++n) e.edge[next[index[n]]++] = n;
  return e;
}

}  // namespace eqk
