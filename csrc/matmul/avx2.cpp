// Matrix products with AVX2: no 8-bit dot product with 32-bit sums, so vpmaddubsw forms pairs in 16 bits.
//
// Codes of up to six bits: the pairs of several steps are added in 16 bits (4-bit: 8 steps, 30,480 at most; 5-bit: 4
// steps, 31,496; 6-bit: 2 steps, 32,004; all below 32,768), then one vpmaddwd widens them and applies the scale of the
// group at once. Signed 8-bit codes: |code| times activation with the code's sign, widened every step.
// Register tile: eight rows of weights times four rows of activations; wider ones spill (sixteen registers).
#include "matmul/kernels.h"

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
  static constexpr int kMaxRows = 4, kSignedOffset = 0;
  static constexpr bool kSums32 = false;  // `dot` adds into 16 bits

  static INLINE I from_signed(I a) { return a; }
  static INLINE I lookup_iq4(I a) {
    return table(_mm_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113), a);
  }

  template <int MaxCode>
  static constexpr int flush_every() {
    return MaxCode <= 15 ? 8 : MaxCode <= 31 ? 4 : MaxCode <= 63 ? 2 : 64;
  }
  template <int MaxCode>
  static INLINE I dot(I acc, I codes, const int8_t* act) {
    const I a = broadcast(act);
    if constexpr (MaxCode <= 63) return _mm256_add_epi16(acc, _mm256_maddubs_epi16(codes, a));
    const I pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(a, codes));
    return add(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  // The scale is an int16 that fills its lane: times both halves and their sum in one instruction.
  template <int MaxCode>
  static INLINE I fold(I total, I acc, I scale) {
    if constexpr (MaxCode > 63) return add(total, mul(acc, scale));
    const I both = or_(and_(scale, set1(0xFFFF)), shift<16>(scale));
    return add(total, _mm256_madd_epi16(acc, both));
  }
  static INLINE I madd16(I acc, I pair, const int16_t* sums) {
    return add(acc, _mm256_madd_epi16(pair, broadcast(sums)));
  }
};

#include "matmul/tile_kernels.inl"

}  // namespace

const MatmulKernels& matmul_kernels_avx2() {
  static const MatmulKernels table = build_kernels<VAvx2>();
  return table;
}

}  // namespace phlite
#pragma GCC pop_options
#endif
