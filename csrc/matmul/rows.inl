// Part of tile_kernels.inl: rows of activations: norms, quantisation, activation functions.

// Sixteen partial sums, folded by halves: the same order for every number of lanes.
template <class V>
INLINE float sum_sixteen(const typename V::F (&acc)[kTileRows / V::lanes]) {
  float s[kTileRows];
  for (int i = 0; i < kTileRows / V::lanes; ++i) V::store_f(s + i * V::lanes, acc[i]);
  for (int n = kTileRows / 2; n > 0; n /= 2)
    for (int i = 0; i < n; ++i) s[i] = s[i] + s[i + n];
  return s[0];
}

template <class V>
void rms_norm_row(const float* x, const float* weight, float eps, int64_t n, float* y) noexcept {
  constexpr int kVectors = kTileRows / V::lanes;
  typename V::F acc[kVectors];
  for (int i = 0; i < kVectors; ++i) acc[i] = V::zero_f();
  const int64_t whole = n / kTileRows * kTileRows;
  for (int64_t k = 0; k < whole; k += kTileRows)
    for (int i = 0; i < kVectors; ++i) {
      const typename V::F v = V::load_f(x + k + i * V::lanes);
      acc[i] = V::fma(v, v, acc[i]);
    }
  if (whole < n) {
    float tail[kTileRows] = {};
    for (int64_t k = whole; k < n; ++k) tail[k - whole] = x[k];
    for (int i = 0; i < kVectors; ++i) {
      const typename V::F v = V::load_f(tail + i * V::lanes);
      acc[i] = V::fma(v, v, acc[i]);
    }
  }
  const float scale = 1.0f / std::sqrt(sum_sixteen<V>(acc) / static_cast<float>(n) + eps);
  for (int64_t k = 0; k < whole; k += V::lanes)
    V::store_f(y + k, V::mul_f(V::mul_f(V::load_f(x + k), V::set1_f(scale)), V::load_f(weight + k)));
  for (int64_t k = whole; k < n; ++k) y[k] = x[k] * scale * weight[k];
}

// The mean first, then the squares of the distances from it, which keeps their digits where the mean is large.
template <class V>
void layer_norm_row(const float* x, const float* weight, const float* bias, float eps, int64_t n, float* y) noexcept {
  constexpr int kVectors = kTileRows / V::lanes;
  const int64_t whole = n / kTileRows * kTileRows;
  typename V::F sum[kVectors], squares[kVectors];
  for (int i = 0; i < kVectors; ++i) sum[i] = squares[i] = V::zero_f();
  float tail[kTileRows] = {};  // the columns after the last sixteen; lanes without one add zero
  for (int64_t k = whole; k < n; ++k) tail[k - whole] = x[k];
  for (int64_t k = 0; k < whole; k += kTileRows)
    for (int i = 0; i < kVectors; ++i) sum[i] = V::add_f(sum[i], V::load_f(x + k + i * V::lanes));
  for (int i = 0; i < kVectors; ++i) sum[i] = V::add_f(sum[i], V::load_f(tail + i * V::lanes));
  const float mean = sum_sixteen<V>(sum) / static_cast<float>(n);

  for (int64_t k = whole; k < n; ++k) tail[k - whole] = x[k] - mean;
  for (int64_t k = 0; k < whole; k += kTileRows)
    for (int i = 0; i < kVectors; ++i) {
      const typename V::F d = V::sub_f(V::load_f(x + k + i * V::lanes), V::set1_f(mean));
      squares[i] = V::fma(d, d, squares[i]);
    }
  for (int i = 0; i < kVectors; ++i) {
    const typename V::F d = V::load_f(tail + i * V::lanes);
    squares[i] = V::fma(d, d, squares[i]);
  }
  const float scale = 1.0f / std::sqrt(sum_sixteen<V>(squares) / static_cast<float>(n) + eps);

  for (int64_t k = 0; k < whole; k += V::lanes) {
    const typename V::F d = V::sub_f(V::load_f(x + k), V::set1_f(mean));
    V::store_f(y + k, V::fma(V::mul_f(d, V::set1_f(scale)), V::load_f(weight + k), V::load_f(bias + k)));
  }
  for (int64_t k = whole; k < n; ++k) y[k] = std::fma((x[k] - mean) * scale, weight[k], bias[k]);
}

// Largest magnitude of n (a multiple of 32) values as bits: a NaN is above infinity, infinity above every number.
template <class V>
INLINE int32_t max_abs_bits(const float* x, int n) {
  typename V::I top = V::zero();
  for (int k = 0; k < n; k += V::lanes)
    top = V::max(top, V::and_(V::load(reinterpret_cast<const uint8_t*>(x + k)), V::set1(0x7FFFFFFF)));
  return V::max_lane(top);
}

// d and 1/d of a block with largest magnitude `bits`; a block of zeros has d = 0, one with a NaN or infinity d = NaN.
INLINE void block_scale(int32_t bits, float& d, float& inverse) {
  float amax;
  std::memcpy(&amax, &bits, 4);
  const bool finite = bits < 0x7F800000;
  d = finite ? amax / 127.0f : std::numeric_limits<float>::quiet_NaN();
  inverse = finite && amax > 0.0f ? 127.0f / amax : 0.0f;
  if (!(inverse <= std::numeric_limits<float>::max())) d = inverse = 0.0f;  // amax below 2^-121: nothing is lost
}

// Of a slice with the sums and the sums of magnitudes of every sixteen codes: what the kernels need to multiply groups
// in pairs.
INLINE void note_pairs(const int32_t (&sums)[16], const int32_t (&sizes)[16], int64_t at, const Activations& act) {
  int32_t reach16 = 0, reach32 = 0;
  for (int i = 0; i < 16; ++i) reach16 = sizes[i] > reach16 ? sizes[i] : reach16;
  for (int i = 0; i < 16; i += 2) {
    const int32_t sum = sums[i] + sums[i + 1], size = sizes[i] + sizes[i + 1];
    const int32_t larger = (size + (sum < 0 ? -sum : sum)) / 2;  // of the positive and of the negative codes
    reach32 = larger > reach32 ? larger : reach32;
    const uint32_t both = (static_cast<uint32_t>(sums[i]) << 16) + static_cast<uint32_t>(sums[i + 1]);
    act.pair_start[at * 8 + i / 2] = static_cast<int32_t>(0x8000 - kSixBitOffset * both);
  }
  act.reach16[at] = static_cast<int16_t>(reach16);
  act.reach32[at] = static_cast<int16_t>(reach32);
}

// Codes of n columns of a slice, a multiple of 32, whose block i of 32 is multiplied by inverse[i]; the sums of every
// sixteen of them and, where groups are multiplied in pairs, of their magnitudes: q8k has whole slices only.
template <class V>
INLINE void round_columns(const float* x, const float* inverse, int n, int8_t* q, int32_t (&sums)[16],
                          int32_t (&sizes)[16]) {
  static_assert(V::kWholeSlices || !V::kPairs);
  if constexpr (V::kWholeSlices) {
    if (n == kSuperblock) return V::round_slice(x, inverse, q, sums, sizes);
  }
  for (int i = 0; i < n; i += 32) {
    for (int c = 0; c < 32; c += V::lanes)
      V::store_rounded(V::mul_f(V::load_f(x + i + c), V::set1_f(inverse[i / 32])), q + i + c);
    V::sum_bytes(q + i, sums + i / 16);
  }
}

template <class V>
void quantize_row(const float* x, int64_t row, ActivationKind kind, const Activations& act, int8_t* q) noexcept {
  const bool pairs = V::kPairs && kind == ActivationKind::q8k && act.n_rows >= kPairRows;
  for (int64_t k = 0, slice = 0; k < act.n_cols; k += kSuperblock, ++slice) {
    const int64_t at = slice * act.n_rows + row;
    const int n = static_cast<int>(act.n_cols - k < kSuperblock ? act.n_cols - k : kSuperblock);
    float inverse[8] = {};
    if (kind == ActivationKind::q8k) {
      block_scale(max_abs_bits<V>(x + k, n), act.d[at], inverse[0]);
      for (int i = 1; i < 8; ++i) inverse[i] = inverse[0];
    } else {
      for (int i = 0; i < n / 32; ++i) block_scale(max_abs_bits<V>(x + k + i * 32, 32), act.d[at * 8 + i], inverse[i]);
    }
    int32_t sums[16] = {}, sizes[16] = {};
    round_columns<V>(x + k, inverse, n, q + k, sums, sizes);
    for (int i = 0; i < 8; ++i) act.minus_sum32[at * 8 + i] = -(sums[2 * i] + sums[2 * i + 1]);
    if (kind == ActivationKind::q8k) {
      for (int i = 0; i < 16; ++i) act.bsum16[at * 16 + i] = static_cast<int16_t>(sums[i]);
      for (int i = 0; i < 8; ++i) act.bsum32[at * 8 + i] = static_cast<int16_t>(sums[2 * i] + sums[2 * i + 1]);
      for (int i = 0; i < 16; ++i) act.minus_sum16[at * 16 + i] = -sums[i];
      if (pairs) note_pairs(sums, sizes, at, act);
      if constexpr (V::kLongSums)
        if (act.n_rows >= kPairRows) V::note_reach(q + k, act.reach16[at], act.reach32[at]);
    }
  }
}

// exp(x) for |x| < 87, relative error below 2^-22: x = n ln 2 + r, a polynomial of degree 6 in r, n into the exponent.
template <class V>
INLINE typename V::F exp_f(typename V::F x) {
  using Fl = typename V::F;
  x = V::min_f(V::max_f(x, V::set1_f(-87.0f)), V::set1_f(87.0f));
  const typename V::I n = V::round(V::mul_f(x, V::set1_f(1.44269504f)));
  const Fl nf = V::to_f(n);
  Fl r = V::fnma(nf, V::set1_f(0.693359375f), x);
  r = V::fnma(nf, V::set1_f(-2.12194440e-4f), r);
  Fl p = V::set1_f(1.0f / 720);
  p = V::fma(p, r, V::set1_f(1.0f / 120));
  p = V::fma(p, r, V::set1_f(1.0f / 24));
  p = V::fma(p, r, V::set1_f(1.0f / 6));
  p = V::fma(p, r, V::set1_f(0.5f));
  p = V::fma(p, r, V::set1_f(1.0f));
  p = V::fma(p, r, V::set1_f(1.0f));
  return V::as_f(V::add(V::as_i(p), V::template shift<23>(n)));
}

// x times the logistic function of z, given -z: x / (1 + exp(-z)). Relative error below (|dz| + 2^-22 + 2^-23), dz
// being the error of z; from |z| = 87 on below exp(-86) |x|.
template <class V>
INLINE typename V::F times_logistic(typename V::F x, typename V::F minus_z) {
  return V::div_f(x, V::add_f(exp_f<V>(minus_z), V::set1_f(1.0f)));
}

// In all three n is a multiple of sixteen, and `out` may be an input.
template <class V>
void swiglu(const float* gate, const float* up, int64_t n, float* out) noexcept {
  for (int64_t k = 0; k < n; k += V::lanes) {
    const typename V::F g = V::load_f(gate + k);
    V::store_f(out + k, V::mul_f(times_logistic<V>(g, V::sub_f(V::zero_f(), g)), V::load_f(up + k)));
  }
}

// (1 + tanh(u)) / 2 is the logistic function of 2u, which does not cancel where x is negative.
template <class V>
void gelu_tanh(const float* x, int64_t n, float* out) noexcept {
  constexpr float kTwoSqrtTwoOverPi = 1.59576912f, kCubic = 0.0713548163f;  // the second one times 0.044715
  for (int64_t k = 0; k < n; k += V::lanes) {
    const typename V::F v = V::load_f(x + k);
    const typename V::F per_x = V::fma(V::mul_f(v, v), V::set1_f(-kCubic), V::set1_f(-kTwoSqrtTwoOverPi));
    V::store_f(out + k, times_logistic<V>(v, V::mul_f(v, per_x)));
  }
}

// min(v, limit), except that NaN and infinities become NaN (v - v) instead of an innocent number.
template <class V>
INLINE typename V::F at_most(typename V::F v, float limit) {
  return V::add_f(V::min_f(v, V::set1_f(limit)), V::sub_f(v, v));
}

template <class V>
void gegelu(const float* gate, const float* up, float limit, int64_t n, float* out) noexcept {
  for (int64_t k = 0; k < n; k += V::lanes) {
    const typename V::F g = at_most<V>(V::load_f(gate + k), limit);
    const typename V::F u = V::load_f(up + k);
    const typename V::F linear = V::add_f(V::max_f(at_most<V>(u, limit), V::set1_f(-limit)), V::sub_f(u, u));
    const typename V::F gelu = times_logistic<V>(g, V::mul_f(g, V::set1_f(-1.702f)));
    V::store_f(out + k, V::mul_f(gelu, V::add_f(linear, V::set1_f(1.0f))));
  }
}
