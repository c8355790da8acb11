// The matrix-product kernels, written once over a vector type V and included by each instruction set's file inside its
// target region; that file defines V, INLINE and UNROLL first. No include guard and no includes for that reason.
//
// V has `lanes` 32-bit lanes (1, 8 or 16); a plane of sixteen lanes is 16 / lanes vectors, worked off one after
// another. V::dot<MaxCode>(acc, codes, act) adds the products of four codes and four activations per lane;
// V::flush_every gives how many steps fit its accumulator, V::fold moves an accumulator, times the scale of its group,
// into an int32 total. Signed codes (Q8_0, IQ4) are passed through V::from_signed: where the hardware multiplies
// unsigned by signed bytes it adds 128, which V::kSignedOffset and the block sums take back.

// ---- codes: from planes to the bytes of one step
// ---------------------------------------------------------------------

template <class V>
struct NibbleCodes {
  using I = typename V::I;
  static constexpr int kSteps = 8, kPlanes = 4, kMaxCode = 15, kOffset = 0;
  template <int S>
  static INLINE I code(const uint8_t* p) {
    const I w = V::load(p + (S & 3) * kPlaneBytes);
    if constexpr (S < 4)
      return V::and_(w, V::set1(0x0F0F0F0F));
    else
      return V::and_(V::template srl<4>(w), V::set1(0x0F0F0F0F));
  }
};

template <class V>
struct FiveBitCodes {
  using I = typename V::I;
  static constexpr int kSteps = 8, kPlanes = 5, kMaxCode = 31;
  template <int S>
  static INLINE I code(const uint8_t* p) {
    const I h = V::load(p + 4 * kPlaneBytes);
    const I bit = V::and_(V::template shift<4 - S>(h), V::set1(0x10101010));
    return V::or_(NibbleCodes<V>::template code<S>(p), bit);
  }
};

template <class V>
struct SixBitCodes {
  using I = typename V::I;
  static constexpr int kSteps = 4, kPlanes = 3, kMaxCode = 63;
  template <int S>
  static INLINE I code(const uint8_t* p) {
    const I w = V::load(p + (S & 1) * kPlaneBytes), h = V::load(p + 2 * kPlaneBytes);
    const I low = V::and_(V::template shift < S<2 ? 0 : -4>(w), V::set1(0x0F0F0F0F));
    return V::or_(low, V::and_(V::template shift<4 - 2 * S>(h), V::set1(0x30303030)));
  }
};

template <class V>
struct TwoBitCodes {
  using I = typename V::I;
  static constexpr int kSteps = 4, kPlanes = 1, kMaxCode = 3;
  template <int S>
  static INLINE I code(const uint8_t* p) {
    return V::and_(V::template shift<-2 * S>(V::load(p)), V::set1(0x03030303));
  }
};

// Two groups of Q3_K: a 2-bit plane each and one plane of third bits. `Odd` chooses the group of the pair.
template <class V, int Odd>
struct ThreeBitCodes {
  using I = typename V::I;
  static constexpr int kSteps = 4, kMaxCode = 7;
  template <int S>
  static INLINE I code(const uint8_t* pair) {
    const I bit = V::and_(V::template shift<2 - S - 4 * Odd>(V::load(pair + 2 * kPlaneBytes)), V::set1(0x04040404));
    return V::or_(TwoBitCodes<V>::template code<S>(pair + Odd * kPlaneBytes), bit);
  }
};

template <class V>
struct ByteCodes {
  using I = typename V::I;
  static constexpr int kSteps = 8, kPlanes = 8, kMaxCode = 255;
  template <int S>
  static INLINE I code(const uint8_t* p) {
    return V::from_signed(V::load(p + S * kPlaneBytes));
  }
};

template <class V>
struct TableCodes {
  using I = typename V::I;
  static constexpr int kSteps = 8, kPlanes = 4, kMaxCode = 255;
  template <int S>
  static INLINE I code(const uint8_t* p) {
    return V::lookup_iq4(NibbleCodes<V>::template code<S>(p));
  }
};

// total[m] += scale * sum over the group's steps of codes * activations, from step S on; acc starts at zero.
template <class V, class Codes, int M, int S = 0>
INLINE void add_steps(const uint8_t* planes, const int8_t* q, typename V::I scale, typename V::I (&acc)[M],
                      typename V::I (&total)[M]) {
  if constexpr (S < Codes::kSteps) {
    constexpr int kMax = Codes::kMaxCode, kEvery = V::template flush_every<kMax>();
    const typename V::I w = Codes::template code<S>(planes);
    UNROLL for (int m = 0; m < M; ++m) acc[m] = V::template dot<kMax>(acc[m], w, q + m * kSuperblock + 4 * S);
    if constexpr ((S + 1) % kEvery == 0 || S + 1 == Codes::kSteps) {
      UNROLL for (int m = 0; m < M; ++m) {
        total[m] = V::template fold<kMax>(total[m], acc[m], scale);
        acc[m] = V::zero();
      }
    }
    add_steps<V, Codes, M, S + 1>(planes, q, scale, acc, total);
  }
}

template <class V, class Codes, int M>
INLINE void add_group(const uint8_t* planes, const int8_t* q, typename V::I scale, typename V::I (&total)[M]) {
  typename V::I acc[M];
  UNROLL for (int m = 0; m < M; ++m) acc[m] = V::zero();
  add_steps<V, Codes, M>(planes, q, scale, acc, total);
}

// ---- scales of the K formats
// -----------------------------------------------------------------------------------------

// `expand` writes scale(g) of every group as int32 lanes; `pair<i>` gives int16 pairs (2i, 2i + 1) of what the block
// sums are multiplied with: the mins, or the scales where codes carry an offset.

template <class V>
struct ScalesQ4K {  // Q4_K, Q5_K: eight 6-bit scales and mins in twelve bytes
  using I = typename V::I;
  static constexpr int kGroups = 8;
  I sc[2], mn[2];
  INLINE ScalesQ4K(const uint8_t* body, int lane) {
    const I a0 = V::load(body + kPlaneBytes + 4 * lane), a1 = V::load(body + 2 * kPlaneBytes + 4 * lane),
            a2 = V::load(body + 3 * kPlaneBytes + 4 * lane);
    const I low6 = V::set1(0x3F3F3F3F), low4 = V::set1(0x0F0F0F0F), two = V::set1(0x30303030);
    sc[0] = V::and_(a0, low6);
    mn[0] = V::and_(a1, low6);
    sc[1] = V::or_(V::and_(a2, low4), V::and_(V::template srl<2>(a0), two));
    mn[1] = V::or_(V::and_(V::template srl<4>(a2), low4), V::and_(V::template srl<2>(a1), two));
  }
  template <int G>
  INLINE I scale() const {
    return V::template byte<G % 4>(sc[G / 4]);
  }
  template <int P>
  INLINE I pair() const {
    return V::template byte_pair<P % 2>(mn[P / 2]);
  }
};

template <class V>
struct ScalesQ2K {  // sixteen bytes: scale in the low, min in the high nibble
  using I = typename V::I;
  static constexpr int kGroups = 16;
  I s[4];
  INLINE ScalesQ2K(const uint8_t* body, int lane) {
    UNROLL for (int i = 0; i < 4; ++i) s[i] = V::load(body + (1 + i) * kPlaneBytes + 4 * lane);
  }
  template <int G>
  INLINE I scale() const {
    return V::and_(V::template byte<G % 4>(s[G / 4]), V::set1(15));
  }
  template <int P>
  INLINE I pair() const {
    return V::template byte_pair<P % 2>(V::and_(V::template srl<4>(s[P / 2]), V::set1(0x0F0F0F0F)));
  }
};

template <class V>
struct ScalesQ6K {  // sixteen signed bytes
  using I = typename V::I;
  static constexpr int kGroups = 16;
  I s[4];
  INLINE ScalesQ6K(const uint8_t* body, int lane) {
    UNROLL for (int i = 0; i < 4; ++i) s[i] = V::load(body + i * kPlaneBytes + 4 * lane);
  }
  template <int G>
  INLINE I scale() const {
    return V::template sra<24>(V::template shift<24 - 8 * (G % 4)>(s[G / 4]));
  }
  template <int P>
  INLINE I pair() const {
    return V::template signed_byte_pair<P % 2>(s[P / 2]);
  }
};

template <class V>
struct ScalesQ3K {  // sixteen 6-bit scales with 32 added, in twelve bytes
  using I = typename V::I;
  static constexpr int kGroups = 16;
  I s[4];
  INLINE ScalesQ3K(const uint8_t* body, int lane) {
    const I a0 = V::load(body + 4 * lane), a1 = V::load(body + kPlaneBytes + 4 * lane),
            a2 = V::load(body + 2 * kPlaneBytes + 4 * lane);
    const I low4 = V::set1(0x0F0F0F0F), two = V::set1(0x30303030);
    s[0] = V::or_(V::and_(a0, low4), V::and_(V::template shift<4>(a2), two));
    s[1] = V::or_(V::and_(a1, low4), V::and_(V::template shift<2>(a2), two));
    s[2] = V::or_(V::and_(V::template srl<4>(a0), low4), V::and_(a2, two));
    s[3] = V::or_(V::and_(V::template srl<4>(a1), low4), V::and_(V::template srl<2>(a2), two));
  }
  template <int G>
  INLINE I scale() const {
    return V::sub(V::template byte<G % 4>(s[G / 4]), V::set1(32));
  }
  template <int P>
  INLINE I pair() const {
    return V::sub16(V::template byte_pair<P % 2>(s[P / 2]), V::set1(0x00200020));
  }
};

template <class V>
struct ScalesIQ4XS {  // eight 6-bit scales with 32 added: four bits in a plane, two in the halves beside d
  using I = typename V::I;
  static constexpr int kGroups = 8;
  I lo, hi;
  INLINE ScalesIQ4XS(const uint8_t* body, int lane)
      : lo(V::load(body + kPlaneBytes + 4 * lane)), hi(V::load_u16(body + 32 + 2 * lane)) {}
  template <int G>
  INLINE I scale() const {
    const I l = V::and_(V::template srl<4 * G>(lo), V::set1(0x0F)),
            h = V::and_(V::template shift<4 - 2 * G>(hi), V::set1(0x30));
    return V::sub(V::or_(l, h), V::set1(32));
  }
  template <int P>
  INLINE I pair() const {
    return V::or_(V::and_(scale<2 * P>(), V::set1(0xFFFF)), V::template shift<16>(scale<2 * P + 1>()));
  }
};

template <class V, class Scales, int G = 0>
INLINE void expand_scales(const Scales& s, typename V::I* out) {
  if constexpr (G < Scales::kGroups) {
    out[G] = s.template scale<G>();
    expand_scales<V, Scales, G + 1>(s, out);
  }
}

template <class V, class Scales, int M, int P = 0>
INLINE void add_block_sums(const Scales& s, const int16_t* bsum, typename V::I (&msum)[M]) {
  if constexpr (P < Scales::kGroups / 2) {
    const typename V::I pair = s.template pair<P>();
    UNROLL for (int m = 0; m < M; ++m) msum[m] = V::madd16(msum[m], pair, bsum + m * Scales::kGroups + 2 * P);
    add_block_sums<V, Scales, M, P + 1>(s, bsum, msum);
  }
}

// ---- K formats: superblocks of 256 columns
// -----------------------------------------------------------------------------

// Where things lie in the body of a superblock, and what the block sums mean: kMin: dmin * mins; else scales * kOffset.
// kInlineD: float16 d (and dmin) fill plane 0; else d lies in the header.
template <class V>
struct FormatQ4K {
  using Codes = NibbleCodes<V>;
  using Scales = ScalesQ4K<V>;
  static constexpr int kCodePlane = 4, kBodyPlanes = 36, kOffset = 0;
  static constexpr bool kMin = true, kInlineD = true;
};
template <class V>
struct FormatQ5K {
  using Codes = FiveBitCodes<V>;
  using Scales = ScalesQ4K<V>;
  static constexpr int kCodePlane = 4, kBodyPlanes = 44, kOffset = 0;
  static constexpr bool kMin = true, kInlineD = true;
};
template <class V>
struct FormatQ6K {
  using Codes = SixBitCodes<V>;
  using Scales = ScalesQ6K<V>;
  static constexpr int kCodePlane = 4, kBodyPlanes = 52, kOffset = 32;
  static constexpr bool kMin = false, kInlineD = false;
};
template <class V>
struct FormatQ2K {
  using Codes = TwoBitCodes<V>;
  using Scales = ScalesQ2K<V>;
  static constexpr int kCodePlane = 5, kBodyPlanes = 21, kOffset = 0;
  static constexpr bool kMin = true, kInlineD = true;
};
template <class V>
struct FormatQ3K {
  using Codes = void;  // pairs of groups: ThreeBitCodes
  using Scales = ScalesQ3K<V>;
  static constexpr int kCodePlane = 3, kBodyPlanes = 27, kOffset = 4;
  static constexpr bool kMin = false, kInlineD = false;
};
template <class V>
struct FormatIQ4XS {
  using Codes = TableCodes<V>;
  using Scales = ScalesIQ4XS<V>;
  static constexpr int kCodePlane = 2, kBodyPlanes = 34, kOffset = V::kSignedOffset;
  static constexpr bool kMin = false, kInlineD = true;
};

template <class V, class F, int M>
INLINE void super_rows(const TileArgs& a, int64_t row, int lane, float* out) {
  using I = typename V::I;
  using Fl = typename V::F;
  using Scales = typename F::Scales;
  constexpr int kGroups = Scales::kGroups, kGroupCols = kSuperblock / kGroups;
  const Activations& act = *a.act;
  const int64_t n_blocks = act.n_cols / kSuperblock;
  const int64_t header_bytes = F::kInlineD ? 0 : (n_blocks * 32 + kPlaneBytes - 1) / kPlaneBytes * kPlaneBytes;
  const uint8_t* body = a.tile + header_bytes;

  Fl acc[M];
  UNROLL for (int m = 0; m < M; ++m) acc[m] = V::zero_f();
  for (int64_t b = 0; b < n_blocks; ++b, body += F::kBodyPlanes * kPlaneBytes) {
    const int64_t at = b * act.n_rows + row;
    const int8_t* q = act.q + at * kSuperblock;
    const float* d_act = act.d + at;
    const Scales scales(body, lane);
    I scale[kGroups], total[M];
    expand_scales<V>(scales, scale);
    UNROLL for (int m = 0; m < M; ++m) total[m] = V::zero();

    if constexpr (F::kMin || F::kOffset != 0) {
      I msum[M];
      UNROLL for (int m = 0; m < M; ++m) msum[m] = V::zero();
      const int16_t* bsum = kGroups == 16 ? act.bsum16 + at * 16 : act.bsum32 + at * 8;
      add_block_sums<V>(scales, bsum, msum);
      if constexpr (F::kMin) {
        const Fl dmin = V::load_half(body + 32 + 2 * lane);
        UNROLL for (int m = 0; m < M; ++m) acc[m] =
            V::fnma(V::mul_f(V::to_f(msum[m]), dmin), V::set1_f(d_act[m]), acc[m]);
      } else {
        UNROLL for (int m = 0; m < M; ++m) total[m] = V::sub(total[m], V::mul(msum[m], V::set1(F::kOffset)));
      }
    }

    const uint8_t* planes = body + F::kCodePlane * kPlaneBytes + 4 * lane;
    if constexpr (std::is_void_v<typename F::Codes>) {
      for (int g = 0; g < kGroups; g += 2, planes += 3 * kPlaneBytes, q += 2 * kGroupCols) {
        add_group<V, ThreeBitCodes<V, 0>, M>(planes, q, scale[g], total);
        add_group<V, ThreeBitCodes<V, 1>, M>(planes, q + kGroupCols, scale[g + 1], total);
      }
    } else {
      for (int g = 0; g < kGroups; ++g, planes += F::Codes::kPlanes * kPlaneBytes, q += kGroupCols)
        add_group<V, typename F::Codes, M>(planes, q, scale[g], total);
    }

    const Fl d = V::load_half(F::kInlineD ? body + 2 * lane : a.tile + b * 32 + 2 * lane);
    UNROLL for (int m = 0; m < M; ++m) acc[m] = V::fma(V::mul_f(V::to_f(total[m]), d), V::set1_f(d_act[m]), acc[m]);
  }
  UNROLL for (int m = 0; m < M; ++m) V::store_f(out + m * kTileRows + lane, acc[m]);
}

// ---- formats with blocks of 32 columns
// ---------------------------------------------------------------------------------

template <class V, class C, bool Min, int Offset>
struct BlockFormat {
  using Codes = C;
  static constexpr bool kMin = Min;
  static constexpr int kOffset = Offset;
};
template <class V>
using FormatQ4_0 = BlockFormat<V, NibbleCodes<V>, false, 8>;
template <class V>
using FormatQ4_1 = BlockFormat<V, NibbleCodes<V>, true, 0>;
template <class V>
using FormatQ5_0 = BlockFormat<V, FiveBitCodes<V>, false, 16>;
template <class V>
using FormatQ5_1 = BlockFormat<V, FiveBitCodes<V>, true, 0>;
template <class V>
using FormatQ8_0 = BlockFormat<V, ByteCodes<V>, false, V::kSignedOffset>;
template <class V>
using FormatIQ4NL = BlockFormat<V, TableCodes<V>, false, V::kSignedOffset>;

template <class V, class F, int M>
INLINE void block_rows(const TileArgs& a, int64_t row, int lane, float* out) {
  using I = typename V::I;
  using Fl = typename V::F;
  using Codes = typename F::Codes;
  constexpr int kHeader = F::kMin ? 64 : 32;  // float16 d[16] and, with mins, m[16] per block
  const Activations& act = *a.act;
  const int64_t n_blocks = act.n_cols / 32;
  const int64_t header_bytes = (n_blocks * kHeader + kPlaneBytes - 1) / kPlaneBytes * kPlaneBytes;
  const uint8_t* header = a.tile + 2 * lane;
  const uint8_t* planes = a.tile + header_bytes + 4 * lane;

  Fl acc[M];
  UNROLL for (int m = 0; m < M; ++m) acc[m] = V::zero_f();
  for (int64_t b = 0; b < n_blocks; ++b, header += kHeader, planes += Codes::kPlanes * kPlaneBytes) {
    const int64_t at = b / 8 * act.n_rows + row;
    const int8_t* q = act.q + at * kSuperblock + b % 8 * 32;
    const float* d_act = act.d + at * 8 + b % 8;
    const int32_t* bsum = act.bsum + at * 8 + b % 8;
    I total[M];
    UNROLL for (int m = 0; m < M; ++m) total[m] = F::kOffset ? V::set1(-F::kOffset * bsum[m * 8]) : V::zero();
    add_group<V, Codes, M>(planes, q, V::unit_scale(), total);
    const Fl d = V::load_half(header);
    UNROLL for (int m = 0; m < M; ++m) {
      Fl sum = V::mul_f(V::to_f(total[m]), d);
      if constexpr (F::kMin) sum = V::fma(V::load_half(header + 32), V::set1_f(static_cast<float>(bsum[m * 8])), sum);
      acc[m] = V::fma(sum, V::set1_f(d_act[m * 8]), acc[m]);
    }
  }
  UNROLL for (int m = 0; m < M; ++m) V::store_f(out + m * kTileRows + lane, acc[m]);
}

// ---- floats
// ------------------------------------------------------------------------------------------------------------

template <class V>
struct FormatF32 {
  static constexpr int kBytes = 4;
  static INLINE typename V::F weight(const uint8_t* p) { return V::load_f(reinterpret_cast<const float*>(p)); }
};
template <class V>
struct FormatF16 {
  static constexpr int kBytes = 2;
  static INLINE typename V::F weight(const uint8_t* p) { return V::load_half(p); }
};
template <class V>
struct FormatBF16 {
  static constexpr int kBytes = 2;
  static INLINE typename V::F weight(const uint8_t* p) { return V::as_f(V::template shift<16>(V::load_u16(p))); }
};

template <class V, class F, int M>
INLINE void float_rows(const TileArgs& a, int64_t row, int lane, float* out) {
  const Activations& act = *a.act;
  const float* x = act.x + row * act.ld;
  const uint8_t* w = a.tile + F::kBytes * lane;
  typename V::F acc[M];
  UNROLL for (int m = 0; m < M; ++m) acc[m] = V::zero_f();
  for (int64_t k = 0; k < act.n_cols; ++k, w += F::kBytes * kTileRows) {
    const typename V::F weight = F::weight(w);
    UNROLL for (int m = 0; m < M; ++m) acc[m] = V::fma(weight, V::set1_f(x[m * act.ld + k]), acc[m]);
  }
  UNROLL for (int m = 0; m < M; ++m) V::store_f(out + m * kTileRows + lane, acc[m]);
}

// ---- the table
// -----------------------------------------------------------------------------------------------------------

enum class Plan { super, block, floats };

// N rows of activations as N / M passes over the tile, M being what the registers of V hold.
template <class V, class F, Plan P, int N>
void tile_kernel(const TileArgs& a) noexcept {
  constexpr int M = N < V::kMaxRows ? N : V::kMaxRows;
  static_assert(N % M == 0, "row counts are multiples of the register tile");
  for (int r = 0; r < N; r += M)
    for (int lane = 0; lane < kTileRows; lane += V::lanes) {
      float* out = a.out + r * kTileRows;
      if constexpr (P == Plan::super)
        super_rows<V, F, M>(a, a.row + r, lane, out);
      else if constexpr (P == Plan::block)
        block_rows<V, F, M>(a, a.row + r, lane, out);
      else
        float_rows<V, F, M>(a, a.row + r, lane, out);
    }
}

// ---- rows of activations
// -------------------------------------------------------------------------------------------------

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

// Largest magnitude of n (a multiple of 32) values as bits: a NaN is above infinity, infinity above every number.
template <class V>
INLINE int32_t max_abs_bits(const float* x, int n) {
  typename V::I top = V::zero();
  for (int k = 0; k < n; k += V::lanes)
    top = V::max(top, V::and_(V::load(reinterpret_cast<const uint8_t*>(x + k)), V::set1(0x7FFFFFFF)));
  return V::max_lane(top);
}

template <class V>
INLINE int32_t quantize_sixteen(const float* x, float inverse, int8_t* q) {
  int32_t sum = 0;
  for (int i = 0; i < kTileRows; i += V::lanes)
    sum += V::store_rounded(V::mul_f(V::load_f(x + i), V::set1_f(inverse)), q + i);
  return sum;
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

template <class V>
void quantize_row(const float* x, int64_t row, ActivationKind kind, const Activations& act) noexcept {
  for (int64_t k = 0, slice = 0; k < act.n_cols; k += kSuperblock, ++slice) {
    const int64_t at = slice * act.n_rows + row;
    const int n = static_cast<int>(act.n_cols - k < kSuperblock ? act.n_cols - k : kSuperblock);
    int8_t* q = act.q + at * kSuperblock;
    float inverse = 0.0f;
    if (kind == ActivationKind::q8k) block_scale(max_abs_bits<V>(x + k, n), act.d[at], inverse);
    for (int i = 0; i < n; i += 32) {
      if (kind == ActivationKind::q8) block_scale(max_abs_bits<V>(x + k + i, 32), act.d[at * 8 + i / 32], inverse);
      const int32_t s0 = quantize_sixteen<V>(x + k + i, inverse, q + i);
      const int32_t s1 = quantize_sixteen<V>(x + k + i + 16, inverse, q + i + 16);
      if (kind == ActivationKind::q8k) {
        act.bsum16[at * 16 + i / 16] = static_cast<int16_t>(s0);
        act.bsum16[at * 16 + i / 16 + 1] = static_cast<int16_t>(s1);
        act.bsum32[at * 8 + i / 32] = static_cast<int16_t>(s0 + s1);
      } else {
        act.bsum[at * 8 + i / 32] = s0 + s1;
      }
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

template <class V>
void swiglu(const float* gate, const float* up, int64_t n, float* out) noexcept {
  for (int64_t k = 0; k < n; k += V::lanes) {  // n is a multiple of sixteen
    const typename V::F g = V::load_f(gate + k);
    const typename V::F e = exp_f<V>(V::sub_f(V::zero_f(), g));
    V::store_f(out + k, V::mul_f(V::div_f(g, V::add_f(e, V::set1_f(1.0f))), V::load_f(up + k)));
  }
}

template <class V, class F, Plan P, int... I>
constexpr void fill(MatmulKernels& t, WeightType type, std::integer_sequence<int, I...>) {
  const int index = packed_format_index(static_cast<int>(type));
  ((t.tile[index][I] = &tile_kernel<V, F, P, kTileRowCounts[I]>), ...);
}

template <class V>
MatmulKernels build_kernels() {
  constexpr std::make_integer_sequence<int, kTileRowKernels> counts;
  MatmulKernels t{};
  fill<V, FormatF32<V>, Plan::floats>(t, WeightType::F32, counts);
  fill<V, FormatF16<V>, Plan::floats>(t, WeightType::F16, counts);
  fill<V, FormatBF16<V>, Plan::floats>(t, WeightType::BF16, counts);
  fill<V, FormatQ4_0<V>, Plan::block>(t, WeightType::Q4_0, counts);
  fill<V, FormatQ4_1<V>, Plan::block>(t, WeightType::Q4_1, counts);
  fill<V, FormatQ5_0<V>, Plan::block>(t, WeightType::Q5_0, counts);
  fill<V, FormatQ5_1<V>, Plan::block>(t, WeightType::Q5_1, counts);
  fill<V, FormatQ8_0<V>, Plan::block>(t, WeightType::Q8_0, counts);
  fill<V, FormatIQ4NL<V>, Plan::block>(t, WeightType::IQ4_NL, counts);
  fill<V, FormatQ2K<V>, Plan::super>(t, WeightType::Q2_K, counts);
  fill<V, FormatQ3K<V>, Plan::super>(t, WeightType::Q3_K, counts);
  fill<V, FormatQ4K<V>, Plan::super>(t, WeightType::Q4_K, counts);
  fill<V, FormatQ5K<V>, Plan::super>(t, WeightType::Q5_K, counts);
  fill<V, FormatQ6K<V>, Plan::super>(t, WeightType::Q6_K, counts);
  fill<V, FormatIQ4XS<V>, Plan::super>(t, WeightType::IQ4_XS, counts);
  t.quantize_row = &quantize_row<V>;
  t.rms_norm_row = &rms_norm_row<V>;
  t.swiglu = &swiglu<V>;
  return t;
}
