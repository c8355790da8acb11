// o = o * alpha + p v of some rows for one block of values; see tile.inl. No includes.

// f16 and f32: one chain of multiply-adds over the positions.
template <class E, int MR, int NV>
static PHLITE_LOOP void sum_values(const AttendArgs& a, const Scratch& s, BlockView& block, int row, int vec, int from,
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
  const float* p = s.scores + row * kBlock + from;
  const auto* v = static_cast<const typename E::T*>(block.v) + static_cast<size_t>(from) * v_stride + vec * kLanes;
  for (int j = from; j < to; ++j, ++p, v += v_stride) {
    V::F value[NV];
#pragma GCC unroll 8
    for (int i = 0; i < NV; ++i) value[i] = E::load(v + i * kLanes);
    block.with_values.fetch<MR, kLines>();
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
      const V::F x = V::set1(p[r * kBlock]);
#pragma GCC unroll 8
      for (int i = 0; i < NV; ++i) acc[r][i] = V::fma(x, value[i], acc[r][i]);
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

// The int16 weights p * vscale of rows `row` to `end`. The largest of up to 16 (row, 32 dims) come out of one vector,
// so that nothing waits for a maximum across lanes or for a division.
static inline void round_weights(const AttendArgs& a, const Scratch& s, const BlockView& block, int row,
                                 int end) noexcept {
  const int nq = a.layout->v_stride / kQuant, most_rows = kLanes / nq;
  const auto* scales = reinterpret_cast<const uint16_t*>(block.head + a.layout->v_scales);
  float largest_of[kLanes * kLanes], most[kLanes] = {}, inverse[kLanes], step[kLanes];
  for (int n; row < end; row += n) {
    n = end - row < most_rows ? end - row : most_rows;
    for (int i = 0; i < n * nq; ++i) {
      const float* p = s.scores + (row + i / nq) * kBlock;
      const uint16_t* scale = scales + i % nq * kBlock;
      const V::F w0 = V::mul(V::load(p), V::load_bf16(scale)), w1 = V::mul(V::load(p + 16), V::load_bf16(scale + 16));
      const V::F w2 = V::mul(V::load(p + 32), V::load_bf16(scale + 32));
      const V::F w3 = V::mul(V::load(p + 48), V::load_bf16(scale + 48));
      V::store(largest_of + i * kLanes, V::max(V::max(w0, w1), V::max(w2, w3)));
    }
    largest_of_vectors(largest_of, n * nq, most);
    for (int i = 0; i < kLanes; ++i) {
      const bool counts = most[i] >= kSmallestWeight;
      const float divisor = counts ? most[i] : 1.0f, ratio = kMostWeight / divisor, part = most[i] / kMostWeight;
      inverse[i] = counts ? ratio : 0.0f;
      step[i] = counts ? part : 0.0f;
    }
    for (int i = 0; i < n * nq; ++i) {
      const float* p = s.scores + (row + i / nq) * kBlock;
      const uint16_t* scale = scales + i % nq * kBlock;
      const V::F by = V::set1(inverse[i]);
      int16_t* w = s.w + (row * nq + i) * kBlock;
      s.w_scale[row * nq + i] = step[i];
      for (int j = 0; j < kBlock; j += kLanes)
        V::store_i16(w + j, V::mul(V::mul(V::load(p + j), V::load_bf16(scale + j)), by));
    }
  }
}

// Rows row .. row + MR - 1, NB blocks of 32 dims from block b on.
template <class E, int MR, int NB>
static PHLITE_LOOP void sum_values_q8(const AttendArgs& a, const Scratch& s, BlockView& block, int row, int b, int from,
                                      int to) noexcept {
  const int stride = o_stride(a.layout->head_dim), Dq = a.layout->v_stride, nq = Dq / kQuant;
  const int16_t* const w = s.w + (row * nq + b) * kBlock;
  V::I acc[MR][2 * NB];
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
    for (int i = 0; i < 2 * NB; ++i) acc[r][i] = V::zero_i();
  for (int pair = from / 2; pair < (to + 1) / 2; ++pair) {
    block.with_values.fetch<MR, NB>();
    V::I value[2 * NB];
#pragma GCC unroll 8
    for (int i = 0; i < 2 * NB; ++i)
      value[i] = E::load(block.v, (static_cast<size_t>(pair) * Dq + b * kQuant + i * kLanes) * 2);
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
      for (int i = 0; i < NB; ++i) {
        const V::I two = V::set2(w + (r * nq + i) * kBlock + pair * 2);
        acc[r][2 * i] = V::dot2(acc[r][2 * i], value[2 * i], two);
        acc[r][2 * i + 1] = V::dot2(acc[r][2 * i + 1], value[2 * i + 1], two);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r) {
    const V::F alpha = V::set1(s.alpha[row + r]);
    float* o = a.out.o + static_cast<size_t>(row + r) * stride + b * kQuant;
#pragma GCC unroll 8
    for (int i = 0; i < 2 * NB; ++i) {
      const V::F scale = V::set1(s.w_scale[(row + r) * nq + b + i / 2]);
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
  for (int r = 0; r < MR; r += kRows) {
    for (int b = 0; b < n;) {
      const int left = n - b, parts = (left + kMost - 1) / kMost, nb = (left + parts - 1) / parts;
      switch (nb) {
        case 1:
          sum_values_q8<E, kRows, 1>(a, s, block, row + r, b, from, to);
          break;
        case 2:
          if constexpr (kMost >= 2) sum_values_q8<E, kRows, 2>(a, s, block, row + r, b, from, to);
          break;
        case 3:
          if constexpr (kMost >= 3) sum_values_q8<E, kRows, 3>(a, s, block, row + r, b, from, to);
          break;
        default:
          if constexpr (kMost >= 4) sum_values_q8<E, kRows, 4>(a, s, block, row + r, b, from, to);
          break;
      }
      b += nb;
    }
  }
}
