// The attention kernel over 16-lane vectors: one source for every instruction set that has them.
//
// A kernel file opens its target region, defines `struct V` (types and operations on 16 floats, see avx512vnni.cpp) and
// includes this file inside its anonymous namespace, so it includes only its own parts.
//
// A block is worked on in three phases, each for all rows that see it: scores, softmax, values. So a phase has one half
// of the block in the first-level cache, and the softmax, which waits for results rather than for a pipe, has many rows
// to go on with. Scores: MR rows x NG groups of 16 positions, one accumulator each; a key vector is widened once and
// multiplied with a broadcast of q[d] of every row, so nothing is summed across lanes. Values: MR rows x NV vectors of
// dims, a value vector is widened once for all rows. MR is the most that the registers
// allow, then powers of two for the rows left.
//
// Few rows (decode) are bound by memory, so the loops prefetch one head's share of a block ahead: its keys while scores
// are computed, its values while values are summed, also across segments; a task's first share at once. A task of one
// new token has several heads, whose shares of a block lie together: the hardware's prefetchers lose their way less
// often (f16 1.06, q8_0 1.19 times as fast on Zen 5). Only what some row sees is fetched, so that a short context costs
// little; into the first-level cache on Zen 5 (1.08 and 1.06 more), into the second elsewhere: on Zen 4 one core read
// 30 % slower into the first, with the hardware's prefetchers alone 30 to 40 %. With AVX2, half of the keys and half of
// the values come while scores are computed, two streams at once, which the memory of Zen 3 serves faster (f16 1.04
// to 1.07). With many rows the same loops fetch a line at a time. The order of every sum is that of attention.h.

// The largest of each of n <= 16 vectors of 16 floats.
static inline void largest_of_vectors(const float* vectors, int n, float* most) noexcept {
  for (int i = 0; i < n; ++i) most[i] = V::max_of(V::load(vectors + i * kLanes));
}

#include "attention/scores.inl"
#include "attention/values.inl"

// What rows see of a block: from[r] <= j < to[r]; nothing when from[r] >= to[r].
struct Seen {
  int from[kTileRows], to[kTileRows];
  bool everything = true;  // every row sees the whole block

  Seen(const AttendArgs& a, int32_t base, int row, int end) noexcept {
    for (int r = row; r < end; ++r) {
      from[r] = a.lo[r] > base ? a.lo[r] - base : 0;
      to[r] = a.hi[r] < base + kBlock ? a.hi[r] - base : kBlock;
      everything = everything && from[r] == 0 && to[r] == kBlock;
    }
  }
  struct Range {
    int from, to;
  };
  // What some of the rows row .. row + MR - 1 sees.
  template <int MR>
  Range of(int row) const noexcept {
    if (everything) return {0, kBlock};
    Range all{kBlock, 0};
#pragma GCC unroll 8
    for (int r = row; r < row + MR; ++r) {
      if (from[r] >= to[r]) continue;
      all.from = from[r] < all.from ? from[r] : all.from;
      all.to = to[r] > all.to ? to[r] : all.to;
    }
    return all;
  }
};

// Calls each(row, count) for tiles of kMost, 4, 2 and 1 rows, count being a constant.
template <int N>
struct Count {
  static constexpr int value = N;
};
template <int kMost, class Each>
static inline void in_tiles(int row, int end, Each each) noexcept {
  if constexpr (kMost > 4)
    for (; row + kMost <= end; row += kMost) each(row, Count<kMost>{});
  for (; row + 4 <= end; row += 4) each(row, Count<4>{});
  if (row + 2 <= end) {
    each(row, Count<2>{});
    row += 2;
  }
  if (row < end) each(row, Count<1>{});
}

// Scores of the rows `row` to `end`. With many rows some groups of keys meet all rows before the next groups do, so
// that they stay in the first-level cache.
template <class KE>
static inline void score_run(const AttendArgs& a, const Scratch& s, BlockView& block, const Seen& seen, int row,
                             int end) noexcept {
  constexpr bool kQuantised = KE::kSize == 1;
  constexpr int MR = kQuantised ? V::kMostQuantRows : V::kMostRows;
  constexpr int kMost = kQuantised ? V::quant_groups(MR) : V::dot_groups(MR);
  const int whole = row + (end - row) / MR * MR;
  for (int g = 0; row < whole && g < kBlock / kLanes; g += kMost) {
    for (int r = row; r < whole; r += MR) {
      const Seen::Range range = seen.of<MR>(r);
      const int first = range.from / kLanes, last = (range.to + kLanes - 1) / kLanes;
      if (range.from < range.to)
        score_rows<KE, MR>(a, s, block, r, first > g ? first : g, last < g + kMost ? last : g + kMost);
    }
  }
  in_tiles<MR>(whole, end, [&](int r, auto n) {
    constexpr int kRows = decltype(n)::value;
    const Seen::Range range = seen.of<kRows>(r);
    if (range.from < range.to)
      score_rows<KE, kRows>(a, s, block, r, range.from / kLanes, (range.to + kLanes - 1) / kLanes);
  });
  block.with_scores.fetch_rest();
}

// Turns the scores of the rows into p, updates their m and l and stores the factors of the sums so far. The largest
// scores come first and the factors of 16 rows from one vector, so that rows overlap.
static inline void softmax_run(const AttendArgs& a, const Scratch& s, const Seen& seen, int row, int end) noexcept {
  float largest_of[kLanes * kLanes], old[kLanes] = {}, top[kLanes] = {}, alpha[kLanes];
  for (int n; row < end; row += n) {
    n = end - row < kLanes ? end - row : kLanes;
    for (int r = 0; r < n; ++r) {
      float* scores = s.scores + (row + r) * kBlock;
      const int from = seen.from[row + r], to = seen.to[row + r];
      old[r] = a.out.m[row + r];
      V::F s0 = V::load(scores), s1 = V::load(scores + 16), s2 = V::load(scores + 32), s3 = V::load(scores + 48);
      if (from > 0 || to < kBlock) {
        V::store(scores, s0 = V::keep(s0, from, to));
        V::store(scores + 16, s1 = V::keep(s1, from - 16, to - 16));
        V::store(scores + 32, s2 = V::keep(s2, from - 32, to - 32));
        V::store(scores + 48, s3 = V::keep(s3, from - 48, to - 48));
      }
      V::store(largest_of + r * kLanes, V::max(V::max(s0, s1), V::max(s2, s3)));
    }
    largest_of_vectors(largest_of, n, top);
    const V::F before = V::load(old), after = V::max(V::load(top), before);
    V::store(top, after);
    V::store(alpha, V::exp2(V::sub(before, after)));
    for (int r = 0; r < n; ++r) {
      float *scores = s.scores + (row + r) * kBlock, *l = s.l + (row + r) * kLanes;
      const V::F most = V::set1(top[r]);
      const V::F p0 = V::exp2(V::sub(V::load(scores), most)), p1 = V::exp2(V::sub(V::load(scores + 16), most));
      const V::F p2 = V::exp2(V::sub(V::load(scores + 32), most)), p3 = V::exp2(V::sub(V::load(scores + 48), most));
      V::store(scores, p0);
      V::store(scores + 16, p1);
      V::store(scores + 32, p2);
      V::store(scores + 48, p3);
      V::store(l, V::fma(V::load(l), V::set1(alpha[r]), V::add(V::add(p0, p1), V::add(p2, p3))));
      a.out.m[row + r] = top[r];
      s.alpha[row + r] = alpha[r];
    }
  }
}

template <class VE, bool kQuantised>
static inline void value_run(const AttendArgs& a, const Scratch& s, BlockView& block, const Seen& seen, int row,
                             int end) noexcept {
  if constexpr (kQuantised) round_weights(a, s, block, row, end);
  in_tiles<V::kMostRows>(row, end, [&](int r, auto n) {
    constexpr int kRows = decltype(n)::value;
    const Seen::Range range = seen.of<kRows>(r);
    if (range.from >= range.to) return;
    if constexpr (kQuantised) {
      value_rows_q8<VE, kRows>(a, s, block, r, range.from, range.to);
    } else {
      value_rows<VE, kRows>(a, s, block, r, range.from, range.to);
    }
  });
  block.with_values.fetch_rest();
}

// The first block from base on that some row sees, or a.last.
static inline int32_t next_seen(const AttendArgs& a, int32_t base) noexcept {
  for (; base < a.last; base += kBlock) {
    const int32_t stripe = stripe_of(a.sparse, base);
    for (int r = 0; r < a.n_rows; ++r)
      if (sees(a.sparse, r, base, stripe)) return base;
  }
  return a.last;
}

// One past the last of the rows from `row` to `end` that see the block without a gap.
static inline int end_of_run(const AttendArgs& a, int row, int end, int32_t base, int32_t stripe) noexcept {
  if (a.sparse.block == 0) return end;
  while (row < end && sees(a.sparse, row, base, stripe)) ++row;
  return row;
}

static inline const uint8_t* head_at(const AttendArgs& a, int32_t base, int head) noexcept {
  return a.head_base + a.block_stride * static_cast<size_t>(a.block_table[base / kBlock]) + a.layout->bytes * head;
}

// What of a head's share of a block some row sees, with its scales.
static inline Ahead keys_of(const AttendArgs& a, int32_t base, int head) noexcept {
  const HeadLayout& layout = *a.layout;
  const int from = a.lo[0] > base ? a.lo[0] - base : 0, to = a.hi[a.n_rows - 1] - base;
  const int first = from / kLanes * kLanes, last = (to + kLanes - 1) / kLanes * kLanes;
  const uint8_t* k = head_at(a, base, head);
  return {k + layout.key_at(first, 0) * layout.value_bytes(),
          last < kBlock ? k + layout.key_at(last, 0) * layout.value_bytes() : k + layout.v, a.fetch_near};
}

static inline Ahead values_of(const AttendArgs& a, int32_t base, int head) noexcept {
  const HeadLayout& layout = *a.layout;
  const int from = a.lo[0] > base ? a.lo[0] - base : 0, to = a.hi[a.n_rows - 1] - base;
  const size_t row_bytes = layout.v_stride * layout.value_bytes();  // q8_0 keeps two positions side by side
  const uint8_t* share = head_at(a, base, head);
  return {share + layout.v + from / 2 * 2 * row_bytes,
          to < kBlock ? share + layout.v + (to + 1) / 2 * 2 * row_bytes : share + layout.bytes, a.fetch_near};
}

// Lets a block's scores and values fetch the keys and values of the next one. In two streams both fetch half of each.
static inline void fetch_beside(BlockView& block, const Ahead& keys, const Ahead& values) noexcept {
  block.with_scores = keys;
  block.with_values = values;
  if constexpr (V::kTwoStreams) {
    if (keys.near) return;
    const int64_t k = keys.end - keys.at, v = values.end - values.at, half = ((k > v ? k : v) / 2 + 63) / 64 * 64;
    block.with_scores = {keys.at, keys.at + half, false, values.at};
    block.with_values = {keys.at + half, keys.at + 2 * half, false, values.at + half};
  }
}

// Keys and values are widened right before they are used, so that they come from the first-level cache.
static inline void widen_keys(const AttendArgs& a, const Scratch& s, BlockView& block) noexcept {
  if (a.layout->type != KVType::f16) return;
  const size_t n = static_cast<size_t>(kBlock) * a.layout->head_dim;
  for (size_t i = 0; i < n; i += kLanes) V::store(s.k_tile + i, V::load_f16(static_cast<const uint16_t*>(block.k) + i));
  block.k = s.k_tile;
}

static inline void widen_values(const AttendArgs& a, const Scratch& s, BlockView& block) noexcept {
  if (block.v == s.v_tile) return;
  const size_t n = static_cast<size_t>(kBlock) * a.layout->v_stride;
  if (a.layout->type == KVType::f16) {
    for (size_t i = 0; i < n; i += kLanes)
      V::store(s.v_tile + i, V::load_f16(static_cast<const uint16_t*>(block.v) + i));
  } else {
    auto* wide = reinterpret_cast<int16_t*>(s.v_tile);
    for (size_t i = 0; i < n; i += 2 * kLanes)
      V::store_wide(wide + i, V::widen_i8(static_cast<const int8_t*>(block.v) + i));
  }
  block.v = s.v_tile;
}

// kWiden: keys and values are expanded into scratch once for all rows.
template <class KE, class VE, bool kWiden>
static inline void attend_segment(const AttendArgs& a, const Scratch& s) noexcept {
  const int rows_per_head = a.n_rows / a.n_kv_heads;
  int32_t next = next_seen(a, a.first);
  for (int32_t base = next; base < a.last; base = next) {
    next = next_seen(a, base + kBlock);
    const int32_t stripe = stripe_of(a.sparse, base);
    for (int head = 0; head < a.n_kv_heads; ++head) {
      BlockView block;
      block.head = head_at(a, base, head);
      block.k = block.head;
      block.v = block.head + a.layout->v;
      if constexpr (kWiden) widen_keys(a, s, block);
      if (base == a.first && head == 0 && !a.same_rows) {
        fetch_beside(block, keys_of(a, base, head), values_of(a, base, head));
        block.with_scores.fetch_rest();
        block.with_values.fetch_rest();
      }
      if (head + 1 < a.n_kv_heads) {
        fetch_beside(block, keys_of(a, base, head + 1), values_of(a, base, head + 1));
      } else if (next < a.last || (a.continues && a.sparse.block == 0)) {
        fetch_beside(block, keys_of(a, next, 0), values_of(a, next, 0));
      }
      const int last_row = (head + 1) * rows_per_head;
      for (int row = head * rows_per_head; row < last_row; ++row) {
        const int end = end_of_run(a, row, last_row, base, stripe);
        if (row == end) continue;
        const Seen seen(a, base, row, end);
        score_run<KE>(a, s, block, seen, row, end);
        softmax_run(a, s, seen, row, end);
        if constexpr (kWiden) widen_values(a, s, block);
        value_run<VE, KE::kSize == 1>(a, s, block, seen, row, end);
        row = end;
      }
    }
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
      attend_segment<FloatKV, FloatKV, false>(a, s);
      break;
    case KVType::f16:
      if (a.n_rows / a.n_kv_heads >= V::widen_rows()) {
        attend_segment<FloatKV, FloatKV, true>(a, s);
      } else {
        attend_segment<HalfKV, HalfKV, false>(a, s);
      }
      break;
    case KVType::q8_0:
      if (!a.same_rows) quantize_queries(a, s);
      if (a.n_rows / a.n_kv_heads >= 8) {
        attend_segment<QuantKV, WideKV, true>(a, s);
      } else {
        attend_segment<QuantKV, QuantKV, false>(a, s);
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

static void rope(const float* x, const float* cos_sin, int head_dim, int rot, bool interleaved, float scale,
                 float* out) noexcept {
  rope_head(x, cos_sin, head_dim, rot, interleaved, scale, out);
}

static void write(const HeadLayout& layout, uint8_t* head, int slot, const float* k, const float* v) noexcept {
  if (layout.type == KVType::q8_0) return write_q8(layout, head, slot, k, v);
  if (layout.type == KVType::f32) return write_f32(layout, head, slot, k, v);
  const int D = layout.head_dim;
  uint16_t* k_out = reinterpret_cast<uint16_t*>(head) + layout.key_at(slot, 0);
  uint16_t* v_out = reinterpret_cast<uint16_t*>(head + layout.v) + static_cast<size_t>(slot) * layout.v_stride;
  int d = 0;
  for (; d + kLanes <= D; d += kLanes) {
    uint16_t half[kLanes];
    V::store_f16(half, V::load(k + d));
    for (int i = 0; i < kLanes; ++i) k_out[(d + i) * kLanes] = half[i];
    V::store_f16(v_out + d, V::load(v + d));
  }
  for (; d < D; ++d) {
    k_out[d * kLanes] = fp32_to_fp16(saturate_to_half(k[d]));
    v_out[d] = fp32_to_fp16(saturate_to_half(v[d]));
  }
}
