#include <algorithm>
#include <numeric>
#include <vector>

#include "symmetric_contraction/cpu_kernels.h"

#define EQK_ISA host
#include "core/cpu_dispatch.h"
#include "core/lanes.h"
#include "symmetric_contraction/op.h"

namespace eqk::symmetric_contraction {
namespace {

// Plans are never freed: their addresses tell them apart.
const Lowered* cached_lowering(const Plan& plan) {
  return cached(&plan, [&] { return Lowering(plan).run(); });
}

// Sums over nodes have at most so many terms in one chain of additions.
constexpr std::int64_t kChunk = 256;

std::int64_t species_of(const Problem& problem, std::int64_t node) {
  const std::int64_t at = node * problem.species_stride;
  return problem.species_64 ? static_cast<const std::int64_t*>(problem.species)[at]
                            : static_cast<const std::int32_t*>(problem.species)[at];
}

// Nodes in the stable order of species, cut by the numbers of nodes alone: results are the same bits for any number of
// threads.
struct Order {
  std::vector<std::int64_t> nodes;
  std::vector<Chunk> chunks;

  explicit Order(const Problem& problem) : nodes(problem.nodes) {
    std::iota(nodes.begin(), nodes.end(), 0);
    if (!problem.species) {
      for (std::int64_t n = 0; n < problem.nodes; ++n) chunks.push_back({&nodes[n], 1, n, nullptr});
      return;
    }
    std::vector<std::int64_t> species(problem.nodes);
    for (std::int64_t n = 0; n < problem.nodes; ++n) {
      species[n] = species_of(problem, n);
      if (species[n] < 0 || species[n] >= problem.num_species)
        fail("eqk::symmetric_contraction: species: expected indices from 0 to ", problem.num_species - 1, ", got ",
             species[n], " at position ", n);
    }
    std::stable_sort(nodes.begin(), nodes.end(), [&](auto a, auto b) { return species[a] < species[b]; });
    for (std::int64_t n = 0, count; n < problem.nodes; n += count) {
      count = 1;
      while (count < kChunk && n + count < problem.nodes && species[nodes[n + count]] == species[nodes[n]]) ++count;
      chunks.push_back({&nodes[n], count, species[nodes[n]], nullptr});
    }
  }
};

void launch(const Problem& problem, const Tensor& like) {
  const Kernels& kernels = EQK_CHOOSE_KERNEL();
  Order order(problem);
  if (std::none_of(problem.out.begin(), problem.out.end(), [](const void* out) { return out; })) return;
  const auto lowered = cached_lowering(*problem.plan);
  auto& chunks = order.chunks;
  const std::int64_t row = static_cast<std::int64_t>(lowered->paths.size()) * problem.channels;
  const bool as_stored = problem.dtype == Dtype::float32 || problem.dtype == Dtype::float64;
  const std::int64_t bytes = problem.dtype == Dtype::float64 ? 8 : 4;

  // Species whose nodes are one chunk have their gradient of w at once; sums of several chunks are added up later.
  std::vector<std::pair<std::int64_t, std::int64_t>> of_species;  // chunks [first, last)
  std::optional<Tensor> sums;
  if (problem.out[kW]) {
    of_species.assign(problem.num_species, {0, 0});
    std::int64_t several = 0;
    for (std::int64_t first = 0, last; first < static_cast<std::int64_t>(chunks.size()); first = last) {
      for (last = first;
           last < static_cast<std::int64_t>(chunks.size()) && chunks[last].weights == chunks[first].weights;)
        ++last;
      of_species[chunks[first].weights] = {first, last};
      if (!as_stored || last - first > 1) several += last - first;
    }
    if (several) {
      sums = empty(like, {several, row}, bytes == 8 ? ScalarType::Double : ScalarType::Float);
      several = 0;
    }
    for (auto& chunk : chunks) {
      const auto [first, last] = of_species[chunk.weights];
      char* const base =
          static_cast<char*>(!as_stored || last - first > 1 ? sums->mutable_data_ptr() : problem.out[kW]);
      chunk.gw = base + bytes * row * (!as_stored || last - first > 1 ? several++ : chunk.weights);
    }
  }

  const std::int64_t tile = kernels.tile(problem.dtype), tiles = (problem.channels + tile - 1) / tile;
  parallel_for(static_cast<std::int64_t>(chunks.size()) * tiles, 1,
               [&](std::int64_t begin, std::int64_t end) { kernels.run(problem, *lowered, chunks, begin, end); });

  if (!problem.out[kW]) return;
  with_types(problem.dtype, [&]<class T, class Storage>(T, Storage) {
    parallel_for(problem.num_species, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t s = begin; s < end; ++s) {
        const auto [first, last] = of_species[s];
        if (as_stored && last - first == 1) continue;
        Storage* const out = static_cast<Storage*>(problem.out[kW]) + s * row;
        if (first == last) std::fill_n(out, row, Storage{});
        for (std::int64_t q = 0; first < last && q < row; ++q) {
          double sum = 0;
          for (std::int64_t c = first; c < last; ++c) sum += static_cast<const T*>(chunks[c].gw)[q];
          out[q] = as_storage<Storage>(static_cast<T>(sum));
        }
      }
    });
  });
}

Tensor one_hot_index(const Tensor& rows) {
  if (rows.dim() != 2) fail("eqk::one_hot_index: rows: expected 2 dimensions, got shape ", shape_string(rows));
  const Dtype dtype = kernel_dtype("one_hot_index", rows);
  const std::int64_t count = rows.size(0), columns = rows.size(1), row = rows.stride(0), column = rows.stride(1);
  Tensor index = torch::stable::new_empty(rows, {count}, ScalarType::Long);
  if (count == 0) return index;
  std::int64_t* const out = static_cast<std::int64_t*>(index.mutable_data_ptr());
  with_types(dtype, [&]<class T, class Storage>(T, Storage) {
    const Storage* const from = static_cast<const Storage*>(rows.const_data_ptr());
    for (std::int64_t n = 0; n < count; ++n) {
      std::int64_t at = -1, others = 0;
      for (std::int64_t c = 0; c < columns; ++c) {
        const T value = from_storage<T>(from[n * row + c * column]);
        if (value == 1) at = c;
        others += value != 0;
      }
      out[n] = others == 1 ? at : -1;
    }
  });
  return index;
}

}  // namespace
}  // namespace eqk::symmetric_contraction

STABLE_TORCH_LIBRARY_IMPL(eqk, CPU, m) {
  eqk::symmetric_contraction::register_impls<&eqk::symmetric_contraction::launch>(m);
  m.impl("one_hot_index", TORCH_BOX(&eqk::symmetric_contraction::one_hot_index));
}
