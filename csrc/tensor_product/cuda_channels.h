#pragma once
// The fast kernels: lanes are channels, for plans in which one operand has a single channel that all channels of a row
// share (ChannelPlan). A block forms M[k, i] = sum_j C[i, j, k] s[j] of its rows once, in shared memory. A team of 8 or
// 16 lanes then works through a row: for each segment with channels, for each segment of the shared operand, for each
// path, one multiply-add a nonzero (k, i) and channel, packs of adjacent channels a lane. A program says which these
// are: of any plan from tables, where degrees are run-time values that choose straight-line code, or of one plan as
// constants. Every element of a result is written by one lane.
//
// Channels of mul_ir rows cross a stage in shared memory, so that memory is read and written in whole sectors: a lane's
// channels lie 2 l + 1 vectors apart, an odd number, which keeps shared memory free of bank conflicts.
#include "cg_table.h"
#include "core/cuda_pack.h"
#include "core/scalar.h"
#include "tensor_product/cuda_kernels.h"

namespace eqk::tensor_product {

// Calls f with the degree l as a compile-time constant.
template <int kFirst, int kLast, class F, int l>
__device__ __forceinline__ void with_degree(constant<l> known, F&& f) {
  f(known);
}
template <int kFirst, int kLast, class F>
__device__ __forceinline__ void with_degree(int l, F&& f) {
  if constexpr (kFirst == kLast) {
    f(constant<kFirst>{});
  } else {
    if (l == kFirst)
      f(constant<kFirst>{});
    else
      with_degree<kFirst + 1, kLast>(l, f);
  }
}

// What a block does, from the tables of the plan, which it copies to shared memory. It calls a function with each
// record, and with its degree and number of channels, which another program knows at compile time.
template <class T>
class AnyProgram {
 public:
  using Path = DeviceChannelPath<T>;
  static constexpr bool kOnce = false;  // whether a block holds rows but once

  __device__ __forceinline__ AnyProgram(const ChannelArguments& a, unsigned char* shared)
      : a_(a), words_(reinterpret_cast<std::int32_t*>(shared)) {}

  __device__ __forceinline__ const ChannelLayout& layout() const { return a_.layout; }

  // Before all else.
  __device__ __forceinline__ void load() const {
    for (int n = threadIdx.x; n < a_.view.word_count / 4; n += blockDim.x)
      reinterpret_cast<int4*>(words_)[n] = reinterpret_cast<const int4*>(a_.view.words)[n];
    __syncthreads();
    auto* const segments = reinterpret_cast<DeviceChannelSegment*>(words_);
    for (int n = threadIdx.x; n < a_.view.segments; n += blockDim.x)
      segments[n].flags = segment_flags(segments[n].flags, a_.vectors, a_.channel_mul_ir);
    auto* const paths = reinterpret_cast<Path*>(words_ + a_.view.paths_at);
    for (int n = threadIdx.x; n < a_.view.paths; n += blockDim.x)
      paths[n].packed = path_flags(paths[n].packed, a_.vectors, a_.out_mul_ir, a_.in[kW].tangent, a_.out[kW].data);
  }

  // f(segment, degree, channels)
  template <class F>
  __device__ __forceinline__ void for_segments(F&& f) const {
    const auto* const segments = reinterpret_cast<const DeviceChannelSegment*>(words_);
#pragma unroll 1
    for (int n = 0; n < a_.view.segments; ++n) f(segments[n], segments[n].l, constant<0>{});
  }

  // f(group, degree)
  template <class F>
  __device__ __forceinline__ void for_groups(const DeviceChannelSegment& segment, F&& f) const {
    const auto* group = reinterpret_cast<const DeviceChannelGroup*>(words_ + a_.view.groups_at) + segment.group_begin;
#pragma unroll 1
    for (int groups = segment.group_end - segment.group_begin; groups > 0; --groups, ++group) f(*group, group->l);
  }

  // f(path, degree of the output)
  template <class F>
  __device__ __forceinline__ void for_paths(const DeviceChannelGroup& group, F&& f) const {
    const auto* path = reinterpret_cast<const Path*>(words_ + a_.view.paths_at) + group.path_begin;
#pragma unroll 1
    for (int paths = group.path_end - group.path_begin; paths > 0; --paths, ++path) {
      const Path p = *path;
      f(p, p.degree());
    }
  }

  // f(first column, columns)
  template <class F>
  __device__ __forceinline__ void for_ranges(const DeviceRanges& ranges, F&& f) const {
    for (int n = 0; n < ranges.count; ++n) {
      const std::int32_t* const range = words_ + ranges.first + 2 * n;
      f(range[0], range[1]);
    }
  }

 private:
  const ChannelArguments& a_;
  std::int32_t* words_;
};

// Likewise of one plan, as constants: its code has no tables, and no loop but that over slices. Launches::runs_listed
// says what it takes for granted. Tables: a type of cuda_plans.h.
template <class Tables, bool kBackward, bool kDual>
class OneProgram {
 public:
  using Path = DeviceChannelPath<float>;
  // What is computed before a loop over rows would be held in registers through all of the straight-line code.
  static constexpr bool kOnce = true;

  __device__ __forceinline__ OneProgram(const ChannelArguments& a, unsigned char*) : a_(a) {}

  __device__ __forceinline__ constexpr ChannelLayout layout() const { return Tables::layouts[kBackward][kDual]; }

  __device__ __forceinline__ void load() const {}

  template <class F>
  __device__ __forceinline__ void for_segments(F&& f) const {
    eqk::unroll<std::size(Tables::segments)>([&](auto n) EQK_LAMBDA {
      using S = Segment<decltype(n)::value>;
      f(S{}, constant<S::l>{}, constant<S::mul>{});
    });
  }

  template <class S, class F>
  __device__ __forceinline__ void for_groups(const S&, F&& f) const {
    eqk::unroll<S::group_end - S::group_begin>([&](auto n) EQK_LAMBDA {
      using G = Group<S::group_begin + decltype(n)::value>;
      f(G{}, constant<G::l>{});
    });
  }

  template <class G, class F>
  __device__ __forceinline__ void for_paths(const G&, F&& f) const {
    eqk::unroll<G::path_end - G::path_begin>([&](auto n) EQK_LAMBDA {
      constexpr Path p = Tables::paths[G::path_begin + decltype(n)::value];
      constexpr std::uint32_t flags = path_flags(p.packed, ~0, Tables::out_mul_ir, true, false);
      // Always, which the compiler does not know: it would mix the code of all paths, and spill.
      if (a_.add == 0)
        f(Path{p.coefficient, p.out, p.weight, flags | (a_.out[kW].data ? kWantWeight : 0)}, constant<p.degree()>{});
    });
  }

  // Every column is of some path.
  template <class F>
  __device__ __forceinline__ void for_ranges(const DeviceRanges&, F&&) const {}

 private:
  template <int n>
  struct Segment {
    static constexpr DeviceChannelSegment kOf = Tables::segments[n];
    static constexpr std::int32_t offset = kOf.offset, mul = kOf.mul, l = kOf.l, group_begin = kOf.group_begin,
                                  group_end = kOf.group_end, m_begin = kOf.m_begin, m_end = kOf.m_end,
                                  flags = segment_flags(kOf.flags, ~0, Tables::channel_mul_ir);
  };
  template <int n>
  struct Group {
    static constexpr DeviceChannelGroup kOf = Tables::groups[n];
    static constexpr std::int32_t l = kOf.l, offset = kOf.offset, path_begin = kOf.path_begin, path_end = kOf.path_end;
  };

  const ChannelArguments& a_;
};

// What the lanes of a block share, and which row a lane works on.
template <class T, class Storage, int kTeam>
struct ChannelRow {
  const ChannelArguments& a;
  T *s, *m, *x;
  Four<T>* all_sums;
  // Of all_sums, where those begin that the lane adds to: its own or, without lane_sums, its team's from its own number
  // on. In bytes.
  int sums_at;
  Storage* stage;
  Storage** pointers;                                                 // [row of the block][kRowPointers]
  int thread = static_cast<int>(threadIdx.x), lane = thread % kTeam;  // of the block, of the team
  int block_row = 0;
  bool valid = false;  // a team beyond the last row repeats it and stores nothing

  __device__ __forceinline__ ChannelRow(const ChannelArguments& arguments, const ChannelLayout& at,
                                        unsigned char* shared)
      : a(arguments) {
    pointers = reinterpret_cast<Storage**>(shared + at.pointers);
    s = reinterpret_cast<T*>(shared + at.s);
    m = reinterpret_cast<T*>(shared + at.m);
    all_sums = reinterpret_cast<Four<T>*>(shared + at.sums);
    x = reinterpret_cast<T*>(shared + at.x);
    stage = reinterpret_cast<Storage*>(shared + at.stage);
  }

  // Of a block with so many rows.
  __device__ __forceinline__ void place(int thread_, int rows, const ChannelLayout& at) {
    thread = thread_;
    lane = thread % kTeam;
    // A block has as many rows as teams.
    const int r = thread / kTeam;
    valid = r < rows;
    block_row = valid ? r : rows - 1;
    sums_at = static_cast<int>(sizeof(T)) *
              (at.lane_sums ? thread / 32 * at.shared_dim * kSumStride + thread % 32 : r * at.shared_dim + lane);
  }

  // A column of the row of in[n], of the tangent of in[n - kTangents] or of out[n - kResults], but of the shared
  // operand.
  __device__ __forceinline__ Storage* at(int n, unsigned column) const {
    return pointers[block_row * kRowPointers + n / kSlots * (kSlots - 1) + max(n % kSlots - 1, 0)] + column;
  }

  __device__ __forceinline__ T* sums() const {
    return reinterpret_cast<T*>(reinterpret_cast<unsigned char*>(all_sums) + opaque(sums_at));
  }

  __device__ __forceinline__ void set_pointers(std::int64_t first, int rows, int threads) const {
    static_assert(kChannel == 0 && kShared == 1);
#pragma unroll 1
    for (int n = opaque(threadIdx.x); n < rows * kRowPointers; n += threads) {
      const int r = n / kRowPointers, what = n % kRowPointers, kind = what / (kSlots - 1), which = what % (kSlots - 1);
      const int slot = which ? which + 1 : kChannel;
      const Operand& in = a.in[slot];
      const void* const base = kind == 0 ? in.value : kind == 1 ? in.tangent : a.out[slot].data;
      const std::int64_t stride = kind == 0 ? in.stride : kind == 1 ? in.tangent_stride : a.out[slot].stride;
      pointers[n] = static_cast<Storage*>(const_cast<void*>(base)) + (first + r) * stride;
    }
  }
};

// One row's channels from u on of a segment of degree l1: up to kPacks packs of kChannels adjacent ones a lane, which
// are whole, or one of which some lanes have none. What a path costs once, its table, its degrees and its M, serves all
// packs.
//
// kMul: the channels, where they fill all slices and paths are constants (OneProgram), else 0.
template <class T, class Storage, bool kDual, bool kBackward, int kDegree, class Program, class Segment, int l1,
          int kMul>
class ChannelSlice {
  using S = std::conditional_t<kDual, Dual<T>, T>;
  static constexpr int kChannels = channels_of_pack(sizeof(T), kDual), D1 = 2 * l1 + 1;
  static constexpr int kParts = kDual ? 2 : 1, kTeam = lanes_of_team(kDual);
  static constexpr int kMostPacks = packs_of_lane(sizeof(T), kDual, kBackward, kDegree, l1);
  static constexpr int kPacks = kMul ? packs_of_slice(kMul / (kTeam * kChannels), kMostPacks, kBackward) : kMostPacks;
  // Whether x waits in shared memory: registers hold it beside one result, not beside several. Then they hold one part
  // of a pack at a time.
  static constexpr bool kStaged = kBackward;
  static constexpr int kHeld = kStaged ? 1 : kParts;
  using P = Pack<Storage, kChannels>;
  using Path = DeviceChannelPath<T>;
  // A pack of one segment: [component][channel]. nvcc 12.4 breaks on an alias of the array itself.
  template <int D>
  struct TileOf {
    using Type = T[D * kChannels];
  };
  template <int D>
  using Tile = typename TileOf<D>::Type;

 public:
  using Row = ChannelRow<T, Storage, kTeam>;
  static constexpr int kPackStep = kTeam * kChannels;

  __device__ __forceinline__ ChannelSlice(const Program& program, const Row& row, const Segment& segment, int u)
      : program_(program),
        row_(row),
        a_(row.a),
        segment_(segment),
        mul_(segment.mul),
        u_(u),
        t_(row.lane),
        first_(u + row.lane * kChannels),
        packs_(kMul ? kPacks : min(kPacks, max(1, (mul_ - u) / kPackStep))),
        whole_(kMul || mul_ - u >= kPackStep ? -1 : 0),
        m_(row.m + row.block_row * program.layout().m_stride) {
    const int thread = row.thread;
    stage_ = reinterpret_cast<unsigned char*>(row.stage + (thread - t_) * program.layout().stage_of_lane);
    x_ = row.x + thread / 32 * 32 * program.layout().x_of_lane + thread % 32 * kChannels;
  }

  __device__ __forceinline__ int channels() const { return packs_ * kPackStep; }

  __device__ __forceinline__ void run() {
    const auto at = [&](int what, int vectors, int planes) EQK_LAMBDA {
      return slice<D1>(what + kChannel, segment_.offset, segment_.flags, vectors, planes, a_.channel_mul_ir);
    };
    Tile<D1> x[kPacks * kHeld], gc[kPacks];
    const Slice value = at(0, kVectorIn, kPlanesIn), tangent = at(kTangents, kVectorTangent, kPlanesTangent);
    for_packs([&](auto pack) EQK_LAMBDA {
      constexpr int p = decltype(pack)::value;
      load<D1>(x[p * kHeld], value, p);
      if constexpr (kStaged) stage_x<D1>(x[p], p, 0);
      if constexpr (kDual) {
        auto& t = x[p * kHeld + kHeld - 1];
        if (a_.in[kChannel].tangent) {
          load<D1>(t, tangent, p);
        } else {
#pragma unroll
          for (T& v : t) v = 0;
        }
        if constexpr (kStaged) stage_x<D1>(t, p, D1);
      }
    });
    if constexpr (kBackward) {
#pragma unroll
      for (auto& tile : gc)
#pragma unroll
        for (T& v : tile) v = 0;
    }
    program_.for_groups(segment_, [&](const auto& group, auto degree) EQK_LAMBDA {
      with_degree<0, kDegree>(degree, [&](auto l) EQK_LAMBDA {
        constexpr int l2 = decltype(l)::value, kLow = l1 > l2 ? l1 - l2 : l2 - l1,
                      kHigh = l1 + l2 < kDegree ? l1 + l2 : kDegree;
        [[maybe_unused]] T gs[2 * l2 + 1] = {};
        program_.for_paths(group, [&](const Path& p, auto degree) EQK_LAMBDA {
          // Of several packs one after the other, for their registers; of one pack here, where the code is there once
          // for all degrees of the output.
          S w[kChannels];
          [[maybe_unused]] T gw[kChannels] = {};
          if constexpr (kPacks == 1) load_weights(p, 0, w);
          with_degree<kLow, kHigh>(degree, [&](auto l3) EQK_LAMBDA {
            using C = Cg<l1, l2, decltype(l3)::value>;
            if constexpr (kBackward)
              backward_path<C>(p, x, gc, gs, w, gw);
            else
              forward_path<C>(p, x, w);
          });
          if constexpr (kBackward && kPacks == 1) store_weights(p, 0, gw);
        });
        if constexpr (kBackward) add_shared_gradient<2 * l2 + 1>(group, gs);
      });
    });
    if constexpr (kBackward)
      if (a_.out[kChannel].data) {
        const Slice to = at(kResults, kVectorOut, kPlanesOut);
        for_packs([&](auto pack) EQK_LAMBDA { store<D1>(gc[pack], to, pack, a_.add); });
      }
  }

 private:
  const Program& program_;
  const Row& row_;
  const ChannelArguments& a_;
  const Segment& segment_;
  const int mul_, u_;     // channels of the segment, and the first of this slice
  const int t_;           // lane of the team
  const int first_;       // the lane's first channel
  const int packs_;       // those that have channels
  const int whole_;       // mask of flags: all, or none where some lanes have no channels
  const T* const m_;      // the row's M
  unsigned char* stage_;  // of the team
  T* x_;                  // the lane's channels of x: of each pack a vector a component, then those of its tangent

  // Calls f(pack) for those that have channels.
  template <class F>
  __device__ __forceinline__ void for_packs(F&& f) const {
    eqk::unroll<kPacks>([&](auto pack) EQK_LAMBDA {
      if (decltype(pack)::value == 0 || packs_ > decltype(pack)::value) f(pack);
    });
  }

  template <int D>
  __device__ __forceinline__ void stage_x(const Tile<D>& x, int p, int first) const {
#pragma unroll
    for (int i = 0; i < D; ++i) {
      Pack<T, kChannels> pack;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) pack.set(c, x[i * kChannels + c]);
      pack.store_shared(x_ + (p * kParts * D + first + i) * 32 * kChannels);
    }
  }

  // Component i of the lane's channels, from registers or the stage.
  template <int i>
  __device__ __forceinline__ void read_x(const Tile<D1> (&x)[kPacks * kHeld], int p, S (&to)[kChannels]) const {
    if constexpr (!kStaged) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        if constexpr (kDual)
          to[c] = {x[p * kHeld][i * kChannels + c], x[p * kHeld + 1][i * kChannels + c]};
        else
          to[c] = x[p][i * kChannels + c];
      }
    } else {
      Pack<T, kChannels> pack[kParts];
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        pack[part].load_shared(x_ + ((p * kParts + part) * D1 + i) * 32 * kChannels);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        if constexpr (kDual)
          to[c] = {pack[0].template get<T>(c), pack[1].template get<T>(c)};
        else
          to[c] = pack[0].template get<T>(c);
      }
    }
  }

  // Calls f(pair, M of the pair) over the nonzero pairs of a path.
  template <class C, class F>
  __device__ __forceinline__ void for_pairs(const Path& path, F&& f) const {
    // 4 sizeof(T) times the highest bits, in two instructions.
    constexpr unsigned kShift = Path::kFlagBits + Path::kDegreeBits, kUnit = 4 * sizeof(T),
                       kLog = sizeof(T) == 4 ? 4 : 5;
    const unsigned bytes = path.packed >> (kShift - kLog) & ~(kUnit - 1);
    const T* const m = reinterpret_cast<const T*>(reinterpret_cast<const unsigned char*>(m_) + bytes);
    eqk::unroll<(C::pairs + 3) / 4>([&](auto q) EQK_LAMBDA {
      // The same address for all lanes of a team.
      const Four<T> v = reinterpret_cast<const Four<T>*>(m)[q];
      Four<T> t;
      if constexpr (kDual)
        t = reinterpret_cast<const Four<T>*>(m + program_.layout().padded_rows * program_.layout().m_stride)[q];
      eqk::unroll<4>([&](auto r) EQK_LAMBDA {
        constexpr int pair = 4 * decltype(q)::value + decltype(r)::value;
        if constexpr (pair < C::pairs) {
          if constexpr (kDual)
            f(constant<pair>{}, S{v.s[r], t.s[r]});
          else
            f(constant<pair>{}, v.s[r]);
        }
      });
    });
  }

  // Of a pack; zero beyond the last channel.
  __device__ __forceinline__ void load_weights(const Path& path, int p, S (&w)[kChannels]) const {
    const auto read = [&](int what, int vectors, int present, T absent) EQK_LAMBDA {
      const Storage* const from = first_of(what, path.weight, first_);
      return load_pack(from, path.packed & vectors, p, path.packed & present, absent);
    };
    const P pack = read(kW, kVectorW, kWeighted, 1);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) w[c] = S{pack.template get<T>(c)};
    if constexpr (kDual) {
      const P tangent = read(kTangents + kW, kVectorTangentW, kTangentWeighted, 0);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) w[c].t = tangent.template get<T>(c);
    }
  }

  // As store_pack; zero beyond the last channel, `absent` where the plane is not present.
  __device__ __forceinline__ P load_pack(const Storage* from, int vector, int p, bool present, T absent) const {
    from += p * kPackStep;
    P pack;
    if (whole_ & vector) {
      pack.load(from);
    } else {
      const int left = mul_ - first_ - p * kPackStep;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) pack.set(c, !present ? absent : c < left ? static_cast<T>(from[c]) : T{0});
    }
    return pack;
  }

  template <class C>
  __device__ __forceinline__ void forward_path(const Path& path, const Tile<D1> (&x)[kPacks * kHeld],
                                               S (&w)[kChannels]) {
    constexpr int D3 = 2 * C::l3 + 1;
    // The weight is multiplied into the smaller of x and the product.
    constexpr bool kWeightFirst = kDual || D1 <= D3;
    const Slice to = out_slice<D3>(kResults + kG, path, kVectorOut, kPlanesOut);
    for_packs([&](auto pack) EQK_LAMBDA {
      constexpr int n = decltype(pack)::value;
      S xi[kChannels], z[kChannels];
      if constexpr (kPacks > 1) load_weights(path, n, w);
      Tile<D3> out = {};
      for_pairs<C>(path, [&](auto pair, const S& m) EQK_LAMBDA {
        constexpr int p = decltype(pair)::value, i = C::pair_i[p], k = C::pair_k[p];
        if constexpr (starts<C, p>()) read_x<i>(x, n, xi);
#pragma unroll
        for (int c = 0; c < kChannels; ++c) {
          if constexpr (!kWeightFirst) {
            fma(out[k * kChannels + c], m, xi[c]);
          } else {
            if constexpr (starts<C, p>()) z[c] = eqk::mul(w[c], xi[c]);
            fma_part(out[k * kChannels + c], m, z[c]);
          }
        }
      });
      if constexpr (!kWeightFirst) {
#pragma unroll
        for (int q = 0; q < D3 * kChannels; ++q) out[q] *= part(w[q % kChannels]);
      }
      store<D3>(out, to, n, !(path.packed & kFirst));
    });
  }

  template <int D>
  __device__ __forceinline__ auto out_slice(int what, const Path& path, int vectors, int planes) const {
    return slice<D>(what, path.out, path.packed, vectors, planes, a_.out_mul_ir);
  }

  // Pairs are sorted by i.
  template <class C, int pair>
  static constexpr bool starts() {
    return pair == 0 || C::pair_i[pair - (pair > 0)] != C::pair_i[pair];
  }
  template <class C, int pair>
  static constexpr bool ends() {
    return pair + 1 == C::pairs || C::pair_i[pair + (pair + 1 < C::pairs)] != C::pair_i[pair];
  }

  // h_i = sum_k M[k, i] g_k gives gw = x.h and gc_i += w h_i; s[k, i] = sum over channels of w x_i g_k, contracted with
  // C, is the gradient of the shared operand. On duals, the eps part of all of them and of the forward.
  template <class C>
  __device__ __forceinline__ void backward_path(const Path& path, const Tile<D1> (&x)[kPacks * kHeld],
                                                Tile<D1> (&gc)[kPacks], T (&gs)[2 * C::l2 + 1], S (&w)[kChannels],
                                                T (&gw)[kChannels]) {
    constexpr int D3 = 2 * C::l3 + 1;
    constexpr bool kScaled = !kDual && !kMul;
    const Slice from = out_slice<D3>(kG, path, kVectorIn, kPlanesIn);
    [[maybe_unused]] T of_path[2 * C::l2 + 1] = {};
    for_packs([&](auto pack) EQK_LAMBDA {
      constexpr int n = decltype(pack)::value;
      S xi[kChannels], z[kChannels], h[kChannels];
      if constexpr (kPacks > 1) load_weights(path, n, w);
      // The path's coefficient, which the other sums have in M. Duals need w x without it: their registers hold one
      // more sum instead.
      [[maybe_unused]] T scaled[kChannels];
      if constexpr (kScaled) {
#pragma unroll
        for (int c = 0; c < kChannels; ++c) scaled[c] = path.coefficient * w[c];
      }
      Tile<D3> g, out;
      load<D3>(g, from, n);
      if constexpr (kPacks > 1) {
#pragma unroll
        for (T& v : gw) v = 0;
      }
      if constexpr (kDual) {
#pragma unroll
        for (T& v : out) v = 0;
      }
      for_pairs<C>(path, [&](auto pair, const S& m) EQK_LAMBDA {
        constexpr int p = decltype(pair)::value, i = C::pair_i[p], k = C::pair_k[p];
        if constexpr (starts<C, p>()) read_x<i>(x, n, xi);
        T s = 0;
#pragma unroll
        for (int c = 0; c < kChannels; ++c) {
          if constexpr (starts<C, p>()) {
            if constexpr (kScaled)
              z[c] = scaled[c] * xi[c];
            else
              z[c] = eqk::mul(w[c], xi[c]);
            h[c] = S{};
          }
          fma(h[c], m, g[k * kChannels + c]);
          s += part(z[c]) * g[k * kChannels + c];
          if constexpr (kDual) fma_part(out[k * kChannels + c], m, z[c]);
          if constexpr (ends<C, p>()) {
            fma_part(gw[c], xi[c], h[c]);
            fma_part(gc[n][i * kChannels + c], w[c], h[c]);
          }
        }
        // Also where nobody asked for it: a branch at each pair would cost more.
        eqk::unroll<C::pair_terms[p + 1] - C::pair_terms[p]>([&](auto q) EQK_LAMBDA {
          constexpr int term = C::pair_terms[p] + decltype(q)::value, j = C::term_j[term];
          constexpr T c = static_cast<T>(C::term_c[term]);
          if constexpr (kScaled)
            gs[j] += c * s;
          else if constexpr (kMul > 0)
            gs[j] += c * path.coefficient * s;
          else
            of_path[j] += c * s;
        });
      });
      if constexpr (kDual)
        if (a_.out[kG].data)
          store<D3>(out, out_slice<D3>(kResults + kG, path, kVectorOut, kPlanesOut), n, !(path.packed & kFirst));
      if constexpr (kPacks > 1) store_weights(path, n, gw);
    });
    if constexpr (kDual && !kMul) {
#pragma unroll
      for (int j = 0; j <= 2 * C::l2; ++j) gs[j] += path.coefficient * of_path[j];
    }
  }

  __device__ __forceinline__ void store_weights(const Path& path, int p, const T (&gw)[kChannels]) const {
    if (!(path.packed & kWantWeight) || !row_.valid) return;
    store_pack(first_of(kResults + kW, path.weight, first_), path.packed & kVectorResultW, p, gw, a_.add);
  }

  // Pack p of a plane that begins at the lane's first channel: as a vector where it is whole and `vector` is not 0,
  // else the elements that exist.
  __device__ __forceinline__ void store_pack(Storage* to, int vector, int p, const T (&v)[kChannels], bool add) const {
    to += p * kPackStep;
    if (whole_ & vector) {
      P pack;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) pack.set(c, v[c]);
      pack.store(to);
    } else {
      const int left = mul_ - first_ - p * kPackStep;
#pragma unroll
      for (int c = 0; c < kChannels; ++c)
        if (c < left) to[c] = static_cast<Storage>(v[c] + (add ? static_cast<T>(to[c]) : T{0}));
    }
  }

  // Also where nobody asked for it: a branch would cost every caller.
  template <int D, class Group>
  __device__ __forceinline__ void add_shared_gradient(const Group& group, const T (&gs)[D]) const {
    if (kDual || program_.layout().lane_sums) {
      T* const sums = row_.sums() + group.offset * kSumStride;
#pragma unroll
      for (int j = 0; j < D; ++j) sums[j * kSumStride] += gs[j];
    } else {
      T* const sums = row_.sums() + group.offset;
      // Of a degree above 3, eight components and the rest.
      eqk::unroll<(D + 7) / 8>([&](auto part) EQK_LAMBDA {
        constexpr int first = decltype(part)::value * 8, count = D - first < 8 ? D - first : 8;
        constexpr int N = count > 4 ? 8 : count > 2 ? 4 : count;
        T v[N];
#pragma unroll
        for (int n = 0; n < N; ++n) v[n] = n < count ? gs[first + n] : T{0};
        sum_over_lanes<N>(v, t_);
#pragma unroll
        for (int offset = N; offset < kTeam; offset *= 2) v[0] += __shfl_xor_sync(~0u, v[0], offset);
        if (t_ < count) sums[first] += v[0];
      });
    }
  }

  // This slice of a segment of an operand or a result.
  struct Slice {
    int what;         // as in ChannelRow::at
    unsigned offset;  // where the segment begins in a row
    Storage* first;   // the lane's first vector, in a mul_ir row, or of the one plane of degree 0
    // Of the flags, those that say that memory and registers exchange vectors, of a mul_ir row or of the planes of an
    // ir_mul row. Otherwise, and where a pack is not whole, single elements move.
    int flags, vectors, planes;
    int mul_ir;
  };
  template <int D>
  __device__ __forceinline__ Slice slice(int what, unsigned offset, int flags, int vectors, int planes,
                                         int mul_ir) const {
    return {what, offset, first_of(what, offset, opaque(u_) * D + t_ * kChannels), flags, vectors, planes, mul_ir};
  }

  // The lane's first element of a segment or path that begins at `offset`, which an instruction adds to the address
  // where it is a constant.
  __device__ __forceinline__ Storage* first_of(int what, unsigned offset, int first) const {
    if constexpr (kMul > 0)
      return row_.at(what, opaque(first)) + offset;
    else
      return row_.at(what, offset + static_cast<unsigned>(first));
  }

  // Element n of a pack of [channel][component] in the stage.
  __device__ __forceinline__ Storage* staged(int n) const {
    return reinterpret_cast<Storage*>(stage_ + n * static_cast<int>(sizeof(Storage)));
  }

  // Calls f(element of the stage, column of the row) for the team's elements of a pack that exist.
  template <class F>
  __device__ __forceinline__ void for_elements(int D, const Slice& slice, int p, F&& f) const {
    const int u = opaque(u_) + p * kPackStep, channels = mul_ - u < kPackStep ? mul_ - u : kPackStep;
#pragma unroll 1
    for (int k = 0; k < D; ++k)
#pragma unroll 1
      for (int c = t_; c < channels; c += kTeam)
        f(c * D + k, slice.offset + static_cast<unsigned>(slice.mul_ir ? (u + c) * D + k : k * mul_ + u + c));
  }

  // A pack; zero beyond the last channel. Of several components, all ways lead through the stage, so that registers are
  // filled in one place: where two ways met, the compiler kept both sets.
  template <int D>
  __device__ __forceinline__ void load(Tile<D>& to, const Slice& slice, int p) {
    if constexpr (D == 1) {
      const P pack = load_pack(slice.first, slice.flags & (slice.vectors | slice.planes), p, true, T{0});
#pragma unroll
      for (int c = 0; c < kChannels; ++c) to[c] = pack.template get<T>(c);
      return;
    }
    const int t = opaque(t_);
    Storage* const own = staged(t * (kChannels * D));
    __syncwarp();
    if (slice.flags & whole_ & slice.vectors) {
      P pack[D];
#pragma unroll
      for (int k = 0; k < D; ++k) pack[k].load(slice.first + (p * D + k) * kPackStep);
#pragma unroll
      for (int k = 0; k < D; ++k) pack[k].store_shared(staged(t * kChannels) + k * kPackStep);
    } else if (slice.flags & whole_ & slice.planes) {
      const Storage* from = row_.at(slice.what, slice.offset + static_cast<unsigned>(first_ + p * kPackStep));
#pragma unroll 1
      for (int k = 0; k < D; ++k, from += mul_) {
        P pack;
        pack.load(from);
#pragma unroll
        for (int c = 0; c < kChannels; ++c) own[c * D + k] = pack.element(c);
      }
    } else {
      for (int q = t; q < kPackStep * D; q += kTeam)
        if (q >= (mul_ - opaque(u_) - p * kPackStep) * D) *staged(q) = static_cast<Storage>(T{0});
      for_elements(D, slice, p, [&](int at, int column) EQK_LAMBDA { *staged(at) = *row_.at(slice.what, column); });
    }
    __syncwarp();
#pragma unroll
    for (int k = 0; k < D; ++k) {
      P pack;
      pack.load_shared(own + k * kChannels);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        const int n = k * kChannels + c;
        to[n % D * kChannels + n / D] = pack.template get<T>(c);
      }
    }
  }

  // Of several components, all ways lead through the stage: it takes registers in the order of mul_ir, and those of a
  // plane would have to lie elsewhere.
  template <int D>
  __device__ __forceinline__ void store(const Tile<D>& from, const Slice& slice, int p, bool add) {
    if constexpr (D == 1) {
      if (row_.valid) store_pack(slice.first, slice.flags & (slice.vectors | slice.planes), p, from, add);
      return;
    }
    const int t = opaque(t_);
    Storage* const own = staged(t * (kChannels * D));
    __syncwarp();
#pragma unroll
    for (int k = 0; k < D; ++k) {
      P pack;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        const int n = k * kChannels + c;
        pack.set(c, from[n % D * kChannels + n / D]);
      }
      pack.store_shared(own + k * kChannels);
    }
    __syncwarp();
    if (!row_.valid) return;
    if (slice.flags & whole_ & slice.vectors) {
#pragma unroll
      for (int k = 0; k < D; ++k) {
        P pack;
        pack.load_shared(staged(t * kChannels) + k * kPackStep);
        pack.store(slice.first + (p * D + k) * kPackStep);
      }
    } else if (slice.flags & whole_ & slice.planes) {
      Storage* to = row_.at(slice.what, slice.offset + static_cast<unsigned>(first_ + p * kPackStep));
#pragma unroll 1
      for (int k = 0; k < D; ++k, to += mul_) {
        P pack;
#pragma unroll
        for (int c = 0; c < kChannels; ++c) pack.set(c, static_cast<T>(own[c * D + k]));
        pack.store(to);
      }
    } else {
      for_elements(D, slice, p, [&](int at, int column) EQK_LAMBDA {
        Storage* const to = row_.at(slice.what, column);
        *to = static_cast<Storage>(static_cast<T>(*staged(at)) + (add ? static_cast<T>(*to) : T{0}));
      });
    }
  }
};

template <class T, class Storage, bool kDual, bool kBackward, int kDegree, class Program>
class ChannelBlock {
  static constexpr int kParts = kDual ? 2 : 1, kTeam = lanes_of_team(kDual);

 public:
  __device__ __forceinline__ ChannelBlock(const ChannelArguments& a, unsigned char* shared)
      : a_(a), program_(a, shared), row_(a, program_.layout(), shared) {}

  __device__ __forceinline__ void run() {
    program_.load();
    const int most = program_.layout().rows;
    if constexpr (Program::kOnce) {
      rows_from(static_cast<std::int64_t>(blockIdx.x) * most);
    } else {
      const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * most;
      for (std::int64_t n = static_cast<std::int64_t>(blockIdx.x) * most; n < a_.rows; n += step) {
        rows_from(n);
        __syncthreads();
      }
    }
  }

 private:
  const ChannelArguments& a_;
  const Program program_;
  ChannelRow<T, Storage, kTeam> row_;

  // Those that a block holds at a time.
  __device__ __forceinline__ void rows_from(std::int64_t first) {
    const int most = program_.layout().rows;
    const int rows = static_cast<int>(a_.rows - first < most ? a_.rows - first : most);
    stage_shared_operand(first, rows);
    row_.place(threadIdx.x, rows, program_.layout());
    row_.set_pointers(first, rows, program_.layout().threads);
    int coupled = -1;
    program_.for_segments([&](const auto& segment, auto degree, auto mul) EQK_LAMBDA {
      __syncthreads();
      if (degree != coupled) {
        coupled = degree;
        couple(segment.m_begin, segment.m_end, rows);
        __syncthreads();
      }
      with_degree<0, kDegree>(degree, [&](auto l) EQK_LAMBDA {
        using Slice = ChannelSlice<T, Storage, kDual, kBackward, kDegree, Program, std::decay_t<decltype(segment)>,
                                   decltype(l)::value, decltype(mul)::value>;
#pragma unroll 1
        for (int u = 0; u < segment.mul;) {
          auto row = row_;
          if constexpr (Program::kOnce) row.place(opaque(threadIdx.x), rows, program_.layout());
          Slice slice(program_, row, segment, u);
          slice.run();
          u += slice.channels();
        }
      });
    });
    if (kBackward) clear(kChannel, a_.view.channel_ranges);
    if (kDual || !kBackward) clear(kG, a_.view.out_ranges);
    if constexpr (kBackward) {
      __syncthreads();
      store_shared_gradient(first);
    }
  }

  __device__ __forceinline__ void stage_shared_operand(std::int64_t first, int rows) {
    const ChannelLayout& at = program_.layout();
    const int columns = at.shared_dim, padded = at.padded_rows, apart = at.s_stride;
    const Operand& in = a_.in[kShared];
    const auto read = [&](const void* base, std::int64_t stride, int r, T* to) EQK_LAMBDA {
      const bool present = base && r < rows;
      const Storage* const from = static_cast<const Storage*>(base) + (first + r) * stride;
#pragma unroll 1
      for (int j = row_.lane; j < columns; j += kTeam) to[j * apart + r] = present ? static_cast<T>(from[j]) : T{0};
    };
#pragma unroll 1
    for (int r = static_cast<int>(threadIdx.x) / kTeam; r < padded; r += at.threads / kTeam) {
      read(in.value, in.stride, r, row_.s);
      if constexpr (kDual) read(in.tangent, in.tangent_stride, r, row_.s + columns * apart);
    }
    if constexpr (kBackward) {
#pragma unroll 1
      for (int n = threadIdx.x; n < at.sums_size / 4; n += at.threads) row_.all_sums[n] = {};
    }
  }

  // Numbers [m_begin, m_end) of M. A thread forms one for all rows, so that its coefficients are read once a block.
  __device__ __forceinline__ void couple(int m_begin, int m_end, int rows) {
    constexpr int kVector = 16 / sizeof(T), kVectors = kRowsAtOnce / kVector;
    const ChannelLayout& at = program_.layout();
    const int columns = at.shared_dim, padded = at.padded_rows, apart = at.s_stride;
    for (int n = m_begin + static_cast<int>(threadIdx.x); n < m_end; n += at.threads) {
      const int range = a_.view.m_range[n], count = range % 256;
      const auto* const terms = static_cast<const DeviceTerm<T>*>(a_.view.m_term) + range / 256;
#pragma unroll 1
      for (int r0 = 0; r0 < rows; r0 += kRowsAtOnce) {
        T sum[kParts][kRowsAtOnce] = {};
#pragma unroll 1
        for (int e = 0; e < count; ++e) {
          const DeviceTerm<T> term = terms[e * kTermStep];
          const T* const s = row_.s + term.column * apart + r0;
#pragma unroll
          for (int part = 0; part < kParts; ++part)
#pragma unroll
            for (int v = 0; v < kVectors; ++v) {
              Pack<T, kVector> pack;
              pack.load_shared(s + part * columns * apart + v * kVector);
#pragma unroll
              for (int r = 0; r < kVector; ++r) sum[part][v * kVector + r] += term.c * pack.template get<T>(r);
            }
        }
        T* const m = row_.m + r0 * at.m_stride + n - m_begin;
#pragma unroll
        for (int part = 0; part < kParts; ++part)
#pragma unroll
          for (int r = 0; r < kRowsAtOnce; ++r) m[(part * padded + r) * at.m_stride] = sum[part][r];
      }
    }
  }

  __device__ __forceinline__ void store_shared_gradient(std::int64_t first) const {
    const Result& to = a_.out[kShared];
    if (!to.data || !row_.valid) return;
    Storage* const p = static_cast<Storage*>(to.data) + (first + row_.block_row) * to.stride;
    const T* const first_sum = row_.sums() - row_.lane;
    for (int j = row_.lane; j < program_.layout().shared_dim; j += kTeam) {
      T sum = 0;
      if (kDual || program_.layout().lane_sums) {
        const T* const of_lane = first_sum + j * kSumStride;
#pragma unroll
        for (int t = 0; t < kTeam; ++t) sum += of_lane[t];
      } else {
        sum = first_sum[j];
      }
      p[j] = static_cast<Storage>(a_.add ? sum + static_cast<T>(p[j]) : sum);
    }
  }

  // Columns that no path reads or writes.
  __device__ __forceinline__ void clear(int slot, const DeviceRanges& ranges) const {
    if (!a_.out[slot].data || a_.add || !row_.valid) return;
    program_.for_ranges(ranges, [&](int first, int count) EQK_LAMBDA {
      for (int q = row_.lane; q < count; q += kTeam) *row_.at(kResults + slot, first + q) = static_cast<Storage>(T{0});
    });
  }
};

template <class T, class Storage, bool kDual, bool kBackward, int kDegree, class Program>
__device__ __forceinline__ void channels(const ChannelArguments& a) {
  extern __shared__ __align__(16) unsigned char shared[];
  ChannelBlock<T, Storage, kDual, kBackward, kDegree, Program>(a, shared).run();
}

}  // namespace eqk::tensor_product
