#pragma once
// Indices of edges as tensors on the CPU, checked and ordered.
#include <algorithm>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <vector>

#include "core/edges.h"
#include "core/node_order.h"
#include "core/tensor.h"

namespace eqk::tensor_product_conv {

// by_dst: the edges ordered by destination, those of one destination as they are given; not there: found here.
inline Edges make_edges(const char* op, const Tensor& src, const Tensor& dst, std::int64_t num_src,
                        std::int64_t num_dst, const OptionalTensor& by_dst) try {
  Edges e;
  e.count = src.size(0);
  e.num_src = num_src;
  e.num_dst = num_dst;
  const auto sources = read_indices(op, "src", src, num_src);
  const auto destinations = read_indices(op, "dst", dst, num_dst);
  e.row = first_places(destinations, num_dst);
  if (by_dst) {
    e.edge = read_indices(op, "by_dst", *by_dst, e.count);
    for (std::int64_t n = 1; n < e.count; ++n) {
      const std::int64_t a = e.edge[n - 1], b = e.edge[n];
      if (destinations[a] > destinations[b] || (destinations[a] == destinations[b] && a >= b))
        fail("eqk::", op, ": by_dst: expected the stable order of dst, got edge ", a, ", into ", destinations[a],
             ", before edge ", b, ", into ", destinations[b]);
    }
  } else if (!std::is_sorted(destinations.begin(), destinations.end())) {
    e.edge = order_by_node(destinations, e.row);
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
