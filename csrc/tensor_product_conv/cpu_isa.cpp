// Compiled once per instruction set with EQK_ISA, EQK_VECTOR_BYTES and EQK_UNROLLED set by the build.
#include "core/cpu_panel_product.h"
#include "tensor_product_conv/cpu_kernels.h"
#if EQK_UNROLLED
#include "tensor_product_conv/cpu_channel_edges.h"
#endif

namespace eqk::tensor_product_conv {
inline namespace EQK_ISA {

static constexpr std::tuple<PanelKernel<float>, PanelKernel<double>> kPanels{
    {kPanelColumns<float>, multiply_panels<float>, panel_split<float>()},
    {kPanelColumns<double>, multiply_panels<double>, panel_split<double>()}};

#if EQK_UNROLLED
template <class F>
static auto with_lanes(const Problem& problem, F&& f) {
  return problem.dtype == Dtype::float64 ? f(double{}) : f(float{});
}

static bool can_run(const Problem& problem, const ChannelPlan& plan) {
  if (problem.dtype != Dtype::float32 && problem.dtype != Dtype::float64) return false;
  return with_lanes(problem, [&]<class T>(T) { return EdgeLanes<T>::can_run(problem, plan); });
}

static void stage_nodes(const Problem& problem, const ChannelPlan& plan, std::int64_t begin, std::int64_t end, void* x,
                        void* x_tangent) {
  with_lanes(problem, [&]<class T>(T) {
    EdgeLanes<T>::stage_nodes(problem, plan, begin, end, static_cast<T*>(x), static_cast<T*>(x_tangent));
  });
}

static void run(const Problem& problem, const ChannelPlan& plan, const Staged& staged, const Part& part) {
  with_lanes(problem, [&]<class T>(T) { EdgeLanes<T>(problem, plan, staged, part).run(); });
}

static void collect(const Problem& problem, const ChannelPlan& plan, const std::vector<Part>& parts, std::int64_t begin,
                    std::int64_t end) {
  with_lanes(problem, [&]<class T>(T) { EdgeLanes<T>::collect(problem, plan, parts, begin, end); });
}

static constexpr EdgeKernels kKernels{can_run, stage_nodes, run, collect, kPanels};
#else
static constexpr EdgeKernels kKernels{[](const Problem&, const ChannelPlan&) { return false; }, nullptr, nullptr,
                                      nullptr, kPanels};
#endif

}  // namespace EQK_ISA

#define EQK_JOIN(a, b) a##b
#define EQK_NAME(isa) EQK_JOIN(kernel_of_, isa)
const EdgeKernels& EQK_NAME(EQK_ISA)() { return kKernels; }

}  // namespace eqk::tensor_product_conv
