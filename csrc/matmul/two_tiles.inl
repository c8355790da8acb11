// Two tiles side by side as one vector type over V, for many rows on processors where two products start per cycle but
// no more loads than that (Zen 5, Intel's server cores). One tile times twelve rows loads 13 values for 12 products, so
// loads limit it; two tiles times six rows load 8, since a broadcast meets both tiles. What limits it then is the
// number of instructions, about five of which such a core sustains per cycle: hence codes unpacked once for all rows.
// Measured on Zen 5, tiles in the second-level cache, 192 rows, G products per second of a peak of 524, before and
// after: Q4_K 393 -> 404, Q5_K 388 -> 407, Q6_K 347 -> 383, Q8_0 356 -> 385, Q4_0 358 -> 400, F16 115 -> 122.

template <class V>
struct TwoTiles {
  struct I {
    typename V::I a, b;
  };
  struct F {
    typename V::F a, b;
  };
  struct Bytes {  // a place in the first tile, and how far the same place in the second one is
    const uint8_t* first;
    int64_t second;
    INLINE Bytes operator+(int64_t n) const { return {first + n, second}; }
    INLINE Bytes& operator+=(int64_t n) {
      first += n;
      return *this;
    }
  };
  static constexpr int lanes = V::lanes, kOutputs = 2 * kTileRows, kMaxRows = V::kMaxRows, kFewRows = 0,
                       kMaxFloatRows = V::kMaxFloatRows, kSignedOffset = V::kSignedOffset;
  static constexpr int64_t kWidenFloatRows = kNeverUnpack;
  static constexpr bool kSums32 = V::kSums32, kPairs = V::kPairs, kLongSums = V::kLongSums;
  static constexpr int64_t unpack_rows(int max_code, bool superblocks) {
    return superblocks && max_code <= 63 ? 0 : kNeverUnpack;
  }
  // Two times six rows are twelve sums, twelve totals, two vectors of codes and a broadcast; with two times eight the
  // totals go through memory, and a store of 64 bytes takes the place of two products.
  static constexpr int rows_at_once(int group) { return group == 12 ? 6 : group < 4 ? group : 4; }

  static INLINE Bytes tile(const TileArgs& t) { return {t.tile, t.second_tile}; }
  static INLINE void prefetch(Bytes p) {
    V::prefetch(p.first);
    V::prefetch(p.first + p.second);
  }
  static INLINE void fetch_next(const TileArgs& t, int64_t at) {
    phlite::prefetch(t.next + at);
    phlite::prefetch(t.next + t.second_tile + at);
  }
  static INLINE F load_sum(const float* p) { return {V::load_f(p), V::load_f(p + kTileRows)}; }
  static INLINE void store_sum(float* p, F v) {
    V::store_f(p, v.a);
    V::store_f(p + kTileRows, v.b);
  }
  static INLINE F load_out(const TileArgs& t, const float* p) { return {V::load_f(p), V::load_f(p + t.second_out)}; }
  static INLINE void store_out(const TileArgs& t, float* p, F v) {
    V::store_f(p, v.a);
    V::store_f(p + t.second_out, v.b);
  }

  static INLINE I zero() { return {V::zero(), V::zero()}; }
  static INLINE F zero_f() { return {V::zero_f(), V::zero_f()}; }
  static INLINE I set1(int32_t v) { return both(V::set1(v)); }
  static INLINE F set1_f(float v) { return both(V::set1_f(v)); }
  static INLINE I load(Bytes p) { return {V::load(p.first), V::load(p.first + p.second)}; }
  static INLINE I load_u16(Bytes p) { return {V::load_u16(p.first), V::load_u16(p.first + p.second)}; }
  static INLINE F load_half(Bytes p) { return {V::load_half(p.first), V::load_half(p.first + p.second)}; }
  static INLINE F as_f(I v) { return {V::as_f(v.a), V::as_f(v.b)}; }

  static INLINE I and_(I x, I y) { return {V::and_(x.a, y.a), V::and_(x.b, y.b)}; }
  static INLINE I or_(I x, I y) { return {V::or_(x.a, y.a), V::or_(x.b, y.b)}; }
  static INLINE I xor_(I x, I y) { return {V::xor_(x.a, y.a), V::xor_(x.b, y.b)}; }
  static INLINE I swap16(I x) { return {V::swap16(x.a), V::swap16(x.b)}; }
  static INLINE I add(I x, I y) { return {V::add(x.a, y.a), V::add(x.b, y.b)}; }
  static INLINE I sub(I x, I y) { return {V::sub(x.a, y.a), V::sub(x.b, y.b)}; }
  static INLINE I sub16(I x, I y) { return {V::sub16(x.a, y.a), V::sub16(x.b, y.b)}; }
  static INLINE I mul(I x, I y) { return {V::mul(x.a, y.a), V::mul(x.b, y.b)}; }
  template <int N>
  static INLINE I srl(I x) {
    return {V::template srl<N>(x.a), V::template srl<N>(x.b)};
  }
  template <int N>
  static INLINE I sra(I x) {
    return {V::template sra<N>(x.a), V::template sra<N>(x.b)};
  }
  template <int N>
  static INLINE I shift(I x) {
    return {V::template shift<N>(x.a), V::template shift<N>(x.b)};
  }
  template <int B>
  static INLINE I byte(I x) {
    return {V::template byte<B>(x.a), V::template byte<B>(x.b)};
  }
  template <int P>
  static INLINE I byte_pair(I x) {
    return {V::template byte_pair<P>(x.a), V::template byte_pair<P>(x.b)};
  }
  template <int P>
  static INLINE I signed_byte_pair(I x) {
    return {V::template signed_byte_pair<P>(x.a), V::template signed_byte_pair<P>(x.b)};
  }
  static INLINE I from_signed(I x) { return {V::from_signed(x.a), V::from_signed(x.b)}; }
  static INLINE I lookup_iq4(I x) { return {V::lookup_iq4(x.a), V::lookup_iq4(x.b)}; }

  template <int MaxCode>
  static constexpr int flush_every() {
    return V::template flush_every<MaxCode>();
  }
  template <int>
  static INLINE I dot(I acc, I codes, const int8_t* act) {
    const typename V::I four = V::broadcast(act);
    return {V::dot_all(acc.a, codes.a, four), V::dot_all(acc.b, codes.b, four)};
  }
  template <int MaxCode>
  static INLINE I fold(I total, I acc, I scale) {
    return {V::template fold<MaxCode>(total.a, acc.a, scale.a), V::template fold<MaxCode>(total.b, acc.b, scale.b)};
  }
  static INLINE I unit_scale() { return both(V::unit_scale()); }
  static INLINE I fold_scale(I x) { return {V::fold_scale(x.a), V::fold_scale(x.b)}; }
  static INLINE I madd16(I acc, I x, I y) { return {V::madd16(acc.a, x.a, y.a), V::madd16(acc.b, x.b, y.b)}; }
  static INLINE I madd16(I acc, I pair, const int16_t* sums) {
    const typename V::I two = V::broadcast(sums);
    return {V::madd16(acc.a, pair.a, two), V::madd16(acc.b, pair.b, two)};
  }

  static INLINE F to_f(I x) { return {V::to_f(x.a), V::to_f(x.b)}; }
  static INLINE F add_f(F x, F y) { return {V::add_f(x.a, y.a), V::add_f(x.b, y.b)}; }
  static INLINE F mul_f(F x, F y) { return {V::mul_f(x.a, y.a), V::mul_f(x.b, y.b)}; }
  static INLINE F fma(F x, F y, F z) { return {V::fma(x.a, y.a, z.a), V::fma(x.b, y.b, z.b)}; }
  static INLINE F fnma(F x, F y, F z) { return {V::fnma(x.a, y.a, z.a), V::fnma(x.b, y.b, z.b)}; }

 private:
  static INLINE I both(typename V::I v) { return {v, v}; }
  static INLINE F both(typename V::F v) { return {v, v}; }
};

// Two tiles times many rows, slice by slice; formats whose codes take long to unpack are unpacked once for all rows.
// The next slice comes to the first-level cache and the next tiles from memory meanwhile, a few lines for each group of
// rows: all at once they would keep the activations waiting.
template <template <class> class Format, class V>
void two_tile_kernel(const TileArgs& a) noexcept {
  using One = Format<V>;
  using Two = TwoTiles<V>;
  using Packed = Format<Two>;
  const Activations& act = *a.act;
  alignas(64) float sums[kMaxTileRows * Two::kOutputs];
  for (int64_t i = 0; i < a.n_rows; ++i) Two::store_sum(sums + i * Two::kOutputs, Two::zero_f());
  const int64_t lines_per_row = (Packed::kSliceBytes / kPlaneBytes + a.n_rows - 1) / a.n_rows;
  for (int64_t b = 0; b * kSuperblock < act.n_cols; ++b) {
    const Place<Two> p = Packed::place(Two::tile(a), act.n_cols, b);
    int64_t fetched = 0;
    const auto fetch = [&](int64_t n_lines) {
      for (int64_t i = 0; i < n_lines && fetched < Packed::kSliceBytes; ++i, fetched += kPlaneBytes) {
        Two::prefetch(p.body + Packed::kSliceBytes + fetched);
        if (a.next) Two::fetch_next(a, b * Packed::kSliceBytes + fetched);
      }
    };
#define CALL(G) (fetch(G * lines_per_row), add_to_sums<Codes, G>(codes, a, b, row, 0, sums))
    if constexpr (Packed::kUnpackRows != kNeverUnpack) {
      using Codes = typename Packed::Wide;
      alignas(64) uint8_t scratch[2 * Codes::kSliceBytes];
      One::unpack(One::place(a.tile, act.n_cols, b), kSuperblock, 0, scratch);
      One::unpack(One::place(a.tile + a.second_tile, act.n_cols, b), kSuperblock, 0, scratch + Codes::kSliceBytes);
      const typename Two::Bytes unpacked{scratch, Codes::kSliceBytes};
      const Place<Two> codes{unpacked, unpacked};
      FOR_ROW_GROUPS(Two::kMaxRows, a.n_rows, CALL);
    } else {
      using Codes = Packed;
      const Place<Two>& codes = p;
      FOR_ROW_GROUPS(Two::kMaxRows, a.n_rows, CALL);
    }
#undef CALL
  }
}

template <class V>
void set_two_tile_kernels(MatmulKernels& t) {
  // 32 rows, two tiles against one after the other: Q4_K 0.86, Q5_K 0.93, Q6_K 1.08 to 1.12, Q8_0 1.13, Q4_0 1.03 to
  // 1.08, F16 1.05; 40 rows 0.96, 0.97, 0.99 to 1.06, 1.14, 1.10, 1.15. Two streams come in more slowly than one.
  const auto set = [&](GGMLType type, MatmulKernels::TileFn fn) {
    const int index = packed_format_index(static_cast<int>(type));
    t.two_tiles[index] = fn;
    t.two_tiles_rows[index] = type == GGMLType::Q4_K || type == GGMLType::Q5_K ? 48 : kTwoTilesRows;
  };
  set(GGMLType::F32, &two_tile_kernel<FormatF32, V>);
  set(GGMLType::F16, &two_tile_kernel<FormatF16, V>);
  set(GGMLType::BF16, &two_tile_kernel<FormatBF16, V>);
  set(GGMLType::Q4_0, &two_tile_kernel<FormatQ4_0, V>);
  set(GGMLType::Q4_1, &two_tile_kernel<FormatQ4_1, V>);
  set(GGMLType::Q5_0, &two_tile_kernel<FormatQ5_0, V>);
  set(GGMLType::Q5_1, &two_tile_kernel<FormatQ5_1, V>);
  set(GGMLType::Q8_0, &two_tile_kernel<FormatQ8_0, V>);
  set(GGMLType::IQ4_NL, &two_tile_kernel<FormatIQ4NL, V>);
  set(GGMLType::Q2_K, &two_tile_kernel<FormatQ2K, V>);
  set(GGMLType::Q3_K, &two_tile_kernel<FormatQ3K, V>);
  set(GGMLType::Q4_K, &two_tile_kernel<FormatQ4K, V>);
  set(GGMLType::Q5_K, &two_tile_kernel<FormatQ5K, V>);
  set(GGMLType::Q6_K, &two_tile_kernel<FormatQ6K, V>);
  set(GGMLType::IQ4_XS, &two_tile_kernel<FormatIQ4XS, V>);
}
