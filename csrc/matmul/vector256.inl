// What AVX2 and AVX-VNNI share: eight lanes and everything but the dot product. Included inside a target region.

struct V256 {
  using I = __m256i;
  using F = __m256;
  static constexpr int lanes = 8;

  static INLINE void prefetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }
  static INLINE I zero() { return _mm256_setzero_si256(); }
  static INLINE F zero_f() { return _mm256_setzero_ps(); }
  static INLINE I set1(int64_t v) { return _mm256_set1_epi32(static_cast<int32_t>(v)); }
  static INLINE F set1_f(float v) { return _mm256_set1_ps(v); }
  static INLINE I load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static INLINE void store(uint8_t* p, I v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  static INLINE I load_u16(const uint8_t* p) { return _mm256_cvtepu16_epi32(load128(p)); }
  static INLINE F load_half(const uint8_t* p) { return _mm256_cvtph_ps(load128(p)); }
  static INLINE F load_f(const float* p) { return _mm256_loadu_ps(p); }
  static INLINE void store_f(float* p, F v) { _mm256_storeu_ps(p, v); }
  static INLINE F as_f(I v) { return _mm256_castsi256_ps(v); }
  static INLINE I as_i(F v) { return _mm256_castps_si256(v); }

  static INLINE I and_(I a, I b) { return _mm256_and_si256(a, b); }
  static INLINE I or_(I a, I b) { return _mm256_or_si256(a, b); }
  static INLINE I add(I a, I b) { return _mm256_add_epi32(a, b); }
  static INLINE I sub(I a, I b) { return _mm256_sub_epi32(a, b); }
  static INLINE I sub16(I a, I b) { return _mm256_sub_epi16(a, b); }
  static INLINE I mul(I a, I b) { return _mm256_mullo_epi32(a, b); }
  static INLINE I max(I a, I b) { return _mm256_max_epi32(a, b); }
  template <int N>
  static INLINE I srl(I a) {
    return _mm256_srli_epi32(a, N);
  }
  template <int N>
  static INLINE I sra(I a) {
    return _mm256_srai_epi32(a, N);
  }
  template <int N>  // left for N > 0, right for N < 0
  static INLINE I shift(I a) {
    if constexpr (N > 0)
      return _mm256_slli_epi32(a, N);
    else if constexpr (N < 0)
      return _mm256_srli_epi32(a, -N);
    else
      return a;
  }
  template <int B>  // byte B of each lane as int32
  static INLINE I byte(I a) {
    return and_(shift<-8 * B>(a), set1(0xFF));
  }
  template <int P>  // bytes 2P, 2P + 1 of each lane as two int16
  static INLINE I byte_pair(I a) {
    return _mm256_shuffle_epi8(
        a, _mm256_setr_epi32(spread<2 * P>(), spread<4 + 2 * P>(), spread<8 + 2 * P>(), spread<12 + 2 * P>(),
                             spread<2 * P>(), spread<4 + 2 * P>(), spread<8 + 2 * P>(), spread<12 + 2 * P>()));
  }
  template <int P>
  static INLINE I signed_byte_pair(I a) {
    return _mm256_srai_epi16(_mm256_slli_epi16(byte_pair<P>(a), 8), 8);
  }

  static INLINE I unit_scale() { return set1(1); }

  static INLINE F to_f(I v) { return _mm256_cvtepi32_ps(v); }
  static INLINE I round(F v) { return _mm256_cvtps_epi32(v); }
  static INLINE F add_f(F a, F b) { return _mm256_add_ps(a, b); }
  static INLINE F sub_f(F a, F b) { return _mm256_sub_ps(a, b); }
  static INLINE F mul_f(F a, F b) { return _mm256_mul_ps(a, b); }
  static INLINE F div_f(F a, F b) { return _mm256_div_ps(a, b); }
  static INLINE F min_f(F a, F b) { return _mm256_min_ps(a, b); }
  static INLINE F max_f(F a, F b) { return _mm256_max_ps(a, b); }
  static INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static INLINE F fnma(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }
  static INLINE int32_t max_lane(I v) {
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4E));
    return _mm_cvtsi128_si32(_mm_max_epi32(m, _mm_shuffle_epi32(m, 0xB1)));
  }
  static INLINE void store_rounded(F v, int8_t* q) {  // nearest, ties to even
    const I n = round(v);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(n), _mm256_extracti128_si256(n, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(q), _mm_packs_epi16(words, words));
  }
  static INLINE void sum_bytes(const int8_t* q, int32_t* sums) {  // of q[0 .. 15] and of q[16 .. 31]
    const I offset = _mm256_xor_si256(load(reinterpret_cast<const uint8_t*>(q)), _mm256_set1_epi8(-128));
    const I eights = _mm256_sad_epu8(offset, zero());
    const I both = add(eights, _mm256_unpackhi_epi64(eights, eights));
    sums[0] = _mm256_cvtsi256_si32(both) - 16 * 128;
    sums[1] = _mm_cvtsi128_si32(_mm256_extracti128_si256(both, 1)) - 16 * 128;
  }

 protected:
  template <int B>
  static constexpr int spread() {
    return static_cast<int>(0x80008000u | unsigned(B) | unsigned(B + 1) << 16);
  }
  static INLINE __m128i load128(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  template <class T>
  static INLINE I broadcast(const T* p) {  // the four bytes at p in every lane
    int32_t v;
    std::memcpy(&v, p, 4);
    return set1(v);
  }
  static INLINE I table(__m128i values, I codes) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(values), codes);
  }
};
