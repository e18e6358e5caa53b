// The unrolled paths of one degree, EQK_DEGREE, of the operand with channels. Compiled once per degree and instruction
// set.
#include "tensor_product/cpu_channels.h"

namespace eqk::tensor_product {
inline namespace EQK_ISA {
namespace {

template <class T, int lc>
struct Table {
  ChannelKernels<T> kernels[EQK_LMAX + 1][EQK_LMAX + 1] = {};
  constexpr Table() {
    unroll<EQK_LMAX + 1>([&](auto ls) {
      unroll<EQK_LMAX + 1>([&](auto lo) {
        if constexpr (lo >= (lc > ls ? lc - ls : ls - lc) && lo <= lc + ls) {
          using C = Cg<lc, ls, lo>;
          kernels[ls][lo] = {C::pairs,
                             couple_path<C, T>,
                             forward_path<C, T>,
                             backward_path<C, T, false>,
                             backward_path<C, T, true>,
                             forward_summed_path<C, T>};
        }
      });
    });
  }
};

template <class T, int lc>
constexpr Table<T, lc> kTable{};

}  // namespace

template <>
const ChannelKernels<float> (&channel_kernels<float, EQK_DEGREE>())[EQK_LMAX + 1][EQK_LMAX + 1] {
  return kTable<float, EQK_DEGREE>.kernels;
}

template <>
const ChannelKernels<double> (&channel_kernels<double, EQK_DEGREE>())[EQK_LMAX + 1][EQK_LMAX + 1] {
  return kTable<double, EQK_DEGREE>.kernels;
}

}  // namespace EQK_ISA
}  // namespace eqk::tensor_product
