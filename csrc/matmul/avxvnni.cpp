// Matrix products with the 256-bit byte dot product in its VEX encoding (AVX-VNNI: processors since Alder Lake and Zen
// 5).
//
// Register tile: eight rows of weights times four rows of activations in sixteen registers.
#include "matmul/kernels.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avxvnni")
#define INLINE __attribute__((always_inline)) inline
#define UNROLL _Pragma("GCC unroll 16")

namespace phlite {
namespace {

#include "matmul/vector256.inl"

struct VVnni256 : V256 {
  static constexpr int kMaxRows = 4, kSignedOffset = 128;
  static constexpr bool kSums32 = true;  // `dot` adds into 32 bits

  static INLINE I from_signed(I a) { return _mm256_xor_si256(a, set1(0x80808080)); }
  static INLINE I lookup_iq4(I a) {  // the IQ4 values with 128 added
    return table(_mm_setr_epi8(1, 24, 45, 63, 79, 93, 106, 118, -127, -115, -103, -90, -75, -59, -39, -15), a);
  }

  template <int>
  static constexpr int flush_every() {
    return 64;
  }
  template <int>
  static INLINE I dot(I acc, I codes, const int8_t* act) {
    return _mm256_dpbusd_avx_epi32(acc, codes, broadcast(act));
  }
  template <int>
  static INLINE I fold(I total, I acc, I scale) {
    return add(total, mul(acc, scale));
  }
  static INLINE I madd16(I acc, I pair, const int16_t* sums) {
    return _mm256_dpwssd_avx_epi32(acc, pair, broadcast(sums));
  }
};

#include "matmul/tile_kernels.inl"

}  // namespace

const MatmulKernels& matmul_kernels_avxvnni() {
  static const MatmulKernels table = build_kernels<VVnni256>();
  return table;
}

}  // namespace phlite
#pragma GCC pop_options
#endif
