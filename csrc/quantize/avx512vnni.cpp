// The quantisers with AVX-512: a whole panel of sixteen groups at a time. No byte products here; the file is named
// after the instruction set that is chosen.
#include "quantize/kernels.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>

#include <cstring>
#include <limits>

#include "quantize/pack.h"
#include "support/fp16.h"

#pragma GCC push_options
#pragma GCC target("avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq")
#define INLINE __attribute__((always_inline)) inline
#define INLINE_LAMBDA __attribute__((always_inline))
#define UNROLL_FIT _Pragma("GCC unroll 4")

namespace phlite {
namespace {

#include "quantize/iq4_search.inl"

struct V16 {
  using F = __m512;
  using M = __mmask16;
  static constexpr int lanes = 16;

  static INLINE F load(const float* p) { return _mm512_load_ps(p); }
  static INLINE F load_unaligned(const float* p) { return _mm512_loadu_ps(p); }
  static INLINE void store(float* p, F v) { _mm512_store_ps(p, v); }
  static INLINE void store_bytes(uint8_t* p, F v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
  }
  // from[i * from_stride + j] -> to[j * to_stride + i] for 16 x 16 floats
  static INLINE void transpose(const float* from, int from_stride, float* to, int to_stride) {
    F a[16], b[16];
    for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(from + i * from_stride);
    for (int i = 0; i < 16; i += 2) {
      b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
      b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    // a[4 i + k]: column k of each quarter, rows 4 i .. 4 i + 3
    for (int i = 0; i < 16; i += 4)
      for (int k = 0; k < 2; ++k) {
        a[i + 2 * k] = _mm512_shuffle_ps(b[i + k], b[i + k + 2], 0x44);
        a[i + 2 * k + 1] = _mm512_shuffle_ps(b[i + k], b[i + k + 2], 0xEE);
      }
    for (int k = 0; k < 4; ++k) {
      const F low = _mm512_shuffle_f32x4(a[k], a[4 + k], 0x88), low_odd = _mm512_shuffle_f32x4(a[k], a[4 + k], 0xDD);
      const F high = _mm512_shuffle_f32x4(a[8 + k], a[12 + k], 0x88);
      const F high_odd = _mm512_shuffle_f32x4(a[8 + k], a[12 + k], 0xDD);
      _mm512_store_ps(to + k * to_stride, _mm512_shuffle_f32x4(low, high, 0x88));
      _mm512_store_ps(to + (4 + k) * to_stride, _mm512_shuffle_f32x4(low_odd, high_odd, 0x88));
      _mm512_store_ps(to + (8 + k) * to_stride, _mm512_shuffle_f32x4(low, high, 0xDD));
      _mm512_store_ps(to + (12 + k) * to_stride, _mm512_shuffle_f32x4(low_odd, high_odd, 0xDD));
    }
  }
  static INLINE F set1(float v) { return _mm512_set1_ps(v); }
  static INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
  static INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static INLINE F div(F a, F b) { return _mm512_div_ps(a, b); }
  static INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }
  static INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
  static INLINE F abs(F v) { return _mm512_abs_ps(v); }
  static INLINE M less(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
  static INLINE M equal(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
  static INLINE M both(M a, M b) { return static_cast<M>(a & b); }
  static INLINE F select(M mask, F yes, F no) { return _mm512_mask_blend_ps(mask, no, yes); }

  static INLINE F iq4_level(F t) {
    const F values = _mm512_setr_ps(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113);
    return _mm512_permutexvar_ps(search(t), values);
  }
  static INLINE F iq4_code(F t) { return _mm512_cvtepi32_ps(_mm512_sub_epi32(search(t), _mm512_set1_epi32(16))); }

  static void to_f16(const float* x, int64_t n, uint8_t* out) noexcept {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
      const __m256i halves = _mm512_cvtps_ph(_mm512_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 2 * i), halves);
    }
    for (; i < n; ++i) {
      const uint16_t half = fp32_to_fp16(x[i]);
      std::memcpy(out + 2 * i, &half, 2);
    }
  }
  static void to_bf16(const float* x, int64_t n, uint8_t* out) noexcept {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
      const __m512i bits = _mm512_castps_si512(_mm512_loadu_ps(x + i));
      const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
      const __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 2 * i), _mm512_cvtepi32_epi16(_mm512_srli_epi32(sum, 16)));
    }
    for (; i < n; ++i) {
      const uint32_t bits = float_bits(x[i]);
      const uint16_t high = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
      std::memcpy(out + 2 * i, &high, 2);
    }
  }

 private:
  static INLINE __m512i search(F t) {
    const F midpoints = _mm512_load_ps(kIq4Midpoints);
    __m512i node = _mm512_set1_epi32(1);
    for (int level = 0; level < 4; ++level) {
      const M right = _mm512_cmp_ps_mask(t, _mm512_permutexvar_ps(node, midpoints), _CMP_GE_OQ);
      node = _mm512_add_epi32(node, node);
      node = _mm512_mask_add_epi32(node, right, node, _mm512_set1_epi32(1));
    }
    return node;
  }
};

#include "quantize/formats.inl"

}  // namespace

const QuantizeKernels& quantize_kernels_avx512vnni() {
  static const QuantizeKernels table = build_kernels<V16>();
  return table;
}

}  // namespace phlite
#pragma GCC pop_options
#endif
