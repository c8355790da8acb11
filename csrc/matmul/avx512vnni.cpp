// Matrix products with AVX-512 VNNI: vpdpbusd multiplies 64 unsigned by 64 signed bytes into sixteen int32 lanes.
//
// Register tile: sixteen rows of weights (one zmm of codes) times twelve rows of activations; twelve accumulators of
// the group, twelve totals of the superblock, activations broadcast from memory. Measured on Zen 4 with codes in L1:
// 202 of the 228 G multiply-adds per second that a core reaches without scales; 2 x 6 and 2 x 8 tiles reach 202 and
// 199. Every multiplication takes the place of a dot product, so two groups share one with their scales where their
// sums fit 16 bits: Q4_K 185 -> 195, Q6_K 172 -> 185 for the whole kernel.
#include "matmul/kernels.h"
#include "support/prefetch.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni")
#define INLINE __attribute__((always_inline)) inline
#define UNROLL _Pragma("GCC unroll 16")

namespace phlite {
namespace {

struct V512 {
  using I = __m512i;
  using F = __m512;
  static constexpr int lanes = 16, kFewRows = 2, kMaxRows = 12, kSignedOffset = 128;
  static constexpr bool kSums32 = true;  // `dot` adds into 32 bits
  static constexpr bool kPairs = true;   // two groups share one multiplication with their scales
  static constexpr bool kLongSums = false;
  // Q3_K: 167 against 148 G products per second; all others lose by it.
  static constexpr int64_t unpack_rows(int max_code, bool) { return max_code == 7 ? 48 : kNeverUnpack; }
  static constexpr int rows_at_once(int group) { return group; }
  static constexpr int kMaxFloatRows = 12;
  static constexpr int64_t kWidenFloatRows = kNeverUnpack;
  static constexpr bool kLongPasses = false;

  static INLINE void prefetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }
  static INLINE void fetch_once(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_NTA); }
  static INLINE void prefetch_l2(const uint8_t* p) { phlite::prefetch(p); }
  static INLINE I zero() { return _mm512_setzero_si512(); }
  static INLINE F zero_f() { return _mm512_setzero_ps(); }
  static INLINE I set1(int32_t v) { return _mm512_set1_epi32(v); }
  static INLINE F set1_f(float v) { return _mm512_set1_ps(v); }
  static INLINE I load(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static INLINE I keep(I v) {  // in a register: the compiler does not load it again for each use
#if defined(__GNUC__)
    asm("" : "+v"(v));
#endif
    return v;
  }
  static INLINE void store(uint8_t* p, I v) { _mm512_storeu_si512(p, v); }
  static INLINE I load_u16(const uint8_t* p) { return _mm512_cvtepu16_epi32(load256(p)); }
  static INLINE F load_half(const uint8_t* p) { return _mm512_cvtph_ps(load256(p)); }
  static INLINE F load_f(const float* p) { return _mm512_loadu_ps(p); }
  static INLINE void store_f(float* p, F v) { _mm512_storeu_ps(p, v); }
  static INLINE F as_f(I v) { return _mm512_castsi512_ps(v); }
  static INLINE I as_i(F v) { return _mm512_castps_si512(v); }

  static INLINE I and_(I a, I b) { return _mm512_and_si512(a, b); }
  static INLINE I or_(I a, I b) { return _mm512_or_si512(a, b); }
  static INLINE I xor_(I a, I b) { return _mm512_xor_si512(a, b); }
  static INLINE I swap16(I a) { return _mm512_rol_epi32(a, 16); }
  static INLINE I add(I a, I b) { return _mm512_add_epi32(a, b); }
  static INLINE I sub(I a, I b) { return _mm512_sub_epi32(a, b); }
  static INLINE I sub16(I a, I b) { return _mm512_sub_epi16(a, b); }
  static INLINE I mul(I a, I b) { return _mm512_mullo_epi32(a, b); }
  static INLINE I max(I a, I b) { return _mm512_max_epi32(a, b); }
  template <int N>
  static INLINE I srl(I a) {
    return _mm512_srli_epi32(a, N);
  }
  template <int N>
  static INLINE I sra(I a) {
    return _mm512_srai_epi32(a, N);
  }
  template <int N>  // left for N > 0, right for N < 0
  static INLINE I shift(I a) {
    if constexpr (N > 0)
      return _mm512_slli_epi32(a, N);
    else if constexpr (N < 0)
      return _mm512_srli_epi32(a, -N);
    else
      return a;
  }
  template <int B>  // byte B of each lane as int32
  static INLINE I byte(I a) {
    return and_(shift<-8 * B>(a), set1(0xFF));
  }
  template <int P>  // bytes 2P, 2P + 1 of each lane as two int16
  static INLINE I byte_pair(I a) {
    return _mm512_shuffle_epi8(
        a, _mm512_set4_epi32(spread(12 + 2 * P), spread(8 + 2 * P), spread(4 + 2 * P), spread(2 * P)));
  }
  template <int P>
  static INLINE I signed_byte_pair(I a) {
    return _mm512_srai_epi16(_mm512_slli_epi16(byte_pair<P>(a), 8), 8);
  }

  static INLINE I from_signed(I a) { return _mm512_xor_si512(a, set1(0x80808080)); }
  static INLINE I lookup_iq4(I a) {  // the IQ4 values with 128 added
    const __m128i t = _mm_setr_epi8(1, 24, 45, 63, 79, 93, 106, 118, -127, -115, -103, -90, -75, -59, -39, -15);
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(t), a);
  }

  template <int>
  static constexpr int flush_every() {
    return 64;
  }
  // GCC does not join a broadcast with these two instructions, and twice as many instructions cost 3 % of a prefill.
  template <int>
  static INLINE I dot(I acc, I codes, const int8_t* act) {
#if defined(__GNUC__) && !defined(__clang__)
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(codes), "m"(*reinterpret_cast<const int8_t (*)[4]>(act)));
    return acc;
#else
    return _mm512_dpbusd_epi32(acc, codes, broadcast(act));
#endif
  }
  static INLINE I dot_all(I acc, I codes, I act) { return _mm512_dpbusd_epi32(acc, codes, act); }
  template <class T>
  static INLINE I broadcast(const T* p) {  // the four bytes at p in every lane
    int32_t v;
    std::memcpy(&v, p, 4);
    return _mm512_set1_epi32(v);
  }
  template <int>
  static INLINE I fold(I total, I acc, I scale) {
    return add(total, mul(acc, scale));
  }
  static INLINE I unit_scale() { return set1(1); }
  static INLINE I fold_scale(I scale) { return scale; }
  static INLINE I madd16(I acc, I a, I b) { return _mm512_dpwssd_epi32(acc, a, b); }
  static INLINE I madd16(I acc, I pair, const int16_t* sums) {
#if defined(__GNUC__) && !defined(__clang__)
    asm("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(pair), "m"(*reinterpret_cast<const int16_t (*)[2]>(sums)));
    return acc;
#else
    return _mm512_dpwssd_epi32(acc, pair, broadcast(sums));
#endif
  }

  static INLINE F to_f(I v) { return _mm512_cvtepi32_ps(v); }
  static INLINE I round(F v) { return _mm512_cvtps_epi32(v); }
  static INLINE F add_f(F a, F b) { return _mm512_add_ps(a, b); }
  static INLINE F sub_f(F a, F b) { return _mm512_sub_ps(a, b); }
  static INLINE F mul_f(F a, F b) { return _mm512_mul_ps(a, b); }
  static INLINE F div_f(F a, F b) { return _mm512_div_ps(a, b); }
  static INLINE F min_f(F a, F b) { return _mm512_min_ps(a, b); }
  static INLINE F max_f(F a, F b) { return _mm512_max_ps(a, b); }
  static INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static INLINE F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }
  static INLINE int32_t max_lane(I v) { return _mm512_reduce_max_epi32(v); }
  // 256 columns: the codes stay in registers until they are summed, since a load of what several narrower stores have
  // just written waits for them.
  static constexpr bool kWholeSlices = true;
  static INLINE void round_slice(const float* x, const float* inverse, int8_t* q, int32_t* sums, int32_t* sizes) {
    const I order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), ones = _mm512_set1_epi8(1);
    I fours[4], four_sizes[4];
    UNROLL for (int i = 0; i < 4; ++i, x += 64) {
      const F first = set1_f(inverse[2 * i]), second = set1_f(inverse[2 * i + 1]);
      const I a = _mm512_packs_epi32(round(mul_f(load_f(x), first)), round(mul_f(load_f(x + 16), first)));
      const I b = _mm512_packs_epi32(round(mul_f(load_f(x + 32), second)), round(mul_f(load_f(x + 48), second)));
      const I codes = _mm512_permutexvar_epi32(order, _mm512_packs_epi16(a, b));
      _mm512_storeu_si512(q + 64 * i, codes);
      fours[i] = dot_all(zero(), ones, codes);
      four_sizes[i] = dot_all(zero(), _mm512_abs_epi8(codes), ones);
    }
    _mm512_storeu_si512(sums, _mm512_permutexvar_epi32(order, sum_fours(fours)));
    _mm512_storeu_si512(sizes, _mm512_permutexvar_epi32(order, sum_fours(four_sizes)));
  }
  static INLINE void store_rounded(F v, int8_t* q) {  // nearest, ties to even
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q), _mm512_cvtsepi32_epi8(round(v)));
  }
  static INLINE void sum_bytes(const int8_t* q, int32_t* sums) {  // of q[0 .. 15] and of q[16 .. 31]
    const __m256i offset =
        _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(q)), _mm256_set1_epi8(-128));
    const __m256i eights = _mm256_sad_epu8(offset, _mm256_setzero_si256());
    const __m256i both = _mm256_add_epi32(eights, _mm256_unpackhi_epi64(eights, eights));
    sums[0] = _mm256_cvtsi256_si32(both) - 16 * 128;
    sums[1] = _mm_cvtsi128_si32(_mm256_extracti128_si256(both, 1)) - 16 * 128;
  }

 private:
  // Of each four lanes of the four vectors the sum: lane 4 j + i is that of the j-th four lanes of v[i].
  static INLINE I sum_fours(const I (&v)[4]) {
    const I low = add(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
    const I high = add(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
    return add(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
  }
  static constexpr int spread(int b) {
    return static_cast<int>(0x80008000u | static_cast<unsigned>(b) | static_cast<unsigned>(b + 1) << 16);
  }
  static INLINE __m256i load256(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
};

// clang-format off: the second one builds on the first
#include "matmul/tile_kernels.inl"
#include "matmul/two_tiles.inl"
// clang-format on

}  // namespace

const MatmulKernels& matmul_kernels_avx512vnni() {
  static const MatmulKernels table = [] {
    MatmulKernels t = build_kernels<OneTile<V512>>();
    set_two_tile_kernels<OneTile<V512>>(t);
    return t;
  }();
  return table;
}

}  // namespace phlite
#pragma GCC pop_options
#endif
