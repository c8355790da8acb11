// The quantisers with AVX2: eight groups at a time. F16C rounds to half.
#include "quantize/kernels.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>

#include <cstring>
#include <limits>

#include "quantize/pack.h"
#include "support/fp16.h"

#pragma GCC push_options
#pragma GCC target("avx2,f16c")
#define INLINE __attribute__((always_inline)) inline
#define INLINE_LAMBDA __attribute__((always_inline))
#define UNROLL_FIT _Pragma("GCC unroll 4")

namespace phlite {
namespace {

#include "quantize/iq4_search.inl"

struct V8 {
  using F = __m256;
  using M = __m256;
  static constexpr int lanes = 8;

  static INLINE F load(const float* p) { return _mm256_load_ps(p); }
  static INLINE F load_unaligned(const float* p) { return _mm256_loadu_ps(p); }
  static INLINE void store(float* p, F v) { _mm256_store_ps(p, v); }
  static INLINE void store_bytes(uint8_t* p, F v) {
    const __m256i pick = _mm256_broadcastsi128_si256(_mm_setr_epi32(0x0C080400, -1, -1, -1));
    const __m256i bytes = _mm256_shuffle_epi8(_mm256_cvtps_epi32(v), pick);
    const __m128i both = _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), both);
  }
  // from[i * from_stride + j] -> to[j * to_stride + i] for 8 x 8 floats
  static INLINE void transpose(const float* from, int from_stride, float* to, int to_stride) {
    F a[8], b[8];
    for (int i = 0; i < 8; ++i) a[i] = _mm256_loadu_ps(from + i * from_stride);
    for (int i = 0; i < 8; i += 2) {
      b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
      b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
      for (int k = 0; k < 2; ++k) {
        a[i + 2 * k] = _mm256_shuffle_ps(b[i + k], b[i + k + 2], 0x44);
        a[i + 2 * k + 1] = _mm256_shuffle_ps(b[i + k], b[i + k + 2], 0xEE);
      }
    for (int i = 0; i < 4; ++i) {
      _mm256_store_ps(to + i * to_stride, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
      _mm256_store_ps(to + (i + 4) * to_stride, _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
    }
  }
  static INLINE F set1(float v) { return _mm256_set1_ps(v); }
  static INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
  static INLINE F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static INLINE F div(F a, F b) { return _mm256_div_ps(a, b); }
  static INLINE F min(F a, F b) { return _mm256_min_ps(a, b); }
  static INLINE F max(F a, F b) { return _mm256_max_ps(a, b); }
  static INLINE F abs(F v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }
  static INLINE M less(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
  static INLINE M equal(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
  static INLINE M both(M a, M b) { return _mm256_and_ps(a, b); }
  static INLINE F select(M mask, F yes, F no) { return _mm256_blendv_ps(no, yes, mask); }

  static INLINE F iq4_level(F t) {
    const __m256i node = search(t);
    const F low = _mm256_setr_ps(-127, -104, -83, -65, -49, -35, -22, -10),
            high = _mm256_setr_ps(1, 13, 25, 38, 53, 69, 89, 113);
    const F upper = _mm256_castsi256_ps(_mm256_slli_epi32(node, 28));  // bit 3 of the code as the sign
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, node), _mm256_permutevar8x32_ps(high, node), upper);
  }
  static INLINE F iq4_code(F t) { return _mm256_cvtepi32_ps(_mm256_sub_epi32(search(t), _mm256_set1_epi32(16))); }

  static void to_f16(const float* x, int64_t n, uint8_t* out) noexcept {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
      const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 2 * i), halves);
    }
    for (; i < n; ++i) {
      const uint16_t half = fp32_to_fp16(x[i]);
      std::memcpy(out + 2 * i, &half, 2);
    }
  }
  static void to_bf16(const float* x, int64_t n, uint8_t* out) noexcept {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
      const __m256i words = _mm256_packus_epi32(bf16(x + i), bf16(x + i + 8));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 2 * i), _mm256_permute4x64_epi64(words, 0xD8));
    }
    for (; i < n; ++i) {
      const uint32_t bits = float_bits(x[i]);
      const uint16_t high = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
      std::memcpy(out + 2 * i, &high, 2);
    }
  }

 private:
  static INLINE __m256i search(F t) {
    const F near = _mm256_load_ps(kIq4Midpoints), leaves = _mm256_load_ps(kIq4Midpoints + 8);
    __m256i node = _mm256_set1_epi32(1);
    node = descend(node, t, _mm256_set1_ps(kIq4Midpoints[1]));
    node = descend(node, t, _mm256_permutevar8x32_ps(near, node));
    node = descend(node, t, _mm256_permutevar8x32_ps(near, node));
    return descend(node, t, _mm256_permutevar8x32_ps(leaves, node));
  }
  static INLINE __m256i descend(__m256i node, F t, F midpoint) {
    const __m256i right = _mm256_castps_si256(_mm256_cmp_ps(t, midpoint, _CMP_GE_OQ));
    return _mm256_sub_epi32(_mm256_add_epi32(node, node), right);
  }
  static INLINE __m256i bf16(const float* x) {
    const __m256i bits = _mm256_castps_si256(_mm256_loadu_ps(x));
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  }
};

#include "quantize/formats.inl"

}  // namespace

const QuantizeKernels& quantize_kernels_avx2() {
  static const QuantizeKernels table = build_kernels<V8>();
  return table;
}

}  // namespace phlite
#pragma GCC pop_options
#endif
