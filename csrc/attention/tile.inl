// The attention kernel over 16-lane vectors: one source for every instruction set that has them.
//
// A kernel file opens its target region, defines `struct V` (types and operations on 16 floats, see avx512vnni.cpp) and
// includes this file inside its anonymous namespace. No includes here.
//
// Tiles. Scores: MR rows x NG groups of 16 positions, one accumulator each; a key vector is widened once and multiplied
// with a broadcast of q[d] of every row, so nothing is summed across lanes. Values: MR rows x NV vectors of dims, a
// value vector is widened once for all rows. MR is the largest power of two that the rows left allow; one row (decode)
// is bound by memory, so the loops prefetch: values while scores are computed, the next block's keys while values are
// summed, each about one block (12 KiB for 96 dims) ahead. The order of every sum is that of attention.h.

// ---- how keys and values are read -------------------------------------------------------------------------------

struct HalfKV {
  using T = uint16_t;
  static constexpr int kSize = 2;
  static V::F load(const uint16_t* p) { return V::load_f16(p); }
};

struct FloatKV {
  using T = float;
  static constexpr int kSize = 4;
  static V::F load(const float* p) { return V::load(p); }
};

struct QuantKV {  // int8 as stored
  static constexpr int kSize = 1;
  static V::I load(const void* values, size_t at) { return V::widen_i8(static_cast<const int8_t*>(values) + at); }
};

struct WideKV {  // int8 values widened to int16
  static constexpr int kSize = 2;
  static V::I load(const void* values, size_t at) { return V::load_i16(static_cast<const int16_t*>(values) + at); }
};

// One block of one head.
struct BlockView {
  const uint8_t* head;
  const void* k;  // widened or as stored
  const void* v;
  const uint8_t* next;  // the head in the next block of the sequence, for prefetching
};

// ---- scores -----------------------------------------------------------------------------------------------------

template <class E, int MR, int NG>
static inline void dot_rows(const float* const* q, const typename E::T* k, int D, float* scores,
                            const uint8_t* ahead) noexcept {
  constexpr int kLines = MR <= 2 ? E::kSize * kBlock / 64 * NG / 4 : 0;  // V bytes per step of d, in cache lines
  V::F acc[MR][NG];
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
    for (int g = 0; g < NG; ++g) acc[r][g] = V::zero();
  for (int d = 0; d < D; ++d) {
    V::F key[NG];
#pragma GCC unroll 8
    for (int g = 0; g < NG; ++g) key[g] = E::load(k + static_cast<size_t>(d) * kBlock + g * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kLines; ++i) V::prefetch(ahead + (static_cast<size_t>(d) * kLines + i) * 64);
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
      const V::F x = V::set1(q[r][d]);
#pragma GCC unroll 8
      for (int g = 0; g < NG; ++g) acc[r][g] = V::fma(x, key[g], acc[r][g]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
    for (int g = 0; g < NG; ++g) V::store(scores + r * kBlock + g * kLanes, acc[r][g]);
}

template <int MR, int NG>
static inline void dot_rows_q8(const AttendArgs& a, const Scratch& s, int row, const uint8_t* k,
                               const uint16_t* k_scales, float* scores, const uint8_t* ahead) noexcept {
  constexpr int kLines = MR <= 2 ? NG : 0;  // V bytes per step of 4 dims, in cache lines
  const int Dq = a.layout->v_stride, nq = Dq / kQuant;
  V::F acc[MR][NG];
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
    for (int g = 0; g < NG; ++g) acc[r][g] = V::zero();
  for (int b = 0; b < nq; ++b) {
    V::I dot[MR][NG];
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
      const V::I start = V::dot_start(s.q_sum[(row + r) * nq + b]);
#pragma GCC unroll 8
      for (int g = 0; g < NG; ++g) dot[r][g] = start;
    }
    for (int i = b * (kQuant / 4); i < (b + 1) * (kQuant / 4); ++i) {
      V::I key[NG];
#pragma GCC unroll 8
      for (int g = 0; g < NG; ++g) key[g] = V::load_bytes(k + (static_cast<size_t>(i) * kBlock + g * kLanes) * 4);
#pragma GCC unroll 8
      for (int x = 0; x < kLines; ++x) V::prefetch(ahead + (static_cast<size_t>(i) * kLines + x) * 64);
#pragma GCC unroll 8
      for (int r = 0; r < MR; ++r) {
        const V::I four = V::set4(s.q + static_cast<size_t>(row + r) * Dq + i * 4);
#pragma GCC unroll 8
        for (int g = 0; g < NG; ++g) dot[r][g] = V::dot4(dot[r][g], key[g], four);
      }
    }
#pragma GCC unroll 8
    for (int g = 0; g < NG; ++g) {
      const V::F scale = V::load_bf16(k_scales + b * kBlock + g * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < MR; ++r) {
        const V::F both = V::mul(V::set1(s.q_scale[(row + r) * nq + b]), scale);
        acc[r][g] = V::fma(both, V::to_float(dot[r][g]), acc[r][g]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
    for (int g = 0; g < NG; ++g) V::store(scores + r * kBlock + g * kLanes, acc[r][g]);
}

// Scores of rows row .. row + MR - 1 for the positions `from` to `to` of the block, in whole groups.
template <class E, int MR>
static inline void score_rows(const AttendArgs& a, const Scratch& s, const BlockView& block, int row, int from,
                              int to) noexcept {
  constexpr bool kQuantised = E::kSize == 1;
  constexpr int NG = kQuantised ? V::quant_groups(MR) : V::dot_groups(MR);
  for (int g = 0; g < kBlock / kLanes; g += NG) {
    if (to <= g * kLanes || from >= (g + NG) * kLanes) continue;
    float* scores = s.scores + g * kLanes;
    const uint8_t* ahead = block.head + a.layout->v + static_cast<size_t>(g) * kLanes * a.layout->v_stride * E::kSize;
    if constexpr (kQuantised) {
      const auto* k_scales = reinterpret_cast<const uint16_t*>(block.head + a.layout->k_scales);
      dot_rows_q8<MR, NG>(a, s, row, block.head + g * kLanes * 4, k_scales + g * kLanes, scores, ahead);
    } else {
      const auto* k = static_cast<const typename E::T*>(block.k) + g * kLanes;
      dot_rows<E, MR, NG>(a.q + row, k, a.layout->head_dim, scores, ahead);
    }
  }
}

// ---- softmax ----------------------------------------------------------------------------------------------------

// Turns the scores of one row into p and updates its m and l; returns the factor of the sums so far.
static inline float softmax_row(float* scores, float* m, float* l, int from, int to) noexcept {
  V::F s0 = V::load(scores), s1 = V::load(scores + 16), s2 = V::load(scores + 32), s3 = V::load(scores + 48);
  if (from > 0 || to < kBlock) {
    s0 = V::keep(s0, from, to);
    s1 = V::keep(s1, from - 16, to - 16);
    s2 = V::keep(s2, from - 32, to - 32);
    s3 = V::keep(s3, from - 48, to - 48);
  }
  const float most = V::max_of(V::max(V::max(s0, s1), V::max(s2, s3)));
  float alpha = 1.0f;
  if (most > *m) {
    alpha = V::first(V::exp2(V::set1(*m - most)));
    *m = most;
  }
  const V::F top = V::set1(*m);
  s0 = V::exp2(V::sub(s0, top));
  s1 = V::exp2(V::sub(s1, top));
  s2 = V::exp2(V::sub(s2, top));
  s3 = V::exp2(V::sub(s3, top));
  V::store(scores, s0);
  V::store(scores + 16, s1);
  V::store(scores + 32, s2);
  V::store(scores + 48, s3);
  const V::F tile_sum = V::add(V::add(s0, s1), V::add(s2, s3));
  V::store(l, V::fma(V::load(l), V::set1(alpha), tile_sum));
  return alpha;
}

// ---- values -----------------------------------------------------------------------------------------------------

template <class E, int MR, int NV>
static inline void sum_values(const AttendArgs& a, const Scratch& s, const BlockView& block, int row, int vec, int from,
                              int to) noexcept {
  constexpr int kRowBytes = NV * kLanes * E::kSize;
  const int stride = o_stride(a.layout->head_dim), v_stride = a.layout->v_stride;
  float* o = a.out.o + static_cast<size_t>(row) * stride + vec * kLanes;
  const uint8_t* ahead = block.next + static_cast<size_t>(vec) * kLanes * kBlock * E::kSize;
  V::F acc[MR][NV];
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r) {
    const V::F alpha = V::set1(s.alpha[row + r]);
#pragma GCC unroll 8
    for (int i = 0; i < NV; ++i) acc[r][i] = V::mul(V::load(o + r * stride + i * kLanes), alpha);
  }
  for (int j = from; j < to; ++j) {
    V::F p[MR];
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) p[r] = V::set1(s.scores[r * kBlock + j]);
    if constexpr (MR <= 2)
#pragma GCC unroll 8
      for (int x = 0; x < kRowBytes; x += 64) V::prefetch(ahead + static_cast<size_t>(j) * kRowBytes + x);
    const size_t at = static_cast<size_t>(j) * v_stride + vec * kLanes;
#pragma GCC unroll 8
    for (int i = 0; i < NV; ++i) {
      const V::F value = E::load(static_cast<const typename E::T*>(block.v) + at + i * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < MR; ++r) acc[r][i] = V::fma(p[r], value, acc[r][i]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
    for (int i = 0; i < NV; ++i) V::store(o + r * stride + i * kLanes, acc[r][i]);
}

// o of rows row .. row + MR - 1: o * alpha + p v, in parts of as many vectors as the registers hold.
template <class E, int MR>
static inline void value_rows(const AttendArgs& a, const Scratch& s, const BlockView& block, int row, int from,
                              int to) noexcept {
  constexpr int kMost = V::kAccumulators / MR < 8 ? V::kAccumulators / MR : 8;
  const int n = a.layout->v_stride / kLanes;
  for (int vec = 0; vec < n;) {
    const int left = n - vec, parts = (left + kMost - 1) / kMost, nv = (left + parts - 1) / parts;
    switch (nv) {
      case 1:
        sum_values<E, MR, 1>(a, s, block, row, vec, from, to);
        break;
      case 2:
        if constexpr (kMost >= 2) sum_values<E, MR, 2>(a, s, block, row, vec, from, to);
        break;
      case 3:
        if constexpr (kMost >= 3) sum_values<E, MR, 3>(a, s, block, row, vec, from, to);
        break;
      case 4:
        if constexpr (kMost >= 4) sum_values<E, MR, 4>(a, s, block, row, vec, from, to);
        break;
      case 5:
        if constexpr (kMost >= 5) sum_values<E, MR, 5>(a, s, block, row, vec, from, to);
        break;
      case 6:
        if constexpr (kMost >= 6) sum_values<E, MR, 6>(a, s, block, row, vec, from, to);
        break;
      case 7:
        if constexpr (kMost >= 7) sum_values<E, MR, 7>(a, s, block, row, vec, from, to);
        break;
      default:
        if constexpr (kMost >= 8) sum_values<E, MR, 8>(a, s, block, row, vec, from, to);
        break;
    }
    vec += nv;
  }
}

// ---- values of q8_0 ---------------------------------------------------------------------------------------------

// The int16 weights p * vscale of the row whose p lie in scores row r.
static inline void round_weights(const AttendArgs& a, const Scratch& s, const BlockView& block, int r) noexcept {
  const int nq = a.layout->v_stride / kQuant;
  const float* p = s.scores + r * kBlock;
  const auto* scales = reinterpret_cast<const uint16_t*>(block.head + a.layout->v_scales);
  const V::F p0 = V::load(p), p1 = V::load(p + 16), p2 = V::load(p + 32), p3 = V::load(p + 48);
  for (int b = 0; b < nq; ++b, scales += kBlock) {
    const V::F w0 = V::mul(p0, V::load_bf16(scales)), w1 = V::mul(p1, V::load_bf16(scales + 16));
    const V::F w2 = V::mul(p2, V::load_bf16(scales + 32)), w3 = V::mul(p3, V::load_bf16(scales + 48));
    const float most = V::max_of(V::max(V::max(w0, w1), V::max(w2, w3)));
    const bool counts = most >= kSmallestWeight;
    const V::F inverse = V::set1(counts ? kMostWeight / most : 0.0f);
    s.w_scale[r * nq + b] = counts ? most / kMostWeight : 0.0f;
    int16_t* w = s.w + (r * nq + b) * kBlock;
    V::store_i16(w, V::mul(w0, inverse));
    V::store_i16(w + 16, V::mul(w1, inverse));
    V::store_i16(w + 32, V::mul(w2, inverse));
    V::store_i16(w + 48, V::mul(w3, inverse));
  }
}

// Rows row .. row + MR - 1, weights from row r of the scratch on, NB blocks of 32 dims from block b on.
template <class E, int MR, int NB>
static inline void sum_values_q8(const AttendArgs& a, const Scratch& s, const BlockView& block, int row, int r0, int b,
                                 int from, int to) noexcept {
  const int stride = o_stride(a.layout->head_dim), Dq = a.layout->v_stride, nq = Dq / kQuant;
  const uint8_t* ahead = block.next + static_cast<size_t>(b) * kQuant * kBlock;
  V::I acc[MR][2 * NB];
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
    for (int i = 0; i < 2 * NB; ++i) acc[r][i] = V::zero_i();
  for (int pair = from / 2; pair < (to + 1) / 2; ++pair) {
    if constexpr (MR <= 2)
#pragma GCC unroll 8
      for (int i = 0; i < NB; ++i) V::prefetch(ahead + (static_cast<size_t>(pair) * NB + i) * 64);
#pragma GCC unroll 8
    for (int i = 0; i < 2 * NB; ++i) {
      const V::I value = E::load(block.v, (static_cast<size_t>(pair) * Dq + b * kQuant + i * kLanes) * 2);
#pragma GCC unroll 8
      for (int r = 0; r < MR; ++r)
        acc[r][i] = V::dot2(acc[r][i], value, V::set2(s.w + ((r0 + r) * nq + b + i / 2) * kBlock + pair * 2));
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r) {
    const V::F alpha = V::set1(s.alpha[row + r]);
    float* o = a.out.o + static_cast<size_t>(row + r) * stride + b * kQuant;
#pragma GCC unroll 8
    for (int i = 0; i < 2 * NB; ++i) {
      const V::F scale = V::set1(s.w_scale[(r0 + r) * nq + b + i / 2]);
      V::store(o + i * kLanes, V::fma(V::to_float(acc[r][i]), scale, V::mul(V::load(o + i * kLanes), alpha)));
    }
  }
}

template <class E, int MR>
static inline void value_rows_q8(const AttendArgs& a, const Scratch& s, const BlockView& block, int row, int from,
                                 int to) noexcept {
  constexpr int kRows = MR < V::kQuantRows ? MR : V::kQuantRows;
  constexpr int kMost = V::quant_blocks(kRows);
  const int n = a.layout->v_stride / kQuant;
  for (int r = 0; r < MR; ++r) round_weights(a, s, block, r);
  for (int r = 0; r < MR; r += kRows) {
    for (int b = 0; b < n;) {
      const int left = n - b, parts = (left + kMost - 1) / kMost, nb = (left + parts - 1) / parts;
      switch (nb) {
        case 1:
          sum_values_q8<E, kRows, 1>(a, s, block, row + r, r, b, from, to);
          break;
        case 2:
          if constexpr (kMost >= 2) sum_values_q8<E, kRows, 2>(a, s, block, row + r, r, b, from, to);
          break;
        case 3:
          if constexpr (kMost >= 3) sum_values_q8<E, kRows, 3>(a, s, block, row + r, r, b, from, to);
          break;
        default:
          if constexpr (kMost >= 4) sum_values_q8<E, kRows, 4>(a, s, block, row + r, r, b, from, to);
          break;
      }
      b += nb;
    }
  }
}

// ---- rows over a block, blocks of a segment ---------------------------------------------------------------------

template <class KE, class VE, int MR>
static inline void attend_rows(const AttendArgs& a, const Scratch& s, const BlockView& block, int32_t base,
                               int row) noexcept {
  int from[MR], to[MR], least = kBlock, most = 0;
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r) {
    from[r] = a.lo[row + r] > base ? a.lo[row + r] - base : 0;
    to[r] = a.hi[row + r] < base + kBlock ? a.hi[row + r] - base : kBlock;
    if (from[r] >= to[r]) continue;
    least = from[r] < least ? from[r] : least;
    most = to[r] > most ? to[r] : most;
  }
  if (least >= most) return;
  score_rows<KE, MR>(a, s, block, row, least, most);
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r) {
    float* scores = s.scores + r * kBlock;
    if (from[r] < to[r]) {
      s.alpha[row + r] = softmax_row(scores, a.out.m + row + r, s.l + (row + r) * kLanes, from[r], to[r]);
    } else {
      for (int j = 0; j < kBlock; ++j) scores[j] = 0.0f;
      s.alpha[row + r] = 1.0f;
    }
  }
  if constexpr (KE::kSize == 1) {
    value_rows_q8<VE, MR>(a, s, block, row, least, most);
  } else {
    value_rows<VE, MR>(a, s, block, row, least, most);
  }
}

template <class KE, class VE>
static inline void attend_segment(const AttendArgs& a, const Scratch& s) noexcept {
  for (int32_t base = a.first; base < a.last; base += kBlock) {
    const int32_t* id = a.block_table + base / kBlock;
    BlockView block;
    block.head = a.head_base + a.block_stride * static_cast<size_t>(id[0]);
    block.next = base + kBlock < a.last ? a.head_base + a.block_stride * static_cast<size_t>(id[1]) : block.head;
    block.k = block.head;
    block.v = block.head + a.layout->v;
    const size_t n_values = static_cast<size_t>(kBlock) * a.layout->v_stride;
    if (a.layout->type == KVType::f16 && KE::kSize == 4) {
      const size_t n_keys = static_cast<size_t>(kBlock) * a.layout->head_dim;
      for (size_t i = 0; i < n_keys; i += kLanes)
        V::store(s.k_tile + i, V::load_f16(static_cast<const uint16_t*>(block.k) + i));
      for (size_t i = 0; i < n_values; i += kLanes)
        V::store(s.v_tile + i, V::load_f16(static_cast<const uint16_t*>(block.v) + i));
      block.k = s.k_tile;
      block.v = s.v_tile;
    } else if (a.layout->type == KVType::q8_0 && VE::kSize == 2) {
      auto* wide = reinterpret_cast<int16_t*>(s.v_tile);
      for (size_t i = 0; i < n_values; i += 2 * kLanes)
        V::store_wide(wide + i, V::widen_i8(static_cast<const int8_t*>(block.v) + i));
      block.v = wide;
    }
    if (a.layout->type == KVType::q8_0 && a.n_rows <= 2) {
      const size_t n_bytes = static_cast<size_t>(a.layout->n_quant()) * kBlock * sizeof(uint16_t);
      for (size_t i = 0; i < n_bytes; i += 64) {
        V::prefetch(block.head + a.layout->v_scales + i);
        V::prefetch(block.next + a.layout->k_scales + i);
      }
    }
    int row = 0;
    if constexpr (V::kMostRows >= 8)
      for (; row + 8 <= a.n_rows; row += 8) attend_rows<KE, VE, 8>(a, s, block, base, row);
    for (; row + 4 <= a.n_rows; row += 4) attend_rows<KE, VE, 4>(a, s, block, base, row);
    if (row + 2 <= a.n_rows) {
      attend_rows<KE, VE, 2>(a, s, block, base, row);
      row += 2;
    }
    if (row < a.n_rows) attend_rows<KE, VE, 1>(a, s, block, base, row);
  }
}

static void attend(const AttendArgs& a) noexcept {
  const Scratch s(a.scratch, a.layout->head_dim);
  const int stride = o_stride(a.layout->head_dim);
  for (int r = 0; r < a.n_rows; ++r) a.out.m[r] = kNoScore;
  for (int i = 0; i < a.n_rows * kLanes; i += kLanes) V::store(s.l + i, V::zero());
  for (int i = 0; i < a.n_rows * stride; i += kLanes) V::store(a.out.o + i, V::zero());
  switch (a.layout->type) {
    case KVType::f32:
      attend_segment<FloatKV, FloatKV>(a, s);
      break;
    case KVType::f16:
      if (a.n_rows >= V::kWidenRows) {
        attend_segment<FloatKV, FloatKV>(a, s);
      } else {
        attend_segment<HalfKV, HalfKV>(a, s);
      }
      break;
    case KVType::q8_0:
      if (!a.same_rows) quantize_queries(a, s);
      if (a.n_rows >= 8) {
        attend_segment<QuantKV, WideKV>(a, s);
      } else {
        attend_segment<QuantKV, QuantKV>(a, s);
      }
      break;
  }
  for (int r = 0; r < a.n_rows; ++r) a.out.l[r] = V::sum_of(V::load(s.l + r * kLanes));
}

static void merge(const Partial& total, const Partial& next, int n_rows, int stride) noexcept {
  for (int r = 0; r < n_rows; ++r) {
    const float m = next.m[r] > total.m[r] ? next.m[r] : total.m[r];
    const V::F a = V::exp2(V::set1(total.m[r] - m)), b = V::exp2(V::set1(next.m[r] - m));
    total.m[r] = m;
    total.l[r] = V::first(V::fma(V::set1(next.l[r]), b, V::mul(V::set1(total.l[r]), a)));
    float* o = total.o + static_cast<size_t>(r) * stride;
    const float* o_next = next.o + static_cast<size_t>(r) * stride;
    for (int d = 0; d < stride; d += kLanes) V::store(o + d, V::fma(V::load(o_next + d), b, V::mul(V::load(o + d), a)));
  }
}

static void rope(float* x, const float* cos_sin, int head_dim, int rot, bool interleaved, float scale) noexcept {
  rope_head(x, cos_sin, head_dim, rot, interleaved, scale);
}

static void write(const HeadLayout& layout, uint8_t* head, int slot, const float* k, const float* v) noexcept {
  if (layout.type == KVType::q8_0) return write_q8(layout, head, slot, k, v);
  if (layout.type == KVType::f32) return write_f32(layout, head, slot, k, v);
  const int D = layout.head_dim;
  uint16_t* k_out = reinterpret_cast<uint16_t*>(head) + slot;
  uint16_t* v_out = reinterpret_cast<uint16_t*>(head + layout.v) + static_cast<size_t>(slot) * layout.v_stride;
  int d = 0;
  for (; d + kLanes <= D; d += kLanes) {
    uint16_t half[kLanes];
    V::store_f16(half, V::load(k + d));
    for (int i = 0; i < kLanes; ++i) k_out[(d + i) * kBlock] = half[i];
    V::store_f16(v_out + d, V::load(v + d));
  }
  for (; d < D; ++d) {
    k_out[d * kBlock] = fp32_to_fp16(saturate_to_half(k[d]));
    v_out[d] = fp32_to_fp16(saturate_to_half(v[d]));
  }
}
