#pragma once
// The edges of a graph in the order of their destinations.
#include <cstdint>
#include <vector>

namespace eqk {

// "place": where an edge stands in that order, which keeps edges of one destination as they were given.
struct Edges {
  std::int64_t count = 0, num_src = 0, num_dst = 0;
  std::vector<std::int64_t> row;   // [num_dst + 1]: the places of edges into node r are row[r] to row[r + 1]
  std::vector<std::int64_t> edge;  // [count]: the edge at each place; empty where that is the place itself
  std::vector<std::int64_t> src;   // [count], by place
  std::int64_t max_out_degree = 0;

  std::int64_t edge_at(std::int64_t place) const { return edge.empty() ? place : edge[place]; }
  bool in_order() const { return edge.empty(); }

  // The first of rows such that rows and edges before it are `part` / `parts` of all.
  std::int64_t cut(std::int64_t part, std::int64_t parts) const {
    const std::int64_t wanted = (count + num_dst) / parts * part + (count + num_dst) % parts * part / parts;
    std::int64_t low = 0, high = num_dst;
    while (low < high) {
      const std::int64_t middle = low + (high - low) / 2;
      if (row[middle] + middle < wanted)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }
};

}  // namespace eqk
