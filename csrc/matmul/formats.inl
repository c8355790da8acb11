// Part of tile_kernels.inl: formats, what a slice of 256 columns adds to the sums.

// What is asked for beside the products: for every line in use one that will be.
struct LinesAhead {
  enum Streams { none, one, two } streams = none;
  const uint8_t* tile = nullptr;
  const uint8_t* end = nullptr;        // of the tile
  int64_t to_next = 0;                 // bytes from there to the tile to come; 0: there is none
  const uint8_t* this_half = nullptr;  // two: asked for with the tile's first line, of this tile
  const uint8_t* next_half = nullptr;  // and of the tile to come
};

// A format F has, for one tile:
//   place(tile, n_cols, b)                      where slice b begins: its part of the header and its planes
//   add_slice<M, G>(place, act, b, row, part, lane, acc)
//                                               acc[m] += slice b of the tile times row + m of the activations, rows
//                                               part .. part + M - 1 of a group of G
//   kLongSlices                                 whether a slice is too much to ask for at once, for one or two rows
//   kMaxRows                                    the most rows of a group
//   kUnpackRows                                 from how many rows on it is unpacked for all; if ever, also:
//   Wide, unpack(place, n_cols, lane, scratch)  the same format with plain bytes for codes and int32 scales; the
//                                               arithmetic, and so every bit of the result, stays. n_cols: of the slice
template <class V>
struct Place {
  typename V::Bytes header;
  typename V::Bytes body;
  LinesAhead ahead{};
};

// Asks for as many lines as a group reads now, N of them from `lines` on. Two streams: every other line from the second
// half of the tile, the rest from the first half of the next, since memory serves two streams faster than one: on Zen 3
// one row of Q4_K comes to 1.0 of what plain reads take, by one stream to 0.9. An odd N asks for a line twice.
template <int N, class V>
INLINE void fetch_lines(const Place<V>& p, typename V::Bytes lines) {
  if constexpr (V::kOutputs == kTileRows) {
    if (p.ahead.streams != LinesAhead::two) return;
    const int64_t at = (lines - p.ahead.tile) / 2;
    const uint8_t *here = p.ahead.this_half + at, *next = p.ahead.next_half + at;
    if (here >= p.ahead.end) here += p.ahead.to_next;
    UNROLL for (int i = 0; i < (N + 1) / 2; ++i) {
      V::prefetch_l2(here + i * kPlaneBytes);
      V::prefetch_l2(next + i * kPlaneBytes);
    }
  }
}

// One stream, 4 KB ahead: for floats where other formats ask by slices.
template <int G, class V>
INLINE void fetch_line(const Place<V>& p, typename V::Bytes line) {
  if constexpr (V::kOutputs == kTileRows) {
    if (p.ahead.streams != LinesAhead::one) return;
    const uint8_t* at = line + 4096;
    if (at >= p.ahead.end) at += p.ahead.to_next;
    if constexpr (G < V::kMaxRows)
      V::fetch_once(at);
    else
      V::prefetch(at);
  }
}

INLINE int64_t round_to_plane(int64_t n) { return (n + kPlaneBytes - 1) / kPlaneBytes * kPlaneBytes; }

template <class V, int Steps, int MaxCode>
struct PlainCodes {
  using I = typename V::I;
  static constexpr int kSteps = Steps, kPlanes = Steps, kMaxCode = MaxCode;
  template <int S, class Planes>
  static INLINE I code(const Planes& p) {
    return p[S];
  }
};

// After a plane of halves: an int32 scale of each group, then int16 pairs of every two: what block sums are multiplied
// with, and scales in the order that add_group_pair wants.
template <class V, int Groups>
struct PlainScales {
  using I = typename V::I;
  static constexpr int kGroups = Groups, kPlanes = 1 + 2 * Groups;
  typename V::Bytes planes;
  INLINE PlainScales(typename V::Bytes body, int lane) : planes(body + kPlaneBytes + 4 * lane) {}
  template <int P>
  INLINE I pair() const {
    return V::load(planes + (Groups + P) * kPlaneBytes);
  }
};

// The scales that groups and pairs of groups are multiplied with, expanded once for all rows, or read where they lie.
template <class V, class Scales>
struct ExpandedScales {
  typename V::I at[Scales::kGroups];
  INLINE explicit ExpandedScales(const Scales& s) { expand_scales<V>(s, at); }
  INLINE typename V::I operator[](int g) const { return at[g]; }
};
template <class V, class Scales>
struct ExpandedPairs {
  typename V::I at[Scales::kGroups / 2];
  INLINE explicit ExpandedPairs(const Scales& s) { expand_scale_pairs<V>(s, at); }
  INLINE typename V::I operator[](int i) const { return at[i]; }
};
template <class V, int Groups>
struct ExpandedScales<V, PlainScales<V, Groups>> {
  typename V::Bytes planes;
  INLINE explicit ExpandedScales(const PlainScales<V, Groups>& s) : planes(s.planes) {}
  INLINE typename V::I operator[](int g) const { return V::load(planes + g * kPlaneBytes); }
};
template <class V, int Groups>
struct ExpandedPairs<V, PlainScales<V, Groups>> {
  typename V::Bytes planes;
  INLINE explicit ExpandedPairs(const PlainScales<V, Groups>& s) : planes(s.planes + Groups * 3 / 2 * kPlaneBytes) {}
  INLINE typename V::I operator[](int i) const { return V::load(planes + i * kPlaneBytes); }
};

template <class V, class Codes, int S = 0>
INLINE uint8_t* unpack_codes(const uint8_t* planes, uint8_t* out) {
  if constexpr (S < Codes::kSteps) {
    V::store(out, Codes::template code<S>(PlanesInMemory<V>(planes)));
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
  static constexpr int kWideCodes = PlainScales<V, kGroups>::kPlanes, kSliceBytes = BodyPlanes * kPlaneBytes;
  // Two groups share one multiplication with their scales, if their sums are small enough.
  static constexpr bool kPairs = V::kPairs && kMaxCode <= 63 && (Offset == 0 || Offset == kSixBitOffset);
  // The sum of a group is kept in 16 bits, if it is small enough.
  static constexpr bool kLongSums = V::kLongSums && kMaxCode > 15 && kMaxCode <= 63;
  static constexpr int64_t kUnpackRows = V::unpack_rows(kMaxCode, true);
  static constexpr bool kLongSlices = false;
  static constexpr int kMaxRows = V::kMaxRows;
  using Wide = SuperFormat<V, PlainCodes<V, 64 / kGroups, kMaxCode>, PlainScales<V, kGroups>, kWideCodes,
                           kWideCodes + 64, Offset, Min, true>;

  static INLINE Place<V> place(typename V::Bytes tile, int64_t n_cols, int64_t b) {
    const int64_t header = InlineD ? 0 : round_to_plane(n_cols / kSuperblock * 32);
    return {tile + b * 32, tile + header + b * BodyPlanes * kPlaneBytes};
  }

  template <int M, int G>
  static INLINE void add_slice(Place<V> p, const Activations& act, int64_t b, int64_t row, int part, int lane,
                               Fl (&acc)[M]) {
    const int64_t at = b * act.n_rows + row;
    const int8_t* q = act.q + (at - part) * kSuperblock + part * 4;
    const float* d_act = act.d + at;
    fetch_lines<CodePlane>(p, p.body);
    const S scales(p.body, lane);
    I total[M];
    UNROLL for (int m = 0; m < M; ++m) total[m] = V::zero();

    if constexpr (Offset != 0 && !V::kSums32) {
      add_block_sums<V>(scales, kGroups == 16 ? act.bsum16 + at * 16 : act.bsum32 + at * 8, total);
      UNROLL for (int m = 0; m < M; ++m) total[m] = V::mul(total[m], V::set1(-Offset));
    }

    typename V::Bytes planes = p.body + CodePlane * kPlaneBytes + 4 * lane;
    bool paired = false;
    if constexpr (kPairs && M >= kPairRows) {
      paired = sums_fit<M>(act, at);
      if (paired) add_pairs<M, G>(p, scales, planes, q, act.pair_start + at * 8, total);
    }
    const int32_t* minus_sum = kGroups == 16 ? act.minus_sum16 + at * 16 : act.minus_sum32 + at * 8;
    bool fits = false;
    if constexpr (kLongSums && M >= kPairRows) fits = sums_fit<M>(act, at);
    if (fits)
      add_groups<M, G, kLongSums>(p, scales, planes, q, minus_sum, total);
    else if (!paired)
      add_groups<M, G, false>(p, scales, planes, q, minus_sum, total);

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

  // Whether the sums of all groups of these rows fit 16 bits, whatever the codes are. Of Gaussian activations they do
  // nearly always (Q4_K; long sums) or mostly (Q5_K, Q6_K).
  template <int M>
  static INLINE bool sums_fit(const Activations& act, int64_t at) {
    constexpr int kFromOffset = Offset > kMaxCode - Offset ? Offset : kMaxCode - Offset;
    constexpr int kMost = kLongSums ? kMaxCode : kFromOffset;
    if constexpr (!kLongSums && kMost * 127 * kGroupCols <= 32767) return true;
    const int16_t* reach = (kGroups == 16 ? act.reach16 : act.reach32) + at;
    bool fit = true;
    UNROLL for (int m = 0; m < M; ++m) fit &= reach[m] <= 32767 / kMost;
    return fit;
  }

  template <int M, int G>
  static INLINE void add_pairs(const Place<V>& p, const S& scales, typename V::Bytes planes, const int8_t* q,
                               const int32_t* start, I (&total)[M]) {
    const ExpandedPairs<V, S> pairs(scales);
    for (int i = 0; i < kGroups / 2; ++i, planes += 2 * C::kPlanes * kPlaneBytes, q += 2 * kGroupCols * G) {
      fetch_lines<2 * C::kPlanes>(p, planes);
      add_group_pair<V, C, M, G, Offset>(planes, q, pairs[i], start + i, kGroups / 2, total);
    }
  }

  template <int M, int G, bool Fits>
  static INLINE void add_groups(const Place<V>& p, const S& scales, typename V::Bytes planes, const int8_t* q,
                                const int32_t* minus_sum, I (&total)[M]) {
    const ExpandedScales<V, S> scale(scales);
    if constexpr (kPaired) {
      for (int g = 0; g < kGroups; g += 2, planes += 3 * kPlaneBytes, q += 2 * kGroupCols * G) {
        fetch_lines<3>(p, planes);
        add_group<V, ThreeBitCodes<V, 0>, M, G, Offset>(planes, q, scale[g], minus_sum + g, kGroups, total);
        add_group<V, ThreeBitCodes<V, 1>, M, G, Offset>(planes, q + kGroupCols * G, scale[g + 1], minus_sum + g + 1,
                                                        kGroups, total);
      }
    } else {
      constexpr int kAtOnce = C::kPlanes == 1 ? 2 : 1;  // groups whose lines are asked for together
      for (int g = 0; g < kGroups; ++g, planes += C::kPlanes * kPlaneBytes, q += kGroupCols * G) {
        if (g % kAtOnce == 0) fetch_lines<kAtOnce * C::kPlanes>(p, planes);
        add_group<V, C, M, G, Offset, Fits>(planes, q, scale[g], minus_sum + g, kGroups, total);
      }
    }
  }

  static INLINE Place<V> unpack(Place<V> p, int64_t, int lane, uint8_t* out) {
    std::memcpy(out + 2 * lane, (InlineD ? p.body : p.header) + 2 * lane, 2 * V::lanes);
    if constexpr (Min) std::memcpy(out + 32 + 2 * lane, p.body + 32 + 2 * lane, 2 * V::lanes);
    const S scales(p.body, lane);
    uint8_t* plane = out + kPlaneBytes + 4 * lane;
    const ExpandedScales<V, S> scale(scales);
    for (int g = 0; g < kGroups; ++g, plane += kPlaneBytes) V::store(plane, scale[g]);
    unpack_pairs<V>(scales, plane);
    if constexpr (kPairs) {
      plane += kGroups / 2 * kPlaneBytes;
      const ExpandedPairs<V, S> pairs(scales);
      for (int i = 0; i < kGroups / 2; ++i, plane += kPlaneBytes) V::store(plane, pairs[i]);
    }
    typename V::Bytes planes = p.body + CodePlane * kPlaneBytes + 4 * lane;
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
using FormatQ6K = SuperFormat<V, SixBitCodes<V>, ScalesQ6K<V>, 4, 52, kSixBitOffset, false, false>;
template <class V>
using FormatQ2K = SuperFormat<V, TwoBitCodes<V>, ScalesQ2K<V>, 5, 21, 0, true, true>;
template <class V>
using FormatQ3K = SuperFormat<V, void, ScalesQ3K<V>, 3, 27, 4, false, false>;
template <class V>
using FormatIQ4XS = SuperFormat<V, TableCodes<V>, ScalesIQ4XS<V>, 2, 34, V::kSignedOffset, false, true>;

// Formats with blocks of 32 columns: a slice begins with float16 d[16] and, with mins, m[16] of each of its blocks.
template <class V_, class C, bool Min, int Offset>
struct BlockFormat {
  using V = V_;
  using I = typename V::I;
  using Fl = typename V::F;
  static constexpr int kHeader = Min ? 64 : 32;
  static constexpr int kSliceBytes = 8 * (kHeader + C::kPlanes * kPlaneBytes);
  static constexpr bool kPlain = C::kPlanes == C::kSteps, kLongSlices = false;  // nothing to unpack
  static constexpr int64_t kUnpackRows = kPlain ? kNeverUnpack : V::unpack_rows(C::kMaxCode, false);
  static constexpr int kMaxRows = V::kMaxRows;
  using Wide = BlockFormat<V, PlainCodes<V, C::kSteps, C::kMaxCode>, Min, Offset>;

  static INLINE Place<V> place(typename V::Bytes tile, int64_t n_cols, int64_t b) {
    const int64_t n_blocks = n_cols / 32 - b * 8 < 8 ? n_cols / 32 - b * 8 : 8;
    const typename V::Bytes slice = tile + b * kSliceBytes;
    return {slice, slice + round_to_plane(n_blocks * kHeader)};
  }

  template <int M, int G>
  static INLINE void add_slice(Place<V> p, const Activations& act, int64_t b, int64_t row, int part, int lane,
                               Fl (&acc)[M]) {
    const int n_blocks = static_cast<int>(act.n_cols / 32 - b * 8 < 8 ? act.n_cols / 32 - b * 8 : 8);
    const int64_t at = b * act.n_rows + row;
    const int8_t* q = act.q + (at - part) * kSuperblock + part * 4;
    const float* d_act = act.d + at * 8;
    const int32_t* minus_sum = act.minus_sum32 + at * 8;
    typename V::Bytes header = p.header + 2 * lane, planes = p.body + 4 * lane;
    fetch_lines<8 * kHeader / kPlaneBytes>(p, p.header);
    for (int i = 0; i < n_blocks;
         ++i, header += kHeader, planes += C::kPlanes * kPlaneBytes, q += 32 * G, ++d_act, ++minus_sum) {
      fetch_lines<C::kPlanes>(p, planes);
      I total[M];
      UNROLL for (int m = 0; m < M; ++m) total[m] =
          Offset != 0 && !V::kSums32 ? V::template shift<log2_of(Offset)>(V::set1(minus_sum[m * 8])) : V::zero();
      add_group<V, C, M, G, Offset>(planes, q, V::unit_scale(), minus_sum, 8, total);
      const Fl d = V::load_half(header);
      UNROLL for (int m = 0; m < M; ++m) {
        Fl sum = V::mul_f(V::to_f(total[m]), d);
        if constexpr (Min) sum = V::fnma(V::load_half(header + 32), V::to_f(V::set1(minus_sum[m * 8])), sum);
        acc[m] = V::fma(sum, V::set1_f(d_act[m * 8]), acc[m]);
      }
    }
  }

  static INLINE Place<V> unpack(Place<V> p, int64_t n_cols, int lane, uint8_t* out) {
    const int64_t n_blocks = n_cols / 32;
    std::memcpy(out, p.header, static_cast<size_t>(n_blocks) * kHeader);
    uint8_t* const body = out + 8 * kHeader;
    typename V::Bytes planes = p.body + 4 * lane;
    uint8_t* codes = body + 4 * lane;
    for (int64_t i = 0; i < n_blocks; ++i, planes += C::kPlanes * kPlaneBytes)
      codes = unpack_codes<V, C>(planes, codes);
    return {out, body};
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

// Floats: sixteen weights of a column lie together. A slice is long: asked for at once for one row, its lines would
// keep those in use waiting (0.9 of the speed of not asking, F16 on Zen 5; line by line 4 KB ahead 1.1).
template <class V_, GGMLType Type>
struct FloatFormat {
  using V = V_;
  using Fl = typename V::F;
  static constexpr int kBytes = Type == GGMLType::F32 ? 4 : 2, kSliceBytes = kSuperblock * kTileRows * kBytes;
  static constexpr int kLineCols = kPlaneBytes > kTileRows* kBytes ? kPlaneBytes / (kTileRows * kBytes) : 1;
  static constexpr int64_t kUnpackRows = Type == GGMLType::F32 ? kNeverUnpack : V::kWidenFloatRows;
  static constexpr bool kLongSlices = true;
  static constexpr int kMaxRows = V::kMaxFloatRows;
  using Wide = FloatFormat<V, GGMLType::F32>;

  static INLINE Place<V> place(typename V::Bytes tile, int64_t, int64_t b) { return {tile, tile + b * kSliceBytes}; }

  static INLINE Fl weight(typename V::Bytes p) {
    if constexpr (Type == GGMLType::F32)
      return V::as_f(V::load(p));
    else if constexpr (Type == GGMLType::F16)
      return V::load_half(p);
    else
      return V::as_f(V::template shift<16>(V::load_u16(p)));
  }

  template <int M, int G>
  static INLINE void add_slice(Place<V> p, const Activations& act, int64_t b, int64_t row, int /*part*/, int lane,
                               Fl (&acc)[M]) {
    const float* x = act.x + row * act.ld + b * kSuperblock;
    const int64_t n = act.n_cols - b * kSuperblock < kSuperblock ? act.n_cols - b * kSuperblock : kSuperblock;
    typename V::Bytes w = p.body + kBytes * lane;
    for (int64_t k = 0; k < n; ++k, w += kBytes * kTileRows) {
      if (k % kLineCols == 0) {
        fetch_line<G>(p, w);
        fetch_lines<1>(p, w);
      }
      const Fl column = weight(w);
      UNROLL for (int m = 0; m < M; ++m) acc[m] = V::fma(column, V::set1_f(x[m * act.ld + k]), acc[m]);
    }
  }

  static INLINE Place<V> unpack(Place<V> p, int64_t n_cols, int lane, uint8_t* out) {
    for (int64_t k = 0; k < n_cols; ++k)
      V::store_f(reinterpret_cast<float*>(out) + k * kTileRows + lane,
                 weight(p.body + (k * kTileRows + lane) * kBytes));
    return {out, out};
  }
};

template <class V>
using FormatF32 = FloatFormat<V, GGMLType::F32>;
template <class V>
using FormatF16 = FloatFormat<V, GGMLType::F16>;
template <class V>
using FormatBF16 = FloatFormat<V, GGMLType::BF16>;
