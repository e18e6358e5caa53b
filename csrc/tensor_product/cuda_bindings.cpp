// Lets tests run the kernels without a device: the tables and launches of a problem as bytes. Part of no wheel.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <map>
#include <optional>

#include "gaunt_product/cuda_launches.h"
#include "tensor_product/cuda_launches.h"
#include "tensor_product_conv/cuda_radial_launches.h"
#include "wigner/cuda_launches.h"

namespace py = pybind11;
namespace conv = eqk::tensor_product_conv;
namespace gaunt = eqk::gaunt_product;
namespace wigner = eqk::wigner;
using namespace eqk::tensor_product;
using eqk::Dtype;

namespace {

using Addresses = std::array<std::uint64_t, kSlots>;
using Strides = std::array<std::int64_t, kSlots>;
using Indices = std::array<std::array<std::int64_t, 3>, 4>;  // address, stride and bytes of src, dst, by_dst, by_src

const void* pointer(std::uint64_t address) { return reinterpret_cast<const void*>(address); }

Dtype dtype_of(const std::string& name) {
  constexpr const char* kNames[] = {"float32", "float64", "float16", "bfloat16"};
  for (int n = 0; n < 4; ++n)
    if (name == kNames[n]) return static_cast<Dtype>(n);
  throw std::invalid_argument("dtype: expected float32, float64, float16 or bfloat16, got " + name);
}

// Addresses of 0 stand for operands that are missing and results that are not wanted.
Problem problem(const std::string& plan, const std::string& dtype, std::int64_t rows, bool dual,
                const Addresses& values, const Addresses& tangents, const Strides& strides, const Addresses& results,
                const std::optional<Strides>& tangent_strides) {
  Problem p;
  p.plan = eqk::cached_plan(plan);
  p.dtype = dtype_of(dtype);
  p.rows = rows;
  p.dual = dual;
  const bool shared = p.plan->weights == eqk::Weights::shared;
  const std::int64_t columns[] = {p.plan->dim[0], p.plan->dim[1], shared ? 0 : p.plan->weight_numel, p.plan->dim[2]};
  for (int s = 0; s < kSlots; ++s) {
    p.in[s] = {pointer(values[s]), pointer(tangents[s]), strides[s], tangent_strides.value_or(strides)[s]};
    if (results[s]) p.out[s] = {const_cast<void*>(pointer(results[s])), columns[s]};
  }
  return p;
}

struct Convolution {
  conv::DeviceProblem problem;
  conv::DeviceEdges edges;

  Convolution(const std::string& plan, const std::string& dtype, std::array<std::int64_t, 3> sizes,
              const Indices& indices, bool dual, const Addresses& values, const Addresses& tangents,
              const Strides& strides, const Addresses& results, const std::optional<Strides>& tangent_strides) {
    const Problem p = ::problem(plan, dtype, sizes[0], dual, values, tangents, strides, results, tangent_strides);
    edges = {sizes[0], sizes[1], sizes[2], of(indices[0]), of(indices[1]), of(indices[2]), of(indices[3])};
    problem = {p.plan, p.dtype, dual, nullptr, p.in, p.out};
  }

  conv::DeviceProblem with_edges() const {
    conv::DeviceProblem p = problem;
    p.edges = &edges;
    return p;
  }

 private:
  static conv::DeviceIndices of(const std::array<std::int64_t, 3>& index) {
    return {pointer(static_cast<std::uint64_t>(index[0])), index[1], index[2] == 8};
  }
};

// Behind that of its order, `ordering`. Operands are x, y, h, a; sizes: edges, sources, destinations, hidden features;
// device: multiprocessors and shared memory of a block.
struct RadialConvolution {
  Convolution ordering;
  std::array<std::uint64_t, 4> values;
  std::array<std::int64_t, 4> strides;
  std::uint64_t result;
  std::int64_t hidden;
  bool exact;
  conv::RadialDevice device;

  RadialConvolution(const std::string& plan, std::array<std::int64_t, 4> sizes, const Indices& indices,
                    const std::array<std::uint64_t, 4>& values, const std::array<std::int64_t, 4>& strides,
                    std::uint64_t result, bool exact, std::array<int, 2> device)
      : ordering(plan, "float32", {sizes[0], sizes[1], sizes[2]}, indices, false, {}, {}, {}, {}, std::nullopt),
        values(values),
        strides(strides),
        result(result),
        hidden(sizes[3]),
        exact(exact),
        device{device[0], device[1]} {}

  template <class F>
  auto with_launches(F&& f) const {
    conv::DeviceRadialProblem p;
    p.plan = ordering.problem.plan;
    p.dtype = ordering.problem.dtype;
    p.edges = &ordering.edges;
    p.hidden = hidden;
    for (std::size_t s = 0; s < values.size(); ++s) p.in[s] = {pointer(values[s]), nullptr, strides[s], 0};
    p.out[conv::kRadialG] = {const_cast<void*>(pointer(result)), p.plan->dim[2]};
    return f(conv::RadialLaunches(p, exact, device));
  }
};

// Operands are x, y, a, b, c, g.
gaunt::Problem gaunt_problem(const std::string& plan, const std::string& dtype, std::int64_t rows, bool dual,
                             const std::array<std::uint64_t, gaunt::kSlots>& values,
                             const std::array<std::uint64_t, gaunt::kSlots>& tangents,
                             const std::array<std::int64_t, gaunt::kSlots>& strides,
                             const std::array<std::int64_t, gaunt::kSlots>& tangent_strides,
                             const std::array<std::uint64_t, gaunt::kSlots>& results) {
  gaunt::Problem p;
  p.plan = gaunt::cached_plan(plan);
  p.dtype = dtype_of(dtype);
  p.rows = rows;
  p.dual = dual;
  for (int s = 0; s < gaunt::kSlots; ++s)
    p.in[s] = {pointer(values[s]), pointer(tangents[s]), strides[s], tangent_strides[s]};
  for (int s = 0; s < 3; ++s)
    if (const auto slot = gaunt::kSignal[s]; results[slot])
      p.out[slot] = {const_cast<void*>(pointer(results[slot])), p.plan->dim[s]};
  return p;
}

template <class L>
py::dict described(const L& l) {
  py::dict d;
  d["name"] = l.name();
  d["grid"] = l.grid;
  d["block"] = l.block;
  d["shared"] = l.shared;
  d["argument"] = py::bytes(static_cast<const char*>(l.argument()), l.argument_size());
  return d;
}

}  // namespace

PYBIND11_MODULE(eqk_cuda_launches, m) {
  m.def("divided", [](std::int64_t n, std::int64_t d, bool in_32_bits) {
    const auto by = [n](const auto& divisor) {
      const auto of = static_cast<decltype(divisor.value())>(n);
      return std::pair<std::int64_t, std::int64_t>(divisor.quotient(of), divisor.remainder(of));
    };
    return in_32_bits ? by(eqk::Divisor32(static_cast<std::int32_t>(d))) : by(eqk::Divisor(d));
  });
  // Local, because one process may load the bindings of two builds.
  py::class_<Problem>(m, "Problem", py::module_local())
      .def(py::init(&problem), py::arg("plan"), py::arg("dtype"), py::arg("rows"), py::arg("dual"), py::arg("values"),
           py::arg("tangents"), py::arg("strides"), py::arg("results"), py::arg("tangent_strides") = py::none())
      .def_property_readonly("scratch_bytes", &scratch_bytes)
      .def("tables",
           [](const Problem& p) {
             const Tables tables(*p.plan, p.dtype == Dtype::float64);
             return py::bytes(reinterpret_cast<const char*>(tables.bytes().data()), tables.bytes().size());
           })
      .def(
          "launches",
          [](const Problem& p, std::uint64_t tables, std::uint64_t scratch, bool listed) {
            const Tables layout(*p.plan, p.dtype == Dtype::float64);
            py::list result;
            for (const Launch& l : Launches(p, layout, listed ? listed_plan(*p.plan) : nullptr, pointer(tables),
                                            const_cast<void*>(pointer(scratch)))
                                       .all())
              result.append(described(l));
            return result;
          },
          py::arg("tables"), py::arg("scratch"), py::arg("listed") = true);
  // sizes: edges, sources, destinations.
  py::class_<Convolution>(m, "Convolution", py::module_local())
      .def(py::init<const std::string&, const std::string&, std::array<std::int64_t, 3>, const Indices&, bool,
                    const Addresses&, const Addresses&, const Strides&, const Addresses&,
                    const std::optional<Strides>&>(),
           py::arg("plan"), py::arg("dtype"), py::arg("sizes"), py::arg("indices"), py::arg("dual"), py::arg("values"),
           py::arg("tangents"), py::arg("strides"), py::arg("results"), py::arg("tangent_strides") = py::none())
      .def_property_readonly("covered", [](const Convolution& c) { return conv::Launches::cover(c.with_edges()); })
      .def_property_readonly("scratch_bytes",
                             [](const Convolution& c) { return conv::Launches::scratch_bytes(c.with_edges()); })
      .def(
          "launches",
          [](const Convolution& c, std::uint64_t scratch) {
            const conv::DeviceProblem p = c.with_edges();
            py::list result;
            for (const conv::Launch& l : conv::Launches(p, const_cast<void*>(pointer(scratch))).all())
              result.append(described(l));
            return result;
          },
          py::arg("scratch"));
  py::class_<RadialConvolution>(m, "RadialConvolution", py::module_local())
      .def(
          py::init<const std::string&, std::array<std::int64_t, 4>, const Indices&, const std::array<std::uint64_t, 4>&,
                   const std::array<std::int64_t, 4>&, std::uint64_t, bool, std::array<int, 2>>())
      .def_property_readonly("covered",
                             [](const RadialConvolution& c) {
                               return c.with_launches([](const auto& launches) { return launches.covered(); });
                             })
      .def_property_readonly("scratch_bytes",
                             [](const RadialConvolution& c) {
                               const auto of_radial = [](const auto& launches) { return launches.scratch_bytes(); };
                               return conv::Launches::scratch_bytes(c.ordering.with_edges()) +
                                      c.with_launches(of_radial);
                             })
      .def("launches", [](const RadialConvolution& c, std::uint64_t scratch) {
        const conv::DeviceProblem order = c.ordering.with_edges();
        conv::Launches ordering(order, const_cast<void*>(pointer(scratch)));
        py::list result;
        for (const conv::Launch& l : ordering.all()) result.append(described(l));
        c.with_launches([&](const auto& launches) {
          void* const behind = const_cast<void*>(pointer(scratch + conv::Launches::scratch_bytes(order)));
          for (const conv::RadialLaunch& l : launches.all(ordering.places(), behind)) result.append(described(l));
        });
        return result;
      });
  py::class_<gaunt::Problem>(m, "GauntProblem", py::module_local())
      .def(py::init(&gaunt_problem), py::arg("plan"), py::arg("dtype"), py::arg("rows"), py::arg("dual"),
           py::arg("values"), py::arg("tangents"), py::arg("strides"), py::arg("tangent_strides"), py::arg("results"))
      .def_property_readonly("covered", &gaunt::Launches::cover)
      .def("launches", [](const gaunt::Problem& p) {
        py::list result;
        for (const gaunt::Launch& l : gaunt::Launches(p).all()) result.append(described(l));
        return result;
      });
  // g of 0: the matrices.
  m.def(
      "wigner_launch",
      [](int lmax, int mmax, const std::string& dtype, std::int64_t rows, std::uint64_t q, std::int64_t q_stride,
         std::uint64_t g, std::int64_t g_stride, std::uint64_t out) {
        const std::int64_t columns = wigner::numbers(lmax, mmax);
        return described(wigner::Launch({dtype_of(dtype), lmax, mmax, rows, columns, pointer(q), q_stride, pointer(g),
                                         g_stride, const_cast<void*>(pointer(out))}));
      },
      py::arg("lmax"), py::arg("mmax"), py::arg("dtype"), py::arg("rows"), py::arg("q"), py::arg("q_stride"),
      py::arg("g"), py::arg("g_stride"), py::arg("out"));
  m.def("listed_plans", [] {
    std::map<std::string, std::string> result;
    for (const ListedPlan& plan : kListedPlans) result[plan.name] = plan.text;
    return result;
  });
}
