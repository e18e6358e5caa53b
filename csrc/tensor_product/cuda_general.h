#pragma once
// The general kernel: one thread computes one element of one slot, for every mode, multiplicity and degree. It gathers,
// so no two threads write the same place and the result does not depend on their order.
#include "core/scalar.h"
#include "tensor_product/cuda_kernels.h"

namespace eqk::tensor_product {

// The last n < count with begin(n) <= q; begin increases from begin(0) <= q.
template <class N, class F>
EQK_HD N last_not_after(N count, std::int64_t q, F&& begin) {
  N low = 0, high = count;
  while (high - low > 1) {
    const N middle = (low + high) / 2;
    (begin(middle) <= q ? low : high) = middle;
  }
  return low;
}

// The channels (u, v, c) of x, y and out that a path couples, and the weight of each triple.
class Channels {
 public:
  struct Box {
    std::int64_t u0, u1, v0, v1, c0, c1;
  };

  EQK_HD explicit Channels(const DevicePath& p) : p_(p), mode_(static_cast<Mode>(p.mode)) {}

  // All triples with this channel in this slot; of the weights, all with this number.
  EQK_HD Box box(Slot slot, std::int64_t fixed) const {
    Box b{0, p_.m1, 0, p_.m2.value(), 0, p_.mo.value()};
    if (slot == kX) b.u0 = fixed, b.u1 = fixed + 1;
    if (slot == kY) b.v0 = fixed, b.v1 = fixed + 1;
    if (slot == kW) {
      if (mixes()) {
        b.c0 = p_.mo.remainder(fixed), b.c1 = b.c0 + 1;
        fix_pair(b, p_.mo.quotient(fixed));
      } else {
        fix_pair(b, fixed);
      }
    }
    if (slot == kG) {
      if (mixes()) {
        b.c0 = fixed, b.c1 = fixed + 1;
      } else if (mode_ == Mode::uvv) {
        b.v0 = fixed, b.v1 = fixed + 1;
      } else if (mode_ == Mode::uvu) {
        b.u0 = fixed, b.u1 = fixed + 1;
      } else {
        fix_pair(b, fixed);
      }
    }
    return b;
  }

  // Calls f(u, v, c, weight) for the triples of the box.
  template <class F>
  EQK_HD void for_each(const Box& b, F&& f) const {
    // With one channel y given, a mode of equal channels leaves one u.
    const std::int64_t u0 = equal() && b.v0 > b.u0 ? b.v0 : b.u0, u1 = equal() && b.v1 < b.u1 ? b.v1 : b.u1;
#pragma unroll 1
    for (std::int64_t u = u0; u < u1; ++u) {
      std::int64_t v0 = b.v0, v1 = b.v1;
      if (equal()) v0 = u, v1 = u + 1;
      if (ordered() && v0 <= u) v0 = u + 1;
#pragma unroll 1
      for (std::int64_t v = v0; v < v1; ++v) {
        const std::int64_t q = pair(u, v);
        if (!mixes()) {
          f(u, v, mode_ == Mode::uvu ? u : mode_ == Mode::uvv ? v : q, q);
        } else {
#pragma unroll 1
          for (std::int64_t c = b.c0; c < b.c1; ++c) f(u, v, c, q * p_.mo.value() + c);
        }
      }
    }
  }

 private:
  const DevicePath& p_;
  Mode mode_;

  EQK_HD bool mixes() const { return mode_ == Mode::uvw || mode_ == Mode::uuw || mode_ == Mode::u_lt_vw; }
  EQK_HD bool equal() const { return mode_ == Mode::uuw || mode_ == Mode::uuu; }
  EQK_HD bool ordered() const { return mode_ == Mode::uvu_lt_v || mode_ == Mode::u_lt_vw; }

  EQK_HD std::int64_t before(std::int64_t u) const { return u * (2 * p_.m2.value() - u - 1) / 2; }

  EQK_HD std::int64_t pair(std::int64_t u, std::int64_t v) const {
    if (equal()) return u;
    if (ordered()) return before(u) + v - u - 1;
    return u * p_.m2.value() + v;
  }

  EQK_HD void fix_pair(Box& b, std::int64_t q) const {
    std::int64_t u, v;
    if (equal()) {
      u = v = q;
    } else if (ordered()) {
      u = last_not_after(p_.m2.value() - 1, q, [&](std::int64_t n) { return before(n); });
      v = q - before(u) + u + 1;
    } else {
      u = p_.m2.quotient(q), v = p_.m2.remainder(q);
    }
    b.u0 = u, b.u1 = u + 1, b.v0 = v, b.v1 = v + 1;
  }
};

// A sum over many terms, in blocks, since the rounding error of one chain grows with its length.
template <class T>
class BlockSum {
 public:
  // Where to add the next term.
  EQK_HD T& next() {
    constexpr int kBlock = 64;
    if (count_++ == kBlock) total_ += block_, block_ = 0, count_ = 1;
    return block_;
  }
  EQK_HD T total() const { return total_ + block_; }

 private:
  T total_{0}, block_{0};
  int count_ = 0;
};

template <class T, class Storage, bool kDual, Slot slot>
class General {
  using S = std::conditional_t<kDual, Dual<T>, T>;

 public:
  EQK_HD explicit General(const SlotArguments& arguments) : a_(arguments), table_(arguments.table) {}

  // The sum over rows [begin, end) of the contributions to this column of the slot.
  EQK_HD T element(std::int64_t begin, std::int64_t end, std::int64_t column) const {
    BlockSum<T> sum;
    if constexpr (slot == kW) {
      const std::int32_t* const weighted = table_.weighted;
      const DevicePath& p = table_.path[weighted[last_not_after(
          table_.weighted_paths, column, [&](std::int32_t n) { return table_.path[weighted[n]].weight_offset; })]];
      for (std::int64_t row = begin; row < end; ++row) sum.next() += path(p, row, column - p.weight_offset, 0);
    } else {
      constexpr int s = slot == kG ? 2 : slot;
      const DeviceSegment* const segments = table_.segment[s];
      const DeviceSegment& segment =
          segments[last_not_after(table_.segments[s], column, [&](std::int32_t n) { return segments[n].offset; })];
      const std::int64_t local = column - segment.offset;
      const std::int64_t outer = segment.inner.quotient(local), inner = segment.inner.remainder(local);
      const std::int64_t channel = segment.channels_inner ? inner : outer;
      const std::int64_t component = segment.channels_inner ? outer : inner;
      for (std::int64_t row = begin; row < end; ++row)
        for (std::int32_t n = segment.path_begin; n < segment.path_end; ++n)
          sum.next() += path(table_.path[table_.path_of[n]], row, channel, static_cast<int>(component));
    }
    return sum.total();
  }

 private:
  const SlotArguments& a_;
  const TableView& table_;

  EQK_HD S load(Slot from, std::int64_t row, std::int64_t column) const {
    const Operand& in = a_.in[from];
    const T v = static_cast<T>(static_cast<const Storage*>(in.value)[row * in.stride + column]);
    if constexpr (!kDual)
      return v;
    else
      return {v, in.tangent ? static_cast<T>(static_cast<const Storage*>(in.tangent)[row * in.tangent_stride + column])
                            : T{0}};
  }

  // What one path contributes to component `component` of channel `fixed` (or to weight number `fixed`).
  EQK_HD T path(const DevicePath& p, std::int64_t row, std::int64_t fixed, int component) const {
    constexpr int s = slot == kX ? 0 : slot == kY ? 1 : 2;
    const DeviceCoupling& coupling = table_.coupling[p.coupling];
    const auto* const entries = static_cast<const DeviceEntry<T>*>(table_.entry);
    const std::int32_t* const range = table_.range + coupling.begin[s] + component;
    const std::int32_t first = slot == kW ? coupling.first : range[0];
    const std::int32_t last = slot == kW ? coupling.first + coupling.entries : range[1];
    BlockSum<T> sum;
    const Channels channels(p);
    channels.for_each(channels.box(slot, fixed), [&](std::int64_t u, std::int64_t v, std::int64_t c, std::int64_t q) {
      const std::int64_t channel[3] = {u, v, c};
      const auto at = [&](int operand, int which) {
        const View& w = p.view[operand];
        return load(operand == 2 ? kG : static_cast<Slot>(operand), row,
                    w.offset + channel[operand] * w.channel + which * w.component);
      };
      if constexpr (slot == kW) {
        for (std::int32_t e = first; e < last; ++e)
          fma_part(sum.next(), mul(mul(at(0, entries[e].at[0]), at(1, entries[e].at[1])), entries[e].c),
                   at(2, entries[e].at[2]));
      } else {
        constexpr int a = slot == kX ? 1 : 0, b = slot == kG ? 1 : 2;
        S r{};
        for (std::int32_t e = first; e < last; ++e)
          fma(r, mul(at(a, entries[e].at[a]), at(b, entries[e].at[b])), entries[e].c);
        if (p.weighted)
          fma_part(sum.next(), load(kW, row, p.weight_offset + q), r);
        else
          sum.next() += part(r);
      }
    });
    return sum.total() * static_cast<T>(p.coefficient);
  }
};

}  // namespace eqk::tensor_product
