// Scores of some rows of queries for one block of keys; see tile.inl. No includes.

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

// Bytes that are fetched while others are used, some lines at a time: one stream or, if V::kTwoStreams and not near,
// two of the same length.
struct Ahead {
  const uint8_t* at = nullptr;
  const uint8_t* end = nullptr;
  bool near = false;  // into the first-level cache, not the second
  const uint8_t* second = nullptr;

  // N lines for a tile of few rows; one line of each stream, and never near, for one of many, which has other things to
  // wait for.
  template <int MR, int N>
  PHLITE_INLINE void fetch() {
    if (at >= end) return;
    if (MR <= 4 && near) {
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) V::prefetch_near(at + i * 64);
      at += N * 64;
      return;
    }
    constexpr int kLines = MR > 4 ? 1 : V::kTwoStreams ? (N + 1) / 2 : N;
#pragma GCC unroll 8
    for (int i = 0; i < kLines; ++i) {
      V::prefetch(at + i * 64);
      if constexpr (V::kTwoStreams) V::prefetch(second + i * 64);
    }
    at += kLines * 64;
    if constexpr (V::kTwoStreams) second += kLines * 64;
  }
  PHLITE_INLINE void fetch_rest() {
    while (at < end) fetch<1, 1>();
  }
};

// One block of one head.
struct BlockView {
  const uint8_t* head;
  const void* k;  // widened or as stored
  const void* v;
  Ahead with_scores, with_values;  // fetched while scores are computed, while values are summed
};

template <class E, int MR, int NG>
static PHLITE_LOOP void dot_rows(const float* const* q, const typename E::T* k, int D, float* scores,
                                 Ahead& ahead) noexcept {
  constexpr int kLines = (E::kSize * NG + 3) / 4;  // as many lines as are used of this block
  const size_t group = static_cast<size_t>(D) * kLanes;
  V::F acc[MR][NG];
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
    for (int g = 0; g < NG; ++g) acc[r][g] = V::zero();
  for (int d = 0; d < D; ++d) {
    V::F key[NG];
#pragma GCC unroll 8
    for (int g = 0; g < NG; ++g) key[g] = E::load(k + g * group + static_cast<size_t>(d) * kLanes);
    ahead.fetch<MR, kLines>();
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
static PHLITE_LOOP void dot_rows_q8(const AttendArgs& a, const Scratch& s, int row, const uint8_t* k,
                                    const uint16_t* k_scales, float* scores, Ahead& ahead) noexcept {
  constexpr bool kHeld = MR * NG <= 8;  // sums stay in registers; those of a larger tile in `scores`, beside its dots
  const int Dq = a.layout->v_stride, nq = Dq / kQuant;
  const size_t group = static_cast<size_t>(Dq) * kLanes;
  V::F acc[kHeld ? MR : 1][NG];
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
      for (int g = 0; g < NG; ++g) key[g] = V::load_bytes(k + g * group + static_cast<size_t>(i) * kLanes * 4);
      ahead.fetch<MR, NG>();
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
        const V::F both = V::mul(V::set1(s.q_scale[(row + r) * nq + b]), scale), dots = V::to_float(dot[r][g]);
        float* const stored = scores + r * kBlock + g * kLanes;
        if constexpr (kHeld) {
          acc[r][g] = V::fma(both, dots, b == 0 ? V::zero() : acc[r][g]);
        } else {
          V::store(stored, V::fma(both, dots, b == 0 ? V::zero() : V::load(stored)));
        }
      }
    }
  }
  if constexpr (kHeld) {
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
      for (int g = 0; g < NG; ++g) V::store(scores + r * kBlock + g * kLanes, acc[r][g]);
  }
}

// Scores of NG groups of 16 positions from group g on.
template <class E, int MR, int NG>
static inline void score_groups(const AttendArgs& a, const Scratch& s, BlockView& block, int row, int g) noexcept {
  float* scores = s.scores + row * kBlock + g * kLanes;
  const size_t at = a.layout->key_at(g * kLanes, 0);
  if constexpr (E::kSize == 1) {
    const auto* k_scales = reinterpret_cast<const uint16_t*>(block.head + a.layout->k_scales);
    dot_rows_q8<MR, NG>(a, s, row, block.head + at, k_scales + g * kLanes, scores, block.with_scores);
  } else {
    const auto* k = static_cast<const typename E::T*>(block.k) + at;
    dot_rows<E, MR, NG>(a.q + row, k, a.layout->head_dim, scores, block.with_scores);
  }
}

// Scores of rows row .. row + MR - 1 for the groups g to `end`.
template <class E, int MR>
static inline void score_rows(const AttendArgs& a, const Scratch& s, BlockView& block, int row, int g,
                              int end) noexcept {
  constexpr int kMost = E::kSize == 1 ? V::quant_groups(MR) : V::dot_groups(MR);
  for (; g + kMost <= end; g += kMost) score_groups<E, MR, kMost>(a, s, block, row, g);
  if constexpr (kMost > 2)
    for (; g + 2 <= end; g += 2) score_groups<E, MR, 2>(a, s, block, row, g);
  if constexpr (kMost > 1)
    for (; g < end; ++g) score_groups<E, MR, 1>(a, s, block, row, g);
}
