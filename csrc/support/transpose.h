// Four dwords of four rows to four columns.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>
#define PHLITE_SSE2
#endif

namespace phlite {

// Sixteen bytes of each row, from `offset` on: their first dwords side by side to `to`, their second ones to
// `to + stride`, ... No compiler makes this of a loop. One thread, packing Q4_K in the second-level cache: a loop 12,
// this 23, the same compiled for AVX-512 36 GB/s; that would spare 0.02 s of the 0.4 of loading 2.4 GB with two
// threads, so there is no version for each set.
inline void transpose_4x4(const uint8_t* const* rows, int64_t offset, uint8_t* to, int64_t stride) noexcept {
#if defined(PHLITE_SSE2)
  __m128i row[4];
  for (int r = 0; r < 4; ++r) row[r] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[r] + offset));
  const __m128i low01 = _mm_unpacklo_epi32(row[0], row[1]), low23 = _mm_unpacklo_epi32(row[2], row[3]);
  const __m128i high01 = _mm_unpackhi_epi32(row[0], row[1]), high23 = _mm_unpackhi_epi32(row[2], row[3]);
  const __m128i columns[4] = {_mm_unpacklo_epi64(low01, low23), _mm_unpackhi_epi64(low01, low23),
                              _mm_unpacklo_epi64(high01, high23), _mm_unpackhi_epi64(high01, high23)};
  for (int i = 0; i < 4; ++i) _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i * stride), columns[i]);
#else
  for (int i = 0; i < 4; ++i)
    for (int r = 0; r < 4; ++r) std::memcpy(to + i * stride + 4 * r, rows[r] + offset + 4 * i, 4);
#endif
}

}  // namespace phlite

#undef PHLITE_SSE2
