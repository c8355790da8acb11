// Matrix products with AVX2: no 8-bit dot product with 32-bit sums, so vpmaddubsw forms pairs in 16 bits.
//
// The pairs of several steps are added in 16 bits (4-bit: 8 steps, 30,480 at most; 5-bit: 4 steps, 31,496; 6-bit: 2
// steps, 32,004; signed 8-bit codes, as |code| times activation with the code's sign: 1 step, 32,512; all below
// 32,768), 5- and 6-bit codes of a whole group where the activations are small enough, as they nearly always are; then
// one vpmaddwd widens them and applies the scale of the group at once. Register tile: sixteen rows of weights (two
// registers) times four rows of activations: eight sums, the codes, an activation and a product; totals are added to in
// memory.
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
#pragma GCC target("avx2,fma,f16c")
#define INLINE __attribute__((always_inline)) inline
#define UNROLL _Pragma("GCC unroll 16")

namespace phlite {
namespace {

#include "matmul/vector256.inl"

struct VAvx2 : V256 {
  static constexpr int kFewRows = 0, kMaxRows = 4, kSignedOffset = 0;
  static constexpr bool kSums32 = false;  // `dot` adds into 16 bits
  static constexpr bool kPairs = false;
  static constexpr bool kLongSums = true;  // a group stays in 16 bits where its activations are small enough
  // On Zen 3, once for all rows against again for every four, 8, 12, 24 and 32 rows: Q4_K 0.93, 0.98, 1.06, 1.08; Q6_K
  // 1.11, 1.20, 1.30, 1.34; Q3_K 1.16, 1.25, 1.38, 1.42; Q5_0 1.03, 1.11, 1.19, 1.23; Q4_0 0.86, 0.92, 0.99, 1.00 (128:
  // 1.05).
  static constexpr int64_t unpack_rows(int max_code, bool superblocks) {
    const bool simple = max_code <= 15 && max_code != 7;  // a mask, or a shift and a mask
    return superblocks ? (simple ? 16 : 8) : (simple ? 48 : 12);
  }

  static INLINE I from_signed(I a) { return a; }
  static INLINE I lookup_iq4(I a) {
    return table(_mm_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113), a);
  }

  template <int MaxCode>
  static constexpr int flush_every() {
    return MaxCode <= 15 ? 8 : MaxCode <= 31 ? 4 : MaxCode <= 63 ? 2 : 1;
  }
  template <int MaxCode>
  static INLINE I dot(I acc, I codes, const int8_t* act) {
    const __m256i a = broadcast(act);
    I sum{_mm256_add_epi16(acc.lo, pairs<MaxCode>(codes.lo, a)), _mm256_add_epi16(acc.hi, pairs<MaxCode>(codes.hi, a))};
    keep_order(sum);
    return sum;
  }
  // A scale fills both halves of its lane as int16: times both sums and their sum in one instruction.
  static INLINE I unit_scale() { return set1(0x00010001); }
  static INLINE I fold_scale(I scale) { return shuffle_lanes(scale, 0x01000100); }
  template <int>
  static INLINE I fold(I total, I acc, I scale) {
    return add(total, {_mm256_madd_epi16(acc.lo, scale.lo), _mm256_madd_epi16(acc.hi, scale.hi)});
  }
  static INLINE I madd16(I acc, I pair, const int16_t* sums) {
    const __m256i s = broadcast(sums);
    return add(acc, {_mm256_madd_epi16(pair.lo, s), _mm256_madd_epi16(pair.hi, s)});
  }

  // Of the 256 codes of a slice: see Activations::reach16 and reach32. Of the positive codes, or of the negative ones
  // if they are more, half of what sizes and sums come to together.
  static INLINE void note_reach(const int8_t* q, int16_t& reach16, int16_t& reach32) {
    const __m256i ones = _mm256_set1_epi8(1);
    __m256i most16 = _mm256_setzero_si256(), most32 = most16;
    for (int i = 0; i < kSuperblock; i += 32) {
      const __m256i codes = load256(reinterpret_cast<const uint8_t*>(q + i));
      const __m256i sums = add_lanes(_mm256_maddubs_epi16(ones, codes));
      const __m256i sizes = add_lanes(_mm256_maddubs_epi16(ones, _mm256_abs_epi8(codes)));
      most16 = _mm256_max_epi16(most16, larger_part(sums, sizes));
      most32 = _mm256_max_epi16(most32, larger_part(add_halves(sums), add_halves(sizes)));
    }
    reach16 = max_of_two(_mm_max_epi16(_mm256_castsi256_si128(most16), _mm256_extracti128_si256(most16, 1)));
    reach32 = max_of_two(_mm256_castsi256_si128(most32));
  }

 private:
  // The sums of the even and of the odd 16-bit lanes of each half, in all of its even and odd lanes.
  static INLINE __m256i add_lanes(__m256i v) {
    v = _mm256_add_epi16(v, _mm256_shuffle_epi32(v, 0x4E));
    return _mm256_add_epi16(v, _mm256_shuffle_epi32(v, 0xB1));
  }
  static INLINE __m256i add_halves(__m256i v) { return _mm256_add_epi16(v, _mm256_permute4x64_epi64(v, 0x4E)); }
  static INLINE __m256i larger_part(__m256i sums, __m256i sizes) {
    return _mm256_srli_epi16(_mm256_add_epi16(sizes, _mm256_abs_epi16(sums)), 1);
  }
  static INLINE int16_t max_of_two(__m128i v) {
    const int32_t lanes = _mm_cvtsi128_si32(v);
    const int16_t even = static_cast<int16_t>(lanes), odd = static_cast<int16_t>(lanes >> 16);
    return even > odd ? even : odd;
  }
  // Integer sums may be reordered, and the compiler would add the products of neighbouring steps to each other first,
  // which takes more registers than there are.
  static INLINE void keep_order(I& sum) { asm("" : "+x"(sum.lo), "+x"(sum.hi)); }

  template <int MaxCode>
  static INLINE __m256i pairs(__m256i codes, __m256i act) {
    if constexpr (MaxCode <= 63) return _mm256_maddubs_epi16(codes, act);
    return _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(act, codes));
  }
};

#include "matmul/tile_kernels.inl"

}  // namespace

const MatmulKernels& matmul_kernels_avx2() {
  static const MatmulKernels table = build_kernels<OneTile<VAvx2>>();
  return table;
}

}  // namespace phlite
#pragma GCC pop_options
#endif
