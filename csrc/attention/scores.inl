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

// One block of one head.
struct BlockView {
  const uint8_t* head;
  const void* k;  // widened or as stored
  const void* v;
  const uint8_t* next;  // the head in the next block of the sequence, for prefetching
};

template <class E, int MR, int NG>
static inline void dot_rows(const float* const* q, const typename E::T* k, int D, float* scores,
                            const uint8_t* ahead) noexcept {
  constexpr int kLines = MR <= 4 ? E::kSize * kBlock / 64 * NG / 4 : 0;  // V bytes per step of d, in cache lines
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
  constexpr int kLines = MR <= 4 ? NG : 0;  // V bytes per step of 4 dims, in cache lines
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
