#pragma once
// The kernels: a thread has a channel of a row, its signals in registers, and goes through the rings in pairs, north
// and south of the equator. On each it multiplies trigonometric polynomials by their coefficients; tables are uniform
// operands from the kernel's parameters.
#include "core/macros.h"
#include "gaunt_product/cuda_kernels.h"

namespace eqk::gaunt_product {
namespace {

// c_m for m from 0 to L, of which c_-m are the conjugates: c_0, Re c_1, Im c_1, Re c_2, ... Component l^2 + l +
// signed_order(i) of a signal contributes to number i.
template <int L>
struct Polynomial {
  static constexpr int kSize = 2 * L + 1;

  float c[kSize];

  __device__ __forceinline__ float& re(int m) { return c[m ? 2 * m - 1 : 0]; }
  __device__ __forceinline__ float re(int m) const { return c[m ? 2 * m - 1 : 0]; }
  __device__ __forceinline__ float& im(int m) { return c[2 * m]; }
  __device__ __forceinline__ float im(int m) const { return c[2 * m]; }

  static constexpr int order(int i) { return (i + 1) / 2; }
  static constexpr int signed_order(int i) { return i % 2 || !i ? order(i) : -order(i); }
};

// Of two polynomials, up to order L. What sums of pairs p, -p give c_0 are twice real parts: of one of each, doubled at
// last.
template <int L>
class ProductOfPolynomials {
 public:
  using P = Polynomial<L>;

  __device__ __forceinline__ ProductOfPolynomials() {
#pragma unroll
    for (int i = 0; i < P::kSize; ++i) h_.c[i] = 0;
  }

  __device__ __forceinline__ P value() const {
    P h = h_;
    h.c[0] += 2 * half_;
    return h;
  }

  // a b, where a_0 or b_0 may be zero.
  template <bool a_has_mean, bool b_has_mean>
  __device__ __forceinline__ void add(const P& a, const P& b) {
    if constexpr (a_has_mean && b_has_mean) h_.c[0] += a.c[0] * b.c[0];
#pragma unroll
    for (int p = 1; p <= L; ++p) add_conjugate(a.re(p), a.im(p), b.re(p), b.im(p), p, p);
#pragma unroll
    for (int m = 1; m <= L; ++m) {
      if constexpr (a_has_mean) add_scaled(a.c[0], b.re(m), b.im(m), m);
      if constexpr (b_has_mean) add_scaled(b.c[0], a.re(m), a.im(m), m);
#pragma unroll
      for (int p = 1; p < m; ++p) add_product(a.re(p), a.im(p), b.re(m - p), b.im(m - p), m);
#pragma unroll
      for (int p = m + 1; p <= L; ++p) {
        add_conjugate(a.re(p), a.im(p), b.re(p - m), b.im(p - m), p, p - m);
        add_conjugate(a.re(p - m), a.im(p - m), b.re(p), b.im(p), p - m, p);
      }
    }
  }

  // f g - f_alpha s: its c_m is the sum of f_p (g_q + i p s_q) over p + q = m. To add p s_q to g_q first is half the
  // work of a product.
  __device__ __forceinline__ void add_mixed(const P& f, const P& g, const P& s) {
    h_.c[0] += f.c[0] * g.c[0];
#pragma unroll
    for (int m = 1; m <= L; ++m) add_scaled(f.c[0], g.re(m), g.im(m), m);
#pragma unroll
    for (int p = 1; p <= L; ++p) {
      const float re = f.re(p), im = f.im(p);
      add_product(re, im, g.c[0], p * s.c[0], p);
#pragma unroll
      for (int q = 1; q <= L; ++q) {
        // -q is the conjugate of g_q - i p s_q.
        add_conjugate(re, im, g.re(q) + p * s.im(q), g.im(q) - p * s.re(q), p, q);
        if (p + q <= L) add_product(re, im, g.re(q) - p * s.im(q), g.im(q) + p * s.re(q), p + q);
      }
    }
  }

 private:
  P h_;
  float half_ = 0;

  __device__ __forceinline__ void add_scaled(float scale, float re, float im, int m) {
    h_.re(m) += scale * re;
    h_.im(m) += scale * im;
  }
  // To c_m.
  __device__ __forceinline__ void add_product(float ar, float ai, float br, float bi, int m) {
    h_.re(m) += ar * br;
    h_.re(m) -= ai * bi;
    h_.im(m) += ar * bi;
    h_.im(m) += ai * br;
  }
  // a_p times the conjugate of b_q to c_(p-q), or where q is larger the conjugate of that to c_(q-p).
  __device__ __forceinline__ void add_conjugate(float ar, float ai, float br, float bi, int p, int q) {
    if (p == q) {
      half_ += ar * br;
      half_ += ai * bi;
      return;
    }
    const int m = p > q ? p - q : q - p;
    h_.re(m) += ar * br;
    h_.re(m) += ai * bi;
    if (p > q) {
      h_.im(m) += ai * br;
      h_.im(m) -= ar * bi;
    } else {
      h_.im(m) += ar * bi;
      h_.im(m) -= ai * br;
    }
  }
};

// sign times d/dalpha, without a mean.
template <int sign, int L>
__device__ __forceinline__ Polynomial<L> along_alpha(const Polynomial<L>& f) {
  Polynomial<L> d;
  d.c[0] = 0;
#pragma unroll
  for (int m = 1; m <= L; ++m) {
    d.re(m) = (sign * m) * f.im(m);
    d.im(m) = (-sign * m) * f.re(m);
  }
  return d;
}

template <Member member, Kind kind, int L>
class Rings {
  static constexpr TableShape kShape{member, kind, L};
  static constexpr int kComponents = (L + 1) * (L + 1), kEntries = kShape.entries();
  static constexpr int kOfInput = kShape.input(1), kOutputs = kShape.output(0), kOfRing = kShape.of_ring(),
                       kPairs = kShape.pairs();
  // Both gradients in one loop over the rings, which forms the cotangent's polynomials once; registers for their sums
  // are there to this degree.
  static constexpr bool kTogether = L <= 4;
  using P = Polynomial<L>;

 public:
  using Arguments = gaunt_product::Arguments<kShape.numbers()>;

  static __device__ __forceinline__ void run(const Arguments& a) {
    const std::int64_t thread = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    const SignalArguments& s = a.signals;
    const std::int64_t row = s.channels.quotient(thread);
    if (row >= s.rows) return;
    const Column column{row, thread - row * s.channels.value(), 4 * static_cast<int>(s.channels.value())};
    if constexpr (member == Member::forward) {
      const Signal x(column, s.in[0]), y(column, s.in[1]);
      Signal z;
      over_rings(a.table, [&](auto equator, const float* ring) EQK_LAMBDA {
        const Fields<equator> f(ring, x), g(ring + kOfInput, y);
        add_product(ring + kOutputs, f, g, z);
      });
      z.store(column, s.out[0]);
    } else {
      // The integral of g T(x, y) is cyclic: y and g give the gradient of x, g and x that of y.
      const Signal q(column, s.in[2]);
      if constexpr (kTogether) {
        const Signal x(column, s.in[0]), y(column, s.in[1]);
        Signal gx, gy;
        over_rings(a.table, [&](auto equator, const float* ring) EQK_LAMBDA {
          const Fields<equator> h(ring + 2 * kOfInput, q);
          add_product(ring + kOutputs, Fields<equator>(ring + kOfInput, y), h, gx);
          add_product(ring + kOutputs + kEntries, h, Fields<equator>(ring, x), gy);
        });
        gx.store(column, s.out[0]);
        gy.store(column, s.out[1]);
      } else {
        {
          const Signal y(column, s.in[1]);
          Signal gx;
          over_rings(a.table, [&](auto equator, const float* ring) EQK_LAMBDA {
            const Fields<equator> g(ring + kOfInput, y), h(ring + 2 * kOfInput, q);
            add_product(ring + kOutputs, g, h, gx);
          });
          gx.store(column, s.out[0]);
        }
        const Signal x(column, s.in[0]);
        Signal gy;
        over_rings(a.table, [&](auto equator, const float* ring) EQK_LAMBDA {
          const Fields<equator> h(ring + 2 * kOfInput, q), f(ring, x);
          add_product(ring + kOutputs + kEntries, h, f, gy);
        });
        gy.store(column, s.out[1]);
      }
    }
  }

 private:
  struct Column {
    std::int64_t row, channel;
    int apart;  // bytes between components
  };

  struct Signal {
    float x[kComponents];

    __device__ __forceinline__ Signal() {
#pragma unroll
      for (int n = 0; n < kComponents; ++n) x[n] = 0;
    }
    __device__ __forceinline__ Signal(const Column& at, const SignalsIn& in) {
      const float* const base = in.data + at.row * in.stride + at.channel;
      // Apart from each other, or each component takes an instruction more.
      if (in.lmax == L) {
#pragma unroll
        for (int n = 0; n < kComponents; ++n) x[n] = *component(base, n, at.apart);
      } else {
#pragma unroll
        for (int n = 0; n < kComponents; ++n) x[n] = degree(n) <= in.lmax ? *component(base, n, at.apart) : 0.0f;
      }
    }

    __device__ __forceinline__ void store(const Column& at, const SignalsOut& out) {
      float* const base = out.data + at.row * out.stride + at.channel;
      if (out.add)
#pragma unroll
        for (int n = 0; n < kComponents; ++n)
          if (degree(n) <= out.lmax) x[n] += *component(base, n, at.apart);
#pragma unroll
      for (int n = 0; n < kComponents; ++n)
        if (degree(n) <= out.lmax) *component(base, n, at.apart) = x[n];
    }

    static constexpr int degree(int n) {
      int l = 0;
      while ((l + 1) * (l + 1) <= n) ++l;
      return l;
    }

    // One multiply-add.
    template <class T>
    static __device__ __forceinline__ T* component(T* base, int n, int apart) {
      return reinterpret_cast<T*>(reinterpret_cast<std::intptr_t>(base) + static_cast<std::int64_t>(apart) * n);
    }
  };

  // f(whether it is the equator, table) for pairs of rings, and the equator where there is one. One copy of the loop's
  // body: unrolled, it would save 2 % of the instructions for 2 to 4 times the code.
  template <class F>
  static __device__ __forceinline__ void over_rings(const float* table, const F& f) {
#pragma unroll 1
    for (int k = 0; k < kPairs; ++k) f(std::false_type(), table + k * kOfRing);
    if constexpr (kShape.equator()) f(std::true_type(), table + kPairs * kOfRing);
  }

  // On a ring, and d/dbeta / sin(beta).
  struct Field {
    P value, slope;
  };

  // A signal on a ring and its mirror image, where terms of one parity of l + m change sign; on the equator these are
  // zero, and the image is the ring.
  template <bool equator>
  struct Fields {
    Field north, south;

    __device__ __forceinline__ Fields(const float* table, const Signal& s) {
      synthesise<1>(table, s, north.value, south.value);
      if constexpr (kind != Kind::even) synthesise<0>(table + kEntries, s, north.slope, south.slope);
    }

    template <int odd_parity>
    static __device__ __forceinline__ void synthesise(const float* table, const Signal& s, P& north, P& south) {
#pragma unroll
      for (int i = 0; i < P::kSize; ++i) {
        const int m = P::order(i);
        float even = 0, odd = 0;
#pragma unroll
        for (int l = m; l <= L; ++l) {
          const float x = s.x[l * l + l + P::signed_order(i)];
          if ((l + m) % 2 != odd_parity)
            even += table[TableShape::entry(l, m)] * x;
          else if (!equator)
            odd += table[TableShape::entry(l, m)] * x;
        }
        north.c[i] = even + odd;
        if (!equator) south.c[i] = even - odd;
      }
    }
  };

  // f g + f_beta g_alpha - f_alpha g_beta, as far as this kind has it.
  static __device__ __forceinline__ P product(const Field& f, const Field& g) {
    ProductOfPolynomials<L> h;
    if constexpr (kind == Kind::even) h.template add<true, true>(f.value, g.value);
    if constexpr (kind == Kind::all) h.add_mixed(f.value, g.value, g.slope);
    if constexpr (kind == Kind::odd) h.template add<false, true>(along_alpha<-1>(f.value), g.slope);
    if constexpr (kind != Kind::even) h.template add<true, false>(f.slope, along_alpha<1>(g.value));
    return h.value();
  }

  template <bool equator>
  static __device__ __forceinline__ void add_product(const float* table, const Fields<equator>& f,
                                                     const Fields<equator>& g, Signal& out) {
    const P north = product(f.north, g.north);
    P south;
    if constexpr (!equator) south = product(f.south, g.south);
#pragma unroll
    for (int i = 0; i < P::kSize; ++i) {
      const int m = P::order(i);
      const float even = equator ? north.c[i] : north.c[i] + south.c[i], odd = equator ? 0 : north.c[i] - south.c[i];
#pragma unroll
      for (int l = m; l <= L; ++l) {
        float& x = out.x[l * l + l + P::signed_order(i)];
        if ((l + m) % 2 == 0)
          x += table[TableShape::entry(l, m)] * even;
        else if (!equator)
          x += table[TableShape::entry(l, m)] * odd;
      }
    }
  }
};

}  // namespace
}  // namespace eqk::gaunt_product
