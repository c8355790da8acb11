// What AVX2 and AVX-VNNI share: sixteen lanes in two registers, and everything but the dot product. Included inside a
// target region.
//
// Two registers rather than one: a broadcast activation meets both, so that the two loads per cycle keep up with the
// two multiplications, and a tile is read once instead of once per half.

struct V256 {
  struct I {
    __m256i lo, hi;
  };
  struct F {
    __m256 lo, hi;
  };
  static constexpr int lanes = 16;
  static constexpr int rows_at_once(int group) { return group; }
  // Weights that are floats: twelve sums, a column and a broadcast. Many rows have 16-bit ones widened once for all,
  // which an idle core of Zen 3 does not need (F16 0.91, 0.98 times as fast with 24, 128 rows), but one that others
  // share gains (48 rows 1.5).
  static constexpr int kMaxFloatRows = 6;
  static constexpr int64_t kWidenFloatRows = 24;
  static constexpr bool kLongPasses = true;

  static INLINE void prefetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }
  static INLINE void fetch_once(const uint8_t* p) { prefetch(p); }  // not NTA: Q8_0 on Zen 3 1.07 times as fast
  static INLINE void prefetch_l2(const uint8_t* p) { phlite::prefetch(p); }
  static INLINE I zero() { return both(_mm256_setzero_si256()); }
  static INLINE F zero_f() { return both(_mm256_setzero_ps()); }
  static INLINE I set1(int64_t v) { return both(_mm256_set1_epi32(static_cast<int32_t>(v))); }
  static INLINE F set1_f(float v) { return both(_mm256_set1_ps(v)); }
  static INLINE I load(const uint8_t* p) { return {load256(p), load256(p + 32)}; }
  static INLINE void store(uint8_t* p, I v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v.lo);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), v.hi);
  }
  static INLINE I load_u16(const uint8_t* p) {
    return {_mm256_cvtepu16_epi32(load128(p)), _mm256_cvtepu16_epi32(load128(p + 16))};
  }
  static INLINE F load_half(const uint8_t* p) {
    return {_mm256_cvtph_ps(load128(p)), _mm256_cvtph_ps(load128(p + 16))};
  }
  static INLINE F load_f(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static INLINE void store_f(float* p, F v) {
    _mm256_storeu_ps(p, v.lo);
    _mm256_storeu_ps(p + 8, v.hi);
  }
  static INLINE F as_f(I v) { return {_mm256_castsi256_ps(v.lo), _mm256_castsi256_ps(v.hi)}; }
  static INLINE I as_i(F v) { return {_mm256_castps_si256(v.lo), _mm256_castps_si256(v.hi)}; }

  static INLINE I and_(I a, I b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
  static INLINE I or_(I a, I b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
  static INLINE I add(I a, I b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
  static INLINE I sub(I a, I b) { return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)}; }
  static INLINE I sub16(I a, I b) { return {_mm256_sub_epi16(a.lo, b.lo), _mm256_sub_epi16(a.hi, b.hi)}; }
  static INLINE I mul(I a, I b) { return {_mm256_mullo_epi32(a.lo, b.lo), _mm256_mullo_epi32(a.hi, b.hi)}; }
  static INLINE I max(I a, I b) { return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)}; }
  template <int N>
  static INLINE I srl(I a) {
    return {_mm256_srli_epi32(a.lo, N), _mm256_srli_epi32(a.hi, N)};
  }
  template <int N>
  static INLINE I sra(I a) {
    return {_mm256_srai_epi32(a.lo, N), _mm256_srai_epi32(a.hi, N)};
  }
  template <int N>  // left for N > 0, right for N < 0
  static INLINE I shift(I a) {
    if constexpr (N > 0)
      return {_mm256_slli_epi32(a.lo, N), _mm256_slli_epi32(a.hi, N)};
    else if constexpr (N < 0)
      return srl<-N>(a);
    else
      return a;
  }
  template <int B>  // byte B of each lane as int32
  static INLINE I byte(I a) {
    return and_(shift<-8 * B>(a), set1(0xFF));
  }
  template <int P>  // bytes 2P, 2P + 1 of each lane as two int16
  static INLINE I byte_pair(I a) {
    return shuffle_lanes(a, 0x80008000u | unsigned(2 * P) | unsigned(2 * P + 1) << 16);
  }
  template <int P>
  static INLINE I signed_byte_pair(I a) {
    const I high = shuffle_lanes(a, 0x00800080u | unsigned(2 * P) << 8 | unsigned(2 * P + 1) << 24);
    return {_mm256_srai_epi16(high.lo, 8), _mm256_srai_epi16(high.hi, 8)};
  }

  static INLINE F to_f(I v) { return {_mm256_cvtepi32_ps(v.lo), _mm256_cvtepi32_ps(v.hi)}; }
  static INLINE I round(F v) { return {_mm256_cvtps_epi32(v.lo), _mm256_cvtps_epi32(v.hi)}; }
  static INLINE F add_f(F a, F b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
  static INLINE F sub_f(F a, F b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
  static INLINE F mul_f(F a, F b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
  static INLINE F div_f(F a, F b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
  static INLINE F min_f(F a, F b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
  static INLINE F max_f(F a, F b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
  static INLINE F fma(F a, F b, F c) { return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)}; }
  static INLINE F fnma(F a, F b, F c) {
    return {_mm256_fnmadd_ps(a.lo, b.lo, c.lo), _mm256_fnmadd_ps(a.hi, b.hi, c.hi)};
  }
  static INLINE int32_t max_lane(I v) {
    const __m256i halves = _mm256_max_epi32(v.lo, v.hi);
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4E));
    return _mm_cvtsi128_si32(_mm_max_epi32(m, _mm_shuffle_epi32(m, 0xB1)));
  }
  // 256 columns: the codes stay in registers until they are summed, since a load of what two narrower stores have just
  // written waits for them.
  static constexpr bool kWholeSlices = true;
  static INLINE void round_slice(const float* x, const float* inverse, int8_t* q, int32_t* sums, int32_t*) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7), ones = _mm256_set1_epi8(1);
    for (int i = 0; i < 8; i += 4, sums += 8) {
      __m256i fours[4];
      UNROLL for (int k = 0; k < 4; ++k, x += 32, q += 32) {
        const F scale = set1_f(inverse[i + k]);
        const I a = round(mul_f(load_f(x), scale)), b = round(mul_f(load_f(x + 16), scale));
        const __m256i words = _mm256_packs_epi16(_mm256_packs_epi32(a.lo, a.hi), _mm256_packs_epi32(b.lo, b.hi));
        const __m256i codes = _mm256_permutevar8x32_epi32(words, order);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), codes);
        fours[k] = _mm256_madd_epi16(_mm256_maddubs_epi16(ones, codes), _mm256_set1_epi16(1));
      }
      // Sums of 16 codes: of even ones in the low half, of odd ones in the high half.
      const __m256i sixteens =
          _mm256_hadd_epi32(_mm256_hadd_epi32(fours[0], fours[1]), _mm256_hadd_epi32(fours[2], fours[3]));
      const __m128i even = _mm256_castsi256_si128(sixteens), odd = _mm256_extracti128_si256(sixteens, 1);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(sums), _mm_unpacklo_epi32(even, odd));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(sums + 4), _mm_unpackhi_epi32(even, odd));
    }
  }
  static INLINE void store_rounded(F v, int8_t* q) {  // nearest, ties to even
    const I n = round(v);
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(n.lo, n.hi), 0xD8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q),
                     _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
  }
  static INLINE void sum_bytes(const int8_t* q, int32_t* sums) {  // of q[0 .. 15] and of q[16 .. 31]
    const __m256i offset = _mm256_xor_si256(load256(reinterpret_cast<const uint8_t*>(q)), _mm256_set1_epi8(-128));
    const __m256i eights = _mm256_sad_epu8(offset, _mm256_setzero_si256());
    const __m256i sixteens = _mm256_add_epi32(eights, _mm256_unpackhi_epi64(eights, eights));
    sums[0] = _mm256_cvtsi256_si32(sixteens) - 16 * 128;
    sums[1] = _mm_cvtsi128_si32(_mm256_extracti128_si256(sixteens, 1)) - 16 * 128;
  }

 protected:
  static INLINE I both(__m256i v) { return {v, v}; }
  static INLINE F both(__m256 v) { return {v, v}; }
  static INLINE __m128i load128(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  static INLINE __m256i load256(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  // The bytes of every lane in the order of the four bytes of `from`: 0 .. 3, or 0x80 for a zero.
  static INLINE I shuffle_lanes(I a, uint32_t from) {
    const auto lane = [from](uint32_t i) { return static_cast<int>(from + ((~from >> 7 & 0x01010101u) * 4 * i)); };
    const __m256i order = _mm256_setr_epi32(lane(0), lane(1), lane(2), lane(3), lane(0), lane(1), lane(2), lane(3));
    return {_mm256_shuffle_epi8(a.lo, order), _mm256_shuffle_epi8(a.hi, order)};
  }
  template <class T>
  static INLINE __m256i broadcast(const T* p) {  // the four bytes at p in every lane
    int32_t v;
    std::memcpy(&v, p, 4);
    return _mm256_set1_epi32(v);
  }
  static INLINE I table(__m128i values, I codes) {
    const __m256i t = _mm256_broadcastsi128_si256(values);
    return {_mm256_shuffle_epi8(t, codes.lo), _mm256_shuffle_epi8(t, codes.hi)};
  }
};
