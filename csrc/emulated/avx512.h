// AVX-512 and VNNI by way of AVX2, bit for bit, for machines that have neither: only what the kernels use, and a name
// that is missing here does not compile, or asks for a target that is not there. Included in place of <immintrin.h>.
//
// Conversions and sums round as the same instruction does in 256 bits; scaling goes by way of double, which holds every
// product exactly. Loads and stores that must be aligned trap when they are not.
#pragma once
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace emulated {

#define EMULATED __attribute__((target("avx2,fma,f16c"), always_inline)) static inline

struct I512 {
  __m256i lo, hi;
};
struct F512 {
  __m256 lo, hi;
};

// Lane by lane, for what has no counterpart.
template <class T, class V>
struct Lanes {
  T at[64 / sizeof(T)];
  Lanes() = default;
  explicit Lanes(const V& v) { std::memcpy(at, &v, 64); }
  V vector() const {
    V v;
    std::memcpy(&v, at, 64);
    return v;
  }
};
using Ints = Lanes<int32_t, I512>;
using Floats = Lanes<float, F512>;

constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT;
EMULATED void only(int given, int known) {
  if (given != known) __builtin_trap();
}
EMULATED void aligned(const void* p) { only(static_cast<int>(reinterpret_cast<uintptr_t>(p) % 64), 0); }

#define BOTH_I(NAME, F) \
  EMULATED I512 NAME(I512 a, I512 b) { return {F(a.lo, b.lo), F(a.hi, b.hi)}; }
#define BOTH_F(NAME, F) \
  EMULATED F512 NAME(F512 a, F512 b) { return {F(a.lo, b.lo), F(a.hi, b.hi)}; }
BOTH_I(and_si512, _mm256_and_si256)
BOTH_I(or_si512, _mm256_or_si256)
BOTH_I(xor_si512, _mm256_xor_si256)
BOTH_I(add_epi32, _mm256_add_epi32)
BOTH_I(add_epi64, _mm256_add_epi64)
BOTH_I(sub_epi32, _mm256_sub_epi32)
BOTH_I(sub_epi16, _mm256_sub_epi16)
BOTH_I(mullo_epi32, _mm256_mullo_epi32)
BOTH_I(max_epi32, _mm256_max_epi32)
BOTH_I(packs_epi32, _mm256_packs_epi32)
BOTH_I(packs_epi16, _mm256_packs_epi16)
BOTH_I(shuffle_epi8, _mm256_shuffle_epi8)
BOTH_I(unpacklo_epi32, _mm256_unpacklo_epi32)
BOTH_I(unpackhi_epi32, _mm256_unpackhi_epi32)
BOTH_I(unpacklo_epi64, _mm256_unpacklo_epi64)
BOTH_I(unpackhi_epi64, _mm256_unpackhi_epi64)
BOTH_F(add_ps, _mm256_add_ps)
BOTH_F(sub_ps, _mm256_sub_ps)
BOTH_F(mul_ps, _mm256_mul_ps)
BOTH_F(div_ps, _mm256_div_ps)
BOTH_F(min_ps, _mm256_min_ps)
BOTH_F(max_ps, _mm256_max_ps)
BOTH_F(unpacklo_ps, _mm256_unpacklo_ps)
BOTH_F(unpackhi_ps, _mm256_unpackhi_ps)
#undef BOTH_I
#undef BOTH_F

EMULATED I512 setzero_si512() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
EMULATED F512 setzero_ps() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
EMULATED I512 set1_epi32(int v) { return {_mm256_set1_epi32(v), _mm256_set1_epi32(v)}; }
EMULATED I512 set1_epi8(char v) { return {_mm256_set1_epi8(v), _mm256_set1_epi8(v)}; }
EMULATED F512 set1_ps(float v) { return {_mm256_set1_ps(v), _mm256_set1_ps(v)}; }
EMULATED I512 set4_epi32(int d, int c, int b, int a) {
  const __m256i v = _mm256_setr_epi32(a, b, c, d, a, b, c, d);
  return {v, v};
}
EMULATED I512 broadcast_i32x4(__m128i v) { return {_mm256_broadcastsi128_si256(v), _mm256_broadcastsi128_si256(v)}; }
template <class... T>
EMULATED I512 setr_epi32(T... v) {
  static_assert(sizeof...(v) == 16);
  const int32_t lanes[16] = {v...};
  I512 r;
  std::memcpy(&r, lanes, 64);
  return r;
}
EMULATED I512 set_epi32(int p, int o, int n, int m, int l, int k, int j, int i, int h, int g, int f, int e, int d,
                        int c, int b, int a) {
  return setr_epi32(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p);
}
template <class... T>
EMULATED F512 setr_ps(T... v) {
  static_assert(sizeof...(v) == 16);
  const float lanes[16] = {static_cast<float>(v)...};
  F512 r;
  std::memcpy(&r, lanes, 64);
  return r;
}

EMULATED I512 loadu_si512(const void* p) {
  const __m256i* v = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(v), _mm256_loadu_si256(v + 1)};
}
EMULATED void storeu_si512(void* p, I512 v) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), v.lo);
  _mm256_storeu_si256(static_cast<__m256i*>(p) + 1, v.hi);
}
EMULATED F512 loadu_ps(const void* p) {
  const float* v = static_cast<const float*>(p);
  return {_mm256_loadu_ps(v), _mm256_loadu_ps(v + 8)};
}
EMULATED void storeu_ps(void* p, F512 v) {
  _mm256_storeu_ps(static_cast<float*>(p), v.lo);
  _mm256_storeu_ps(static_cast<float*>(p) + 8, v.hi);
}
EMULATED F512 load_ps(const void* p) {
  aligned(p);
  return loadu_ps(p);
}
EMULATED void store_ps(void* p, F512 v) {
  aligned(p);
  storeu_ps(p, v);
}

EMULATED F512 castsi512_ps(I512 v) { return {_mm256_castsi256_ps(v.lo), _mm256_castsi256_ps(v.hi)}; }
EMULATED I512 castps_si512(F512 v) { return {_mm256_castps_si256(v.lo), _mm256_castps_si256(v.hi)}; }
EMULATED __m256 castps512_ps256(F512 v) { return v.lo; }
EMULATED float cvtss_f32(F512 v) { return _mm256_cvtss_f32(v.lo); }
EMULATED __m256 extractf32x8_ps(F512 v, int half) { return half ? v.hi : v.lo; }

EMULATED I512 srli_epi32(I512 v, unsigned n) {
  return {_mm256_srli_epi32(v.lo, static_cast<int>(n)), _mm256_srli_epi32(v.hi, static_cast<int>(n))};
}
EMULATED I512 srai_epi32(I512 v, unsigned n) {
  return {_mm256_srai_epi32(v.lo, static_cast<int>(n)), _mm256_srai_epi32(v.hi, static_cast<int>(n))};
}
EMULATED I512 slli_epi32(I512 v, unsigned n) {
  return {_mm256_slli_epi32(v.lo, static_cast<int>(n)), _mm256_slli_epi32(v.hi, static_cast<int>(n))};
}
EMULATED I512 srai_epi16(I512 v, unsigned n) {
  return {_mm256_srai_epi16(v.lo, static_cast<int>(n)), _mm256_srai_epi16(v.hi, static_cast<int>(n))};
}
EMULATED I512 slli_epi16(I512 v, unsigned n) {
  return {_mm256_slli_epi16(v.lo, static_cast<int>(n)), _mm256_slli_epi16(v.hi, static_cast<int>(n))};
}
EMULATED I512 rol_epi32(I512 v, unsigned n) { return or_si512(slli_epi32(v, n % 32), srli_epi32(v, 32 - n % 32)); }
EMULATED I512 abs_epi8(I512 v) { return {_mm256_abs_epi8(v.lo), _mm256_abs_epi8(v.hi)}; }
EMULATED F512 abs_ps(F512 v) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, v.lo), _mm256_andnot_ps(sign, v.hi)};
}
EMULATED F512 fmadd_ps(F512 a, F512 b, F512 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
EMULATED F512 fnmadd_ps(F512 a, F512 b, F512 c) {
  return {_mm256_fnmadd_ps(a.lo, b.lo, c.lo), _mm256_fnmadd_ps(a.hi, b.hi, c.hi)};
}

EMULATED F512 cvtepi32_ps(I512 v) { return {_mm256_cvtepi32_ps(v.lo), _mm256_cvtepi32_ps(v.hi)}; }
EMULATED I512 cvtps_epi32(F512 v) { return {_mm256_cvtps_epi32(v.lo), _mm256_cvtps_epi32(v.hi)}; }
EMULATED F512 cvtph_ps(__m256i v) {
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(v)), _mm256_cvtph_ps(_mm256_extracti128_si256(v, 1))};
}
EMULATED __m256i cvtps_ph(F512 v, int mode) {
  only(mode, kNearest);
  return _mm256_setr_m128i(_mm256_cvtps_ph(v.lo, kNearest), _mm256_cvtps_ph(v.hi, kNearest));
}
EMULATED F512 roundscale_ps(F512 v, int mode) {  // to whole numbers
  only(mode, kNearest | _MM_FROUND_NO_EXC);
  return {_mm256_round_ps(v.lo, kNearest | _MM_FROUND_NO_EXC), _mm256_round_ps(v.hi, kNearest | _MM_FROUND_NO_EXC)};
}
EMULATED I512 cvtepu16_epi32(__m256i v) {
  return {_mm256_cvtepu16_epi32(_mm256_castsi256_si128(v)), _mm256_cvtepu16_epi32(_mm256_extracti128_si256(v, 1))};
}
EMULATED I512 cvtepi8_epi16(__m256i v) {
  return {_mm256_cvtepi8_epi16(_mm256_castsi256_si128(v)), _mm256_cvtepi8_epi16(_mm256_extracti128_si256(v, 1))};
}
EMULATED __m128i cvtepi32_epi8(I512 v) {  // the low byte of each
  const Ints x(v);
  alignas(16) uint8_t out[16];
  for (int i = 0; i < 16; ++i) out[i] = static_cast<uint8_t>(x.at[i]);
  return _mm_load_si128(reinterpret_cast<const __m128i*>(out));
}
EMULATED __m128i cvtsepi32_epi8(I512 v) {  // saturated
  const Ints x(v);
  alignas(16) int8_t out[16];
  for (int i = 0; i < 16; ++i) out[i] = static_cast<int8_t>(x.at[i] < -128 ? -128 : x.at[i] > 127 ? 127 : x.at[i]);
  return _mm_load_si128(reinterpret_cast<const __m128i*>(out));
}
EMULATED __m256i cvtepi32_epi16(I512 v) {  // the low half of each
  const Ints x(v);
  alignas(32) uint16_t out[16];
  for (int i = 0; i < 16; ++i) out[i] = static_cast<uint16_t>(x.at[i]);
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(out));
}

EMULATED I512 permutexvar_epi32(I512 order, I512 v) {
  const Ints from(order), x(v);
  Ints out;
  for (int i = 0; i < 16; ++i) out.at[i] = x.at[from.at[i] & 15];
  return out.vector();
}
EMULATED F512 permutexvar_ps(I512 order, F512 v) { return castsi512_ps(permutexvar_epi32(order, castps_si512(v))); }
EMULATED F512 shuffle_ps(F512 a, F512 b, int order) {  // in each quarter: two of a, then two of b
  const Ints x(castps_si512(a)), y(castps_si512(b));
  Ints out;
  for (int i = 0; i < 16; ++i) out.at[i] = (i % 4 < 2 ? x : y).at[i / 4 * 4 + (order >> i % 4 * 2 & 3)];
  return castsi512_ps(out.vector());
}
EMULATED F512 shuffle_f32x4(F512 a, F512 b, int order) {  // quarters: two of a, then two of b
  const Ints x(castps_si512(a)), y(castps_si512(b));
  Ints out;
  for (int i = 0; i < 16; ++i) out.at[i] = (i < 8 ? x : y).at[(order >> i / 4 * 2 & 3) * 4 + i % 4];
  return castsi512_ps(out.vector());
}

EMULATED __m256i dpbusd_256(__m256i sum, __m256i a, __m256i b) {
  const __m256i low = _mm256_set1_epi16(0xFF);
  const __m256i even = _mm256_madd_epi16(_mm256_and_si256(a, low), _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8));
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(b, 8));
  return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
}
EMULATED __m256i dpwssd_256(__m256i sum, __m256i a, __m256i b) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}
EMULATED I512 dpbusd_epi32(I512 sum, I512 a, I512 b) {
  return {dpbusd_256(sum.lo, a.lo, b.lo), dpbusd_256(sum.hi, a.hi, b.hi)};
}
EMULATED I512 dpwssd_epi32(I512 sum, I512 a, I512 b) {
  return {dpwssd_256(sum.lo, a.lo, b.lo), dpwssd_256(sum.hi, a.hi, b.hi)};
}

EMULATED int32_t reduce_add_epi32(I512 v) {
  const Ints x(v);
  uint32_t sum = 0;
  for (int i = 0; i < 16; ++i) sum += static_cast<uint32_t>(x.at[i]);
  return static_cast<int32_t>(sum);
}
EMULATED int64_t reduce_add_epi64(I512 v) {
  const Lanes<uint64_t, I512> x(v);
  uint64_t sum = 0;
  for (int i = 0; i < 8; ++i) sum += x.at[i];
  return static_cast<int64_t>(sum);
}
EMULATED int32_t reduce_max_epi32(I512 v) {
  const Ints x(v);
  int32_t most = x.at[0];
  for (int i = 1; i < 16; ++i) most = x.at[i] > most ? x.at[i] : most;
  return most;
}

EMULATED __mmask16 cmp_ps_mask(F512 a, F512 b, int predicate) {
  const Floats x(a), y(b);
  int mask = 0;
  for (int i = 0; i < 16; ++i) {
    switch (predicate) {  // all of them false where one side is not a number
      case _CMP_LT_OQ:
        mask |= (x.at[i] < y.at[i]) << i;
        break;
      case _CMP_EQ_OQ:
        mask |= (x.at[i] == y.at[i]) << i;
        break;
      case _CMP_GE_OQ:
        mask |= (x.at[i] >= y.at[i]) << i;
        break;
      default:
        __builtin_trap();
    }
  }
  return static_cast<__mmask16>(mask);
}
EMULATED __mmask16 cmplt_epi32_mask(I512 a, I512 b) {
  const int lo = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(b.lo, a.lo)));
  const int hi = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(b.hi, a.hi)));
  return static_cast<__mmask16>(lo | hi << 8);
}
EMULATED __mmask16 cmpge_epi32_mask(I512 a, I512 b) { return static_cast<__mmask16>(~cmplt_epi32_mask(a, b)); }
EMULATED I512 mask_blend_epi32(__mmask16 mask, I512 a, I512 b) {  // b where the mask is set
  const Ints x(a), y(b);
  Ints out;
  for (int i = 0; i < 16; ++i) out.at[i] = mask >> i & 1 ? y.at[i] : x.at[i];
  return out.vector();
}
EMULATED F512 mask_blend_ps(__mmask16 mask, F512 a, F512 b) {
  return castsi512_ps(mask_blend_epi32(mask, castps_si512(a), castps_si512(b)));
}
EMULATED I512 mask_add_epi32(I512 otherwise, __mmask16 mask, I512 a, I512 b) {
  return mask_blend_epi32(mask, otherwise, add_epi32(a, b));
}
EMULATED F512 maskz_scalef_ps(__mmask16 mask, F512 a, F512 b) {  // a 2^floor(b), rounded once; b is finite
  const Floats x(a), y(b);
  Floats out;
  for (int i = 0; i < 16; ++i) {
    if (!(mask >> i & 1)) {
      out.at[i] = 0;
      continue;
    }
    const float n = std::fmin(std::fmax(std::floor(y.at[i]), -500.0f), 500.0f);
    out.at[i] = static_cast<float>(std::ldexp(static_cast<double>(x.at[i]), static_cast<int>(n)));
  }
  return out.vector();
}

#undef EMULATED

}  // namespace emulated
