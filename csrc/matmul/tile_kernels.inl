// The matrix-product kernels, written once over a vector type V and included by each instruction set's file inside its
// target region; that file defines V, INLINE and UNROLL first. No include guard and no includes for that reason.
//
// V has `lanes` 32-bit lanes (1, 8 or 16); a plane of sixteen lanes is 16 / lanes vectors, worked off one after
// another. V::dot<MaxCode>(acc, codes, act) adds the products of four codes and four activations per lane;
// V::flush_every gives how many steps fit its accumulator, V::fold moves an accumulator, times the scale of its group,
// into an int32 total. Signed codes (Q8_0, IQ4) are passed through V::from_signed: where the hardware multiplies
// unsigned by signed bytes it adds 128, which V::kSignedOffset and the block sums take back.

// ---- codes: from planes to the bytes of one step

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

constexpr int log2_of(int n) { return n <= 1 ? 0 : 1 + log2_of(n / 2); }

// total[m] += scale * sum over the group's steps of codes * activations, from step S on; acc starts at zero.
template <class V, class Codes, int M, int S = 0>
INLINE void add_steps(const uint8_t* planes, const int8_t* q, typename V::I scale, typename V::I (&acc)[M],
                      typename V::I (&total)[M]) {
  if constexpr (S < Codes::kSteps) {
    constexpr int kMax = Codes::kMaxCode, kEvery = V::template flush_every<kMax>();
    const typename V::I w = Codes::template code<S>(planes);
    UNROLL for (int m = 0; m < M; ++m) acc[m] = V::template dot<kMax>(acc[m], w, q + (S * M + m) * 4);
    if constexpr ((S + 1) % kEvery == 0 || S + 1 == Codes::kSteps) {
      UNROLL for (int m = 0; m < M; ++m) {
        total[m] = V::template fold<kMax>(total[m], acc[m], scale);
        acc[m] = V::zero();
      }
    }
    add_steps<V, Codes, M, S + 1>(planes, q, scale, acc, total);
  }
}

// The same for a whole group. Codes that carry an offset start from -offset times the sum of the group's activations,
// which `minus_sum` holds for row m at [m * stride]; where sums are not 32-bit the caller has taken it back already.
template <class V, class Codes, int M, int Offset>
INLINE void add_group(const uint8_t* planes, const int8_t* q, typename V::I scale, const int32_t* minus_sum, int stride,
                      typename V::I (&total)[M]) {
  typename V::I acc[M];
  if constexpr (Offset != 0 && V::kSums32) {
    UNROLL for (int m = 0; m < M; ++m) acc[m] = V::template shift<log2_of(Offset)>(V::set1(minus_sum[m * stride]));
  } else {
    UNROLL for (int m = 0; m < M; ++m) acc[m] = V::zero();
  }
  add_steps<V, Codes, M>(planes, q, scale, acc, total);
}

// ---- scales of the K formats

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

// ---- formats: what a slice of 256 columns adds to the sums

// A format F has, for one tile:
//   place(tile, n_cols, b)                      where slice b begins: its part of the header and its planes
//   add_slice<M>(place, act, b, row, lane, acc) acc[m] += slice b of the tile times row + m of the activations
//   Wide                                        the same format unpacked: plain bytes for codes, int32 scales, float
//   weights unpack(place, n, lane, scratch)             slice to Wide; the arithmetic, and so every bit of the result,
//   stays
struct Place {
  const uint8_t* header;
  const uint8_t* body;
};

INLINE int64_t round_to_plane(int64_t n) { return (n + kPlaneBytes - 1) / kPlaneBytes * kPlaneBytes; }

template <class V, int Steps, int MaxCode>
struct PlainCodes {
  using I = typename V::I;
  static constexpr int kSteps = Steps, kPlanes = Steps, kMaxCode = MaxCode;
  template <int S>
  static INLINE I code(const uint8_t* p) {
    return V::load(p + S * kPlaneBytes);
  }
};

template <class V, int Groups>
struct PlainScales {  // after a plane of halves: an int32 scale of each group, then int16 pairs of every two
  using I = typename V::I;
  static constexpr int kGroups = Groups;
  const uint8_t* planes;
  INLINE PlainScales(const uint8_t* body, int lane) : planes(body + kPlaneBytes + 4 * lane) {}
  template <int G>
  INLINE I scale() const {
    return V::load(planes + G * kPlaneBytes);
  }
  template <int P>
  INLINE I pair() const {
    return V::load(planes + (Groups + P) * kPlaneBytes);
  }
};

template <class V, class Codes, int S = 0>
INLINE uint8_t* unpack_codes(const uint8_t* planes, uint8_t* out) {
  if constexpr (S < Codes::kSteps) {
    V::store(out, Codes::template code<S>(planes));
    return unpack_codes<V, Codes, S + 1>(planes, out + kPlaneBytes);
  } else {
    return out;
  }
}

template <class V, class Scales, int P = 0>
INLINE void unpack_pairs(const Scales& s, uint8_t* out) {
  if constexpr (P < Scales::kGroups / 2) {
    V::store(out + P * kPlaneBytes, s.template pair<P>());
    unpack_pairs<V, Scales, P + 1>(s, out);
  }
}

// K formats. The body begins with a plane of float16 d and dmin if InlineD, else d lies in the header. Block sums are
// multiplied with mins (Min: dmin times them is subtracted) or with scales (the offset of the codes is taken back).
template <class V_, class C, class S, int CodePlane, int BodyPlanes, int Offset, bool Min, bool InlineD>
struct SuperFormat {
  using V = V_;
  using I = typename V::I;
  using Fl = typename V::F;
  static constexpr int kGroups = S::kGroups, kGroupCols = kSuperblock / kGroups;
  static constexpr bool kPaired = std::is_void_v<C>;  // Q3_K: two groups share a plane
  static constexpr int kMaxCode = [] {
    if constexpr (kPaired)
      return 7;
    else
      return C::kMaxCode;
  }();
  static constexpr int kWideCodes = 1 + kGroups + kGroups / 2, kSliceBytes = BodyPlanes * kPlaneBytes;
  static constexpr int kPrefetchBytes = 0;  // one forward stream: the hardware's prefetcher does better alone
  using Wide = SuperFormat<V, PlainCodes<V, 64 / kGroups, kMaxCode>, PlainScales<V, kGroups>, kWideCodes,
                           kWideCodes + 64, Offset, Min, true>;

  static INLINE Place place(const uint8_t* tile, int64_t n_cols, int64_t b) {
    const int64_t header = InlineD ? 0 : round_to_plane(n_cols / kSuperblock * 32);
    return {tile + b * 32, tile + header + b * BodyPlanes * kPlaneBytes};
  }

  template <int M>
  static INLINE void add_slice(Place p, const Activations& act, int64_t b, int64_t row, int lane, Fl (&acc)[M]) {
    const int64_t at = b * act.n_rows + row;
    const int8_t* q = act.q + at * kSuperblock;
    const float* d_act = act.d + at;
    const S scales(p.body, lane);
    I scale[kGroups], total[M];
    expand_scales<V>(scales, scale);
    UNROLL for (int m = 0; m < M; ++m) total[m] = V::zero();

    if constexpr (Offset != 0 && !V::kSums32) {
      add_block_sums<V>(scales, kGroups == 16 ? act.bsum16 + at * 16 : act.bsum32 + at * 8, total);
      UNROLL for (int m = 0; m < M; ++m) total[m] = V::mul(total[m], V::set1(-Offset));
    }

    const int32_t* minus_sum = kGroups == 16 ? act.minus_sum16 + at * 16 : act.minus_sum32 + at * 8;
    const uint8_t* planes = p.body + CodePlane * kPlaneBytes + 4 * lane;
    if constexpr (kPaired) {
      for (int g = 0; g < kGroups; g += 2, planes += 3 * kPlaneBytes, q += 2 * kGroupCols * M) {
        add_group<V, ThreeBitCodes<V, 0>, M, Offset>(planes, q, scale[g], minus_sum + g, kGroups, total);
        add_group<V, ThreeBitCodes<V, 1>, M, Offset>(planes, q + kGroupCols * M, scale[g + 1], minus_sum + g + 1,
                                                     kGroups, total);
      }
    } else {
      for (int g = 0; g < kGroups; ++g, planes += C::kPlanes * kPlaneBytes, q += kGroupCols * M)
        add_group<V, C, M, Offset>(planes, q, scale[g], minus_sum + g, kGroups, total);
    }

    const Fl d = V::load_half((InlineD ? p.body : p.header) + 2 * lane);
    Fl sum[M];
    UNROLL for (int m = 0; m < M; ++m) sum[m] = V::mul_f(V::to_f(total[m]), d);
    if constexpr (Min) {  // after the long loop, where its registers are free again
      const Fl dmin = V::load_half(p.body + 32 + 2 * lane);
      UNROLL for (int m = 0; m < M; ++m) total[m] = V::zero();
      add_block_sums<V>(scales, kGroups == 16 ? act.bsum16 + at * 16 : act.bsum32 + at * 8, total);
      UNROLL for (int m = 0; m < M; ++m) sum[m] = V::fnma(V::to_f(total[m]), dmin, sum[m]);
    }
    UNROLL for (int m = 0; m < M; ++m) acc[m] = V::fma(sum[m], V::set1_f(d_act[m]), acc[m]);
  }

  static INLINE Place unpack(Place p, int64_t, int lane, uint8_t* out) {
    std::memcpy(out + 2 * lane, (InlineD ? p.body : p.header) + 2 * lane, 2 * V::lanes);
    if constexpr (Min) std::memcpy(out + 32 + 2 * lane, p.body + 32 + 2 * lane, 2 * V::lanes);
    const S scales(p.body, lane);
    I scale[kGroups];
    expand_scales<V>(scales, scale);
    for (int g = 0; g < kGroups; ++g) V::store(out + (1 + g) * kPlaneBytes + 4 * lane, scale[g]);
    unpack_pairs<V>(scales, out + (1 + kGroups) * kPlaneBytes + 4 * lane);
    const uint8_t* planes = p.body + CodePlane * kPlaneBytes + 4 * lane;
    uint8_t* codes = out + kWideCodes * kPlaneBytes + 4 * lane;
    if constexpr (kPaired) {
      for (int g = 0; g < kGroups; g += 2, planes += 3 * kPlaneBytes) {
        codes = unpack_codes<V, ThreeBitCodes<V, 0>>(planes, codes);
        codes = unpack_codes<V, ThreeBitCodes<V, 1>>(planes, codes);
      }
    } else {
      for (int g = 0; g < kGroups; ++g, planes += C::kPlanes * kPlaneBytes) codes = unpack_codes<V, C>(planes, codes);
    }
    return {out, out};
  }
};

template <class V>
using FormatQ4K = SuperFormat<V, NibbleCodes<V>, ScalesQ4K<V>, 4, 36, 0, true, true>;
template <class V>
using FormatQ5K = SuperFormat<V, FiveBitCodes<V>, ScalesQ4K<V>, 4, 44, 0, true, true>;
template <class V>
using FormatQ6K = SuperFormat<V, SixBitCodes<V>, ScalesQ6K<V>, 4, 52, 32, false, false>;
template <class V>
using FormatQ2K = SuperFormat<V, TwoBitCodes<V>, ScalesQ2K<V>, 5, 21, 0, true, true>;
template <class V>
using FormatQ3K = SuperFormat<V, void, ScalesQ3K<V>, 3, 27, 4, false, false>;
template <class V>
using FormatIQ4XS = SuperFormat<V, TableCodes<V>, ScalesIQ4XS<V>, 2, 34, V::kSignedOffset, false, true>;

// Formats with blocks of 32 columns: float16 d[16] and, with mins, m[16] of every block in the header.
template <class V_, class C, bool Min, int Offset>
struct BlockFormat {
  using V = V_;
  using I = typename V::I;
  using Fl = typename V::F;
  static constexpr int kHeader = Min ? 64 : 32, kSliceBytes = 8 * C::kPlanes * kPlaneBytes;
  static constexpr int kPrefetchBytes = 4608;  // two streams, scales and codes: +12 % decode for Q4_0 on Zen 4
  using Wide = BlockFormat<V, PlainCodes<V, 8, C::kMaxCode>, Min, Offset>;

  static INLINE Place place(const uint8_t* tile, int64_t n_cols, int64_t b) {
    return {tile + b * 8 * kHeader, tile + round_to_plane(n_cols / 32 * kHeader) + b * kSliceBytes};
  }

  template <int M>
  static INLINE void add_slice(Place p, const Activations& act, int64_t b, int64_t row, int lane, Fl (&acc)[M]) {
    const int n_blocks = static_cast<int>(act.n_cols / 32 - b * 8 < 8 ? act.n_cols / 32 - b * 8 : 8);
    const int64_t at = b * act.n_rows + row;
    const int8_t* q = act.q + at * kSuperblock;
    const float* d_act = act.d + at * 8;
    const int32_t* minus_sum = act.minus_sum32 + at * 8;
    const uint8_t* header = p.header + 2 * lane;
    const uint8_t* planes = p.body + 4 * lane;
    for (int i = 0; i < n_blocks;
         ++i, header += kHeader, planes += C::kPlanes * kPlaneBytes, q += 32 * M, ++d_act, ++minus_sum) {
      I total[M];
      UNROLL for (int m = 0; m < M; ++m) total[m] =
          Offset != 0 && !V::kSums32 ? V::set1(Offset * minus_sum[m * 8]) : V::zero();
      add_group<V, C, M, Offset>(planes, q, V::unit_scale(), minus_sum, 8, total);
      const Fl d = V::load_half(header);
      UNROLL for (int m = 0; m < M; ++m) {
        Fl sum = V::mul_f(V::to_f(total[m]), d);
        if constexpr (Min) sum = V::fnma(V::load_half(header + 32), V::to_f(V::set1(minus_sum[m * 8])), sum);
        acc[m] = V::fma(sum, V::set1_f(d_act[m * 8]), acc[m]);
      }
    }
  }

  static INLINE Place unpack(Place p, int64_t n, int lane, uint8_t* out) {
    const uint8_t* planes = p.body + 4 * lane;
    uint8_t* codes = out + 4 * lane;
    for (int64_t i = 0; i < n / 32; ++i, planes += C::kPlanes * kPlaneBytes) codes = unpack_codes<V, C>(planes, codes);
    return {p.header, out};
  }
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

// Floats: sixteen weights of a column lie together.
template <class V_, WeightType Type>
struct FloatFormat {
  using V = V_;
  using Fl = typename V::F;
  static constexpr int kBytes = Type == WeightType::F32 ? 4 : 2, kSliceBytes = kSuperblock * kTileRows * kBytes;
  static constexpr int kPrefetchBytes = 0;
  using Wide = FloatFormat<V, WeightType::F32>;

  static INLINE Place place(const uint8_t* tile, int64_t, int64_t b) { return {nullptr, tile + b * kSliceBytes}; }

  static INLINE Fl weight(const uint8_t* p) {
    if constexpr (Type == WeightType::F32)
      return V::load_f(reinterpret_cast<const float*>(p));
    else if constexpr (Type == WeightType::F16)
      return V::load_half(p);
    else
      return V::as_f(V::template shift<16>(V::load_u16(p)));
  }

  template <int M>
  static INLINE void add_slice(Place p, const Activations& act, int64_t b, int64_t row, int lane, Fl (&acc)[M]) {
    const float* x = act.x + row * act.ld + b * kSuperblock;
    const int64_t n = act.n_cols - b * kSuperblock < kSuperblock ? act.n_cols - b * kSuperblock : kSuperblock;
    const uint8_t* w = p.body + kBytes * lane;
    for (int64_t k = 0; k < n; ++k, w += kBytes * kTileRows) {
      const Fl column = weight(w);
      UNROLL for (int m = 0; m < M; ++m) acc[m] = V::fma(column, V::set1_f(x[m * act.ld + k]), acc[m]);
    }
  }

  static INLINE Place unpack(Place p, int64_t n, int lane, uint8_t* out) {
    for (int64_t k = 0; k < n; ++k)
      V::store_f(reinterpret_cast<float*>(out) + k * kTileRows + lane,
                 weight(p.body + (k * kTileRows + lane) * kBytes));
    return {nullptr, out};
  }
};

// ---- kernels: a tile times rows of activations

// Few rows: one pass over the packed tile, the sums stay in registers.
template <class F, int M>
INLINE void add_tile(const TileArgs& a, int64_t row, int lane) {
  using V = typename F::V;
  const Activations& act = *a.act;
  const int64_t n_slices = (act.n_cols + kSuperblock - 1) / kSuperblock;
  typename V::F acc[M];
  UNROLL for (int m = 0; m < M; ++m) acc[m] = V::zero_f();
  for (int64_t b = 0; b < n_slices; ++b) {
    const Place p = F::place(a.tile, act.n_cols, b);
    if constexpr (F::kPrefetchBytes > 0)
      for (int i = 0; i < F::kSliceBytes; i += kPlaneBytes) V::prefetch_far(p.body + F::kPrefetchBytes + i);
    F::template add_slice<M>(p, act, b, a.row + row, lane, acc);
  }
  UNROLL for (int m = 0; m < M; ++m) V::store_f(a.out + (row + m) * kTileRows + lane, acc[m]);
}

// Many rows: slice by slice, unpacked once in the first-level cache for all of them, the sums in `out`.
template <class F, int M>
INLINE void add_wide_slice(Place p, const TileArgs& a, int64_t b, int64_t row, int lane) {
  using V = typename F::V;
  typename V::F acc[M];
  float* out = a.out + row * kTileRows + lane;
  UNROLL for (int m = 0; m < M; ++m) acc[m] = V::load_f(out + m * kTileRows);
  F::template add_slice<M>(p, *a.act, b, a.row + row, lane, acc);
  UNROLL for (int m = 0; m < M; ++m) V::store_f(out + m * kTileRows, acc[m]);
}

// Calls f<M>(row) for groups of rows that cover [0, n), M at most what the registers hold.
#define FOR_ROW_GROUPS(V, n, CALL)                 \
  do {                                             \
    int64_t row = 0;                               \
    if constexpr (V::kMaxRows >= 12)               \
      for (; (n) - row >= 12; row += 12) CALL(12); \
    if constexpr (V::kMaxRows >= 8)                \
      for (; (n) - row >= 8; row += 8) CALL(8);    \
    if constexpr (V::kMaxRows >= 4)                \
      for (; (n) - row >= 4; row += 4) CALL(4);    \
    if constexpr (V::kMaxRows >= 2)                \
      for (; (n) - row >= 2; row += 2) CALL(2);    \
    for (; row < (n); ++row) CALL(1);              \
  } while (0)

template <class F>
void tile_kernel(const TileArgs& a) noexcept {
  using V = typename F::V;
  using Wide = typename F::Wide;
  const Activations& act = *a.act;
  if (a.n_rows < kWideRows) {
    for (int lane = 0; lane < kTileRows; lane += V::lanes) {
#define CALL(M) add_tile<F, M>(a, row, lane)
      FOR_ROW_GROUPS(V, a.n_rows, CALL);
#undef CALL
    }
    return;
  }
  alignas(64) uint8_t scratch[Wide::kSliceBytes];
  for (int64_t i = 0; i < a.n_rows * kTileRows; i += V::lanes) V::store_f(a.out + i, V::zero_f());
  for (int64_t b = 0; b * kSuperblock < act.n_cols; ++b) {
    const int64_t n = act.n_cols - b * kSuperblock < kSuperblock ? act.n_cols - b * kSuperblock : kSuperblock;
    // The next slice (after the last one, usually the next tile) comes from memory while this one is multiplied.
    const uint8_t* next = F::place(a.tile, act.n_cols, b + 1).body;
    for (int i = 0; i < F::kSliceBytes; i += kPlaneBytes) V::prefetch(next + i);
    for (int lane = 0; lane < kTileRows; lane += V::lanes) {
      const Place p = F::unpack(F::place(a.tile, act.n_cols, b), n, lane, scratch);
#define CALL(M) add_wide_slice<Wide, M>(p, a, b, row, lane)
      FOR_ROW_GROUPS(V, a.n_rows, CALL);
#undef CALL
    }
  }
}

// ---- rows of activations

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
  const RowGroup group = row_group(act.n_rows, V::kMaxRows, row);
  for (int64_t k = 0, slice = 0; k < act.n_cols; k += kSuperblock, ++slice) {
    const int64_t at = slice * act.n_rows + row;
    const int n = static_cast<int>(act.n_cols - k < kSuperblock ? act.n_cols - k : kSuperblock);
    alignas(64) int8_t q[kSuperblock];
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
        act.minus_sum16[at * 16 + i / 16] = -s0;
        act.minus_sum16[at * 16 + i / 16 + 1] = -s1;
      }
      act.minus_sum32[at * 8 + i / 32] = -(s0 + s1);
    }
    int8_t* to = act.q + (slice * act.n_rows + group.first) * kSuperblock + (row - group.first) * 4;
    for (int i = 0; i < n; i += 4, to += 4 * group.size) std::memcpy(to, q + i, 4);
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

template <class V>
MatmulKernels build_kernels() {
  MatmulKernels t{};
  const auto set = [&](WeightType type, MatmulKernels::TileFn fn) {
    t.tile[packed_format_index(static_cast<int>(type))] = fn;
  };
  set(WeightType::F32, &tile_kernel<FloatFormat<V, WeightType::F32>>);
  set(WeightType::F16, &tile_kernel<FloatFormat<V, WeightType::F16>>);
  set(WeightType::BF16, &tile_kernel<FloatFormat<V, WeightType::BF16>>);
  set(WeightType::Q4_0, &tile_kernel<FormatQ4_0<V>>);
  set(WeightType::Q4_1, &tile_kernel<FormatQ4_1<V>>);
  set(WeightType::Q5_0, &tile_kernel<FormatQ5_0<V>>);
  set(WeightType::Q5_1, &tile_kernel<FormatQ5_1<V>>);
  set(WeightType::Q8_0, &tile_kernel<FormatQ8_0<V>>);
  set(WeightType::IQ4_NL, &tile_kernel<FormatIQ4NL<V>>);
  set(WeightType::Q2_K, &tile_kernel<FormatQ2K<V>>);
  set(WeightType::Q3_K, &tile_kernel<FormatQ3K<V>>);
  set(WeightType::Q4_K, &tile_kernel<FormatQ4K<V>>);
  set(WeightType::Q5_K, &tile_kernel<FormatQ5K<V>>);
  set(WeightType::Q6_K, &tile_kernel<FormatQ6K<V>>);
  set(WeightType::IQ4_XS, &tile_kernel<FormatIQ4XS<V>>);
  t.max_rows = V::kMaxRows;
  t.quantize_row = &quantize_row<V>;
  t.rms_norm_row = &rms_norm_row<V>;
  t.swiglu = &swiglu<V>;
  return t;
}
