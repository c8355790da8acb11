// Matrix products with the 256-bit byte dot product, which processors have in two encodings: VEX (AVX-VNNI, since Alder
// Lake and Zen 5) and EVEX (AVX512-VNNI with AVX512VL). The same kernels are compiled for both; the feature bits
// choose.
#include "matmul/kernels.h"
#include "support/prefetch.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#define INLINE __attribute__((always_inline)) inline
#define UNROLL _Pragma("GCC unroll 16")

namespace phlite {

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avxvnni")
#define DPBUSD _mm256_dpbusd_avx_epi32
#define DPWSSD _mm256_dpwssd_avx_epi32
namespace vex {
namespace {
#include "matmul/vnni256.inl"
}  // namespace
MatmulKernels build() { return build_kernels<OneTile<VVnni256>>(); }
}  // namespace vex
#undef DPBUSD
#undef DPWSSD
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")
#define DPBUSD _mm256_dpbusd_epi32
#define DPWSSD _mm256_dpwssd_epi32
namespace evex {
namespace {
#include "matmul/vnni256.inl"
}  // namespace
MatmulKernels build() { return build_kernels<OneTile<VVnni256>>(); }
}  // namespace evex
#undef DPBUSD
#undef DPWSSD
#pragma GCC pop_options

const MatmulKernels& matmul_kernels_avxvnni() {
  static const MatmulKernels table = has_vex_vnni() ? vex::build() : evex::build();
  return table;
}

}  // namespace phlite
#endif
