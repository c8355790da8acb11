// Attention kernels for AVX-512 (F, BW, VL, DQ) with VNNI; the tiles and their order are in tile.inl.
//
// f16 is widened by vcvtph2ps: in registers, or on Zen 4 and from 16 rows on once per block into scratch. Scores: 8
// rows x 2 groups (16 accumulators, 2 key loads and 8 broadcasts per 16 multiply-adds); values: 8 rows x 3 or 4 rows x
// 6 vectors (24 accumulators). With its operands in the first-level cache any tile of 16 accumulators or more reaches
// 130 to 135 of the 131 G multiply-adds per second of a Zen 5 core. q8_0: vpdpbusd for scores, keys being unsigned with
// an offset of 128, so that the sum starts at -128 times the sum of the query block, 8 rows x 2 groups of dots with the
// float sums in memory; vpdpwssd for values.
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>

#include <cstring>

#include "attention/exp2.h"
#include "attention/inline.h"
#include "attention/scratch.h"
#include "cpu/tuning.h"
#include "support/fp16.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni"))), \
                             apply_to = function)
#elif defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns inside its own intrinsics (bug 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
#endif

namespace phlite::attention {
namespace {

struct V {
  using F = __m512;
  using I = __m512i;
  static constexpr int kMostRows = 8, kMostQuantRows = 8;
  static constexpr int kAccumulators = 24;  // of 32 registers, for sum_values
  // f16: from here on a block is widened once into scratch.
  static int widen_rows() { return tuning().widen_in_tiles ? kTileRows + 1 : 16; }
  static constexpr int dot_groups(int rows) { return rows == 8 ? 2 : 4; }
  static constexpr int kQuantRows = 8;
  static constexpr int quant_blocks(int rows) { return rows == 8 ? 1 : rows == 4 ? 3 : 4; }
  static constexpr int quant_groups(int rows) { return rows == 8 ? 2 : 4; }
  static constexpr bool kTwoStreams = false;  // of what is fetched ahead

  static F zero() { return _mm512_setzero_ps(); }
  static F set1(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static F load_f16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void store_f16(uint16_t* p, F x) {
    x = _mm512_max_ps(set1(-65504.0f), _mm512_min_ps(set1(65504.0f), x));  // a NaN stays one
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  static F load_bf16(const uint16_t* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  // Rounds to nearest, ties to even; returns the sum.
  static int store_i8(int8_t* p, F x) {
    const __m512i rounded = _mm512_cvtps_epi32(x);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(rounded));
    return _mm512_reduce_add_epi32(rounded);
  }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static float first(F x) { return _mm512_cvtss_f32(x); }

  // Lanes from <= i < to; -infinity elsewhere.
  static F keep(F x, int from, int to) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __mmask16 in =
        _mm512_cmpge_epi32_mask(lane, _mm512_set1_epi32(from)) & _mm512_cmplt_epi32_mask(lane, _mm512_set1_epi32(to));
    return _mm512_mask_blend_ps(in, set1(kMinusInfinity), x);
  }
  static float max_of(F x) {
    const __m256 a = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    const __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
  }
  static float sum_of(F x) {
    const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
  }
  static F exp2(F x) {
    const __mmask16 alive = _mm512_cmp_ps_mask(x, set1(kExp2Floor), _CMP_GE_OQ);
    const F n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const F f = sub(x, n);
    F p = set1(kExp2C6);
    p = fma(p, f, set1(kExp2C5));
    p = fma(p, f, set1(kExp2C4));
    p = fma(p, f, set1(kExp2C3));
    p = fma(p, f, set1(kExp2C2));
    p = fma(p, f, set1(kExp2C1));
    p = fma(p, f, set1(1.0f));
    return _mm512_maskz_scalef_ps(alive, p, n);
  }

  static I load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static I set4(const int8_t* p) {
    int32_t four;
    std::memcpy(&four, p, sizeof four);
    return _mm512_set1_epi32(four);
  }
  static I dot_start(int32_t q_sum) { return _mm512_set1_epi32(-128 * q_sum); }
  // GCC 12 copies every sum around the instruction when it comes as an intrinsic: 4 instructions in place of 1.
  static I dot4(I sum, I key, I four) {
#if defined(__GNUC__) && !defined(__clang__)
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(key), "v"(four));
    return sum;
#else
    return _mm512_dpbusd_epi32(sum, key, four);
#endif
  }
  static F to_float(I x) { return _mm512_cvtepi32_ps(x); }

  static I zero_i() { return _mm512_setzero_si512(); }
  static I widen_i8(const int8_t* p) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static I load_i16(const int16_t* p) { return _mm512_loadu_si512(p); }
  static void store_wide(int16_t* p, I x) { _mm512_storeu_si512(p, x); }
  // Rounds 16 floats within int16 to nearest, ties to even.
  static void store_i16(int16_t* p, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(x)));
  }
  static I set2(const int16_t* p) {
    int32_t two;
    std::memcpy(&two, p, sizeof two);
    return _mm512_set1_epi32(two);
  }
  static I dot2(I sum, I value, I two) {
#if defined(__GNUC__) && !defined(__clang__)
    asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(value), "v"(two));
    return sum;
#else
    return _mm512_dpwssd_epi32(sum, value, two);
#endif
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

const Kernels kAvx512VnniKernels = {rope, write, attend, merge};

}  // namespace phlite::attention

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
