// o = o * alpha + p v of some rows for one block of values; see tile.inl. No includes.

// f16 and f32: one chain of multiply-adds over the positions.
template <class E, int MR, int NV>
static inline void sum_values(const AttendArgs& a, const Scratch& s, BlockView& block, int row, int vec, int from,
                              int to) noexcept {
  constexpr int kLines = (NV * kLanes * E::kSize + 63) / 64;
  const int stride = o_stride(a.layout->head_dim), v_stride = a.layout->v_stride;
  float* o = a.out.o + static_cast<size_t>(row) * stride + vec * kLanes;
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
    block.with_values.fetch<MR <= 4 ? kLines : 1>();
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
static inline void value_rows(const AttendArgs& a, const Scratch& s, BlockView& block, int row, int from,
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

// q8_0: exact integer sums of int16 weights and int8 values.

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
static inline void sum_values_q8(const AttendArgs& a, const Scratch& s, BlockView& block, int row, int r0, int b,
                                 int from, int to) noexcept {
  const int stride = o_stride(a.layout->head_dim), Dq = a.layout->v_stride, nq = Dq / kQuant;
  V::I acc[MR][2 * NB];
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
    for (int i = 0; i < 2 * NB; ++i) acc[r][i] = V::zero_i();
  for (int pair = from / 2; pair < (to + 1) / 2; ++pair) {
    block.with_values.fetch<MR <= 4 ? NB : 1>();
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
static inline void value_rows_q8(const AttendArgs& a, const Scratch& s, BlockView& block, int row, int from,
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
