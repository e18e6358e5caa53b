#pragma once
// Indices of edges as tensors on the CPU, checked and ordered.
#include <algorithm>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <vector>

#include "core/tensor.h"
#include "tensor_product_conv/edges.h"

namespace eqk::tensor_product_conv {

namespace detail {
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
}  // namespace detail

// by_dst: the edges ordered by destination, those of one destination as they are given; not there: found here.
inline Edges make_edges(const char* op, const Tensor& src, const Tensor& dst, std::int64_t num_src,
                        std::int64_t num_dst, const OptionalTensor& by_dst) try {
  Edges e;
  e.count = src.size(0);
  e.num_src = num_src;
  e.num_dst = num_dst;
  const auto sources = detail::read_indices(op, "src", src, num_src);
  const auto destinations = detail::read_indices(op, "dst", dst, num_dst);
  e.row.assign(static_cast<std::size_t>(num_dst) + 1, 0);
  for (const std::int64_t d : destinations) ++e.row[d + 1];
  for (std::int64_t r = 0; r < num_dst; ++r) e.row[r + 1] += e.row[r];
  if (by_dst) {
    e.edge = detail::read_indices(op, "by_dst", *by_dst, e.count);
    for (std::int64_t n = 1; n < e.count; ++n) {
      const std::int64_t a = e.edge[n - 1], b = e.edge[n];
      if (destinations[a] > destinations[b] || (destinations[a] == destinations[b] && a >= b))
        fail("eqk::", op, ": by_dst: expected the stable order of dst, got edge ", a, ", into ", destinations[a],
             ", before edge ", b, ", into ", destinations[b]);
    }
  } else if (!std::is_sorted(destinations.begin(), destinations.end())) {
    e.edge.resize(e.count);
    std::vector<std::int64_t> next(e.row.begin(), e.row.end() - 1);
    for (std::int64_t n = 0; n < e.count; ++n) e.edge[next[destinations[n]]++] = n;
  }
  std::vector<std::int64_t> degree(num_src);
  e.src.resize(e.count);
  for (std::int64_t n = 0; n < e.count; ++n) {
    e.src[n] = sources[e.edge_at(n)];
    e.max_out_degree = std::max(e.max_out_degree, ++degree[e.src[n]]);
  }
  return e;
} catch (const std::exception& error) {
  if (!dynamic_cast<const std::bad_alloc*>(&error) && !dynamic_cast<const std::length_error*>(&error)) throw;
  fail("eqk::", op, ": src, dst, num_dst: out of memory: could not order ", src.size(0), " edges from ", num_src,
       " to ", num_dst, " nodes");
}

}  // namespace eqk::tensor_product_conv
