// Attention kernels for AVX2 with FMA and F16C: 16 lanes are two registers; the tiles and their order are in tile.inl.
//
// With 16 registers the tiles are 6 rows x 1 group (12 accumulators, which hide the latency of two multiply-adds a
// cycle; 4 rows for a q8_0 cache, whose dots need more) or 1 row x 4 groups. Widening f16 costs as much as two
// multiply-adds here, so from 8 rows on a block is widened once into scratch. Without VNNI the int8 dots are vpmaddubsw
// on |q| and sign(k, q): with both within +-127 a pair sum is at most 32258, so it never saturates.
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>

#include <cstring>

#include "attention/exp2.h"
#include "attention/inline.h"
#include "attention/scratch.h"
#include "support/fp16.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC target("avx2,fma,f16c")
#endif

namespace phlite::attention {
namespace {

struct V {
  struct F {
    __m256 a, b;
  };
  struct I {
    __m256i a, b;
  };
  static constexpr int kMostRows = 6, kMostQuantRows = 4;
  static constexpr int kAccumulators = 6;  // pairs of registers, for sum_values
  static int widen_rows() { return 8; }
  static constexpr int dot_groups(int rows) { return rows > 4 ? 1 : 4 / rows; }
  static constexpr int kQuantRows = 2;
  static constexpr int quant_blocks(int rows) { return rows == 2 ? 1 : 2; }
  static constexpr int quant_groups(int rows) { return rows == 1 ? 2 : 1; }
  static constexpr bool kTwoStreams = true;  // of what is fetched ahead

  static F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static F set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static void store(float* p, F x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
  }
  static __m128i load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
  static F load_f16(const uint16_t* p) { return {_mm256_cvtph_ps(load128(p)), _mm256_cvtph_ps(load128(p + 8))}; }
  static void store_f16(uint16_t* p, F x) {
    const __m256 most = _mm256_set1_ps(65504.0f), least = _mm256_set1_ps(-65504.0f);
    const __m256 a = _mm256_max_ps(least, _mm256_min_ps(most, x.a));  // a NaN stays one
    const __m256 b = _mm256_max_ps(least, _mm256_min_ps(most, x.b));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(b, _MM_FROUND_TO_NEAREST_INT));
  }
  static __m256 widen_bf16(const uint16_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load128(p)), 16));
  }
  static F load_bf16(const uint16_t* p) { return {widen_bf16(p), widen_bf16(p + 8)}; }
  // Rounds to nearest, ties to even; returns the sum.
  static int store_i8(int8_t* p, F x) {
    const __m256i a = _mm256_cvtps_epi32(x.a), b = _mm256_cvtps_epi32(x.b);
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
    const __m256i ones = _mm256_set1_epi16(1), pairs = _mm256_madd_epi16(words, ones);
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
  }
  static F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
  static F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
  static F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
  static F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
  static F min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
  static F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
  static float first(F x) { return _mm256_cvtss_f32(x.a); }

  static __m256 keep8(__m256 x, __m256i lane, int from, int to) {
    const __m256i out = _mm256_or_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(from), lane),
                                        _mm256_cmpgt_epi32(lane, _mm256_set1_epi32(to - 1)));
    return _mm256_blendv_ps(x, _mm256_set1_ps(kMinusInfinity), _mm256_castsi256_ps(out));
  }
  // Lanes from <= i < to; -infinity elsewhere.
  static F keep(F x, int from, int to) {
    const __m256i lane = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
    return {keep8(x.a, lane, from, to), keep8(x.b, lane, from - 8, to - 8)};
  }
  static float max_of(F x) {
    const __m256 a = _mm256_max_ps(x.a, x.b);
    const __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
  }
  static float sum_of(F x) {
    const __m256 a = _mm256_add_ps(x.a, x.b);
    const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
  }
  static __m256 exp2_8(__m256 x) {
    const __m256 alive = _mm256_cmp_ps(x, _mm256_set1_ps(kExp2Floor), _CMP_GE_OQ);
    const __m256 n = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256 f = _mm256_sub_ps(x, n);
    __m256 p = _mm256_set1_ps(kExp2C6);
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(kExp2C5));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(kExp2C4));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(kExp2C3));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(kExp2C2));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(kExp2C1));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0f));
    const __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_and_ps(alive, _mm256_mul_ps(p, _mm256_castsi256_ps(exponent)));
  }
  static F exp2(F x) { return {exp2_8(x.a), exp2_8(x.b)}; }

  // Stored keys are value + 128; flipping the top bit makes them signed.
  static I load_bytes(const uint8_t* p) {
    const __m256i flip = _mm256_set1_epi8(-128);
    return {_mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), flip),
            _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32)), flip)};
  }
  static I set4(const int8_t* p) {
    int32_t four;
    std::memcpy(&four, p, sizeof four);
    const __m256i x = _mm256_set1_epi32(four);
    return {x, _mm256_abs_epi8(x)};
  }
  static I dot_start(int32_t) { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static __m256i dot4_8(__m256i sum, __m256i key, I four) {
    const __m256i pairs = _mm256_maddubs_epi16(four.b, _mm256_sign_epi8(key, four.a));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static I dot4(I sum, I key, I four) { return {dot4_8(sum.a, key.a, four), dot4_8(sum.b, key.b, four)}; }
  static F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }

  static I zero_i() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static I widen_i8(const int8_t* p) {
    return {_mm256_cvtepi8_epi16(load128(p)), _mm256_cvtepi8_epi16(load128(p + 16))};
  }
  static __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static I load_i16(const int16_t* p) { return {load256(p), load256(p + 16)}; }
  static void store_wide(int16_t* p, I x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.a);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 16), x.b);
  }
  // Rounds 16 floats within int16 to nearest, ties to even.
  static void store_i16(int16_t* p, F x) {
    const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(words, 0xd8));
  }
  static I set2(const int16_t* p) {
    int32_t two;
    std::memcpy(&two, p, sizeof two);
    return {_mm256_set1_epi32(two), _mm256_set1_epi32(two)};
  }
  static I dot2(I sum, I value, I two) {
    return {_mm256_add_epi32(sum.a, _mm256_madd_epi16(value.a, two.a)),
            _mm256_add_epi32(sum.b, _mm256_madd_epi16(value.b, two.b))};
  }

  static PHLITE_INLINE void prefetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1); }
  static PHLITE_INLINE void prefetch_near(const uint8_t* p) {
    _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0);
  }
};

// clang-format off: each of them uses the one before
#include "rope/rope.inl"
#include "attention/round.inl"
#include "attention/row_ops.inl"
#include "attention/tile.inl"
// clang-format on

}  // namespace

const Kernels kAvx2Kernels = {rope, write, attend, merge};

}  // namespace phlite::attention

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
