#include "cpu/limits.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>

#include "cpu/isa.h"
#include "support/large_buffer.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace phlite {
namespace {

double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

std::atomic<uint64_t> sink{0};  // results go here, so that no loop is optimised away

uint64_t read_plain(const uint8_t* p, size_t n) noexcept {
  uint64_t sum[8] = {};
  for (size_t i = 0; i + 64 <= n; i += 64) {
    uint64_t v[8];
    std::memcpy(v, p + i, 64);
    for (int k = 0; k < 8; ++k) sum[k] += v[k];
  }
  return sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
}

#if defined(__x86_64__) || defined(_M_X64)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vnni")
// Some processors read faster when they are asked ahead, others slower.
template <bool Ahead>
uint64_t read_avx512(const uint8_t* p, size_t n) noexcept {
  __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;
  for (size_t i = 0; i + 256 <= n; i += 256) {
    if constexpr (Ahead)
      for (int line = 0; line < 256; line += 64)
        _mm_prefetch(reinterpret_cast<const char*>(p + i + 4096 + line), _MM_HINT_NTA);
    a = _mm512_add_epi64(a, _mm512_loadu_si512(p + i));
    b = _mm512_add_epi64(b, _mm512_loadu_si512(p + i + 64));
    c = _mm512_add_epi64(c, _mm512_loadu_si512(p + i + 128));
    d = _mm512_add_epi64(d, _mm512_loadu_si512(p + i + 192));
  }
  return static_cast<uint64_t>(
      _mm512_reduce_add_epi64(_mm512_add_epi64(_mm512_add_epi64(a, b), _mm512_add_epi64(c, d))));
}

// Twelve independent chains hide the latency; the operands never leave registers.
uint64_t multiply_avx512(int64_t n) noexcept {
  const __m512i w = _mm512_set1_epi8(3), x = _mm512_set1_epi8(5);
  __m512i a0 = _mm512_setzero_si512(), a1 = a0, a2 = a0, a3 = a0, a4 = a0, a5 = a0, a6 = a0, a7 = a0, a8 = a0, a9 = a0,
          a10 = a0, a11 = a0;
  for (int64_t i = 0; i < n; ++i) {
    a0 = _mm512_dpbusd_epi32(a0, w, x), a1 = _mm512_dpbusd_epi32(a1, w, x), a2 = _mm512_dpbusd_epi32(a2, w, x);
    a3 = _mm512_dpbusd_epi32(a3, w, x), a4 = _mm512_dpbusd_epi32(a4, w, x), a5 = _mm512_dpbusd_epi32(a5, w, x);
    a6 = _mm512_dpbusd_epi32(a6, w, x), a7 = _mm512_dpbusd_epi32(a7, w, x), a8 = _mm512_dpbusd_epi32(a8, w, x);
    a9 = _mm512_dpbusd_epi32(a9, w, x), a10 = _mm512_dpbusd_epi32(a10, w, x), a11 = _mm512_dpbusd_epi32(a11, w, x);
    // Opaque to the compiler: the chains above cannot be merged into one.
    __asm__ volatile("" : "+v"(a0), "+v"(a1), "+v"(a2), "+v"(a3), "+v"(a4), "+v"(a5));
    __asm__ volatile("" : "+v"(a6), "+v"(a7), "+v"(a8), "+v"(a9), "+v"(a10), "+v"(a11));
  }
  const __m512i s = _mm512_add_epi32(_mm512_add_epi32(_mm512_add_epi32(a0, a1), _mm512_add_epi32(a2, a3)),
                                     _mm512_add_epi32(_mm512_add_epi32(a4, a5), _mm512_add_epi32(a6, a7)));
  return static_cast<uint64_t>(_mm512_reduce_add_epi32(
      _mm512_add_epi32(s, _mm512_add_epi32(_mm512_add_epi32(a8, a9), _mm512_add_epi32(a10, a11)))));
}
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2")
template <bool Ahead>
uint64_t read_avx2(const uint8_t* p, size_t n) noexcept {
  __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
  for (size_t i = 0; i + 128 <= n; i += 128) {
    if constexpr (Ahead)
      for (int line = 0; line < 128; line += 64)
        _mm_prefetch(reinterpret_cast<const char*>(p + i + 4096 + line), _MM_HINT_NTA);
    const __m256i* v = reinterpret_cast<const __m256i*>(p + i);
    a = _mm256_add_epi64(a, _mm256_loadu_si256(v));
    b = _mm256_add_epi64(b, _mm256_loadu_si256(v + 1));
    c = _mm256_add_epi64(c, _mm256_loadu_si256(v + 2));
    d = _mm256_add_epi64(d, _mm256_loadu_si256(v + 3));
  }
  const __m256i s = _mm256_add_epi64(_mm256_add_epi64(a, b), _mm256_add_epi64(c, d));
  return static_cast<uint64_t>(
      _mm_cvtsi128_si64(_mm_add_epi64(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1))));
}
#pragma GCC pop_options

// Twelve chains of 256-bit products: the dot product in either of its encodings, and for AVX2 pairs of products alone,
// whose sums take as many instructions again.
#define MULTIPLY_256(NAME, TARGET, DPBUSD)                                                                     \
  __attribute__((target(TARGET))) uint64_t NAME(int64_t n) noexcept {                                          \
    const __m256i zero = _mm256_setzero_si256(), w = _mm256_set1_epi8(3);                                      \
    [[maybe_unused]] const __m256i x = _mm256_set1_epi8(5);                                                    \
    __m256i a0 = zero, a1 = zero, a2 = zero, a3 = zero, a4 = zero, a5 = zero, a6 = zero, a7 = zero, a8 = zero, \
            a9 = zero, a10 = zero, a11 = zero;                                                                 \
    for (int64_t i = 0; i < n; ++i) {                                                                          \
      a0 = DPBUSD(a0, w, x), a1 = DPBUSD(a1, w, x), a2 = DPBUSD(a2, w, x), a3 = DPBUSD(a3, w, x);              \
      a4 = DPBUSD(a4, w, x), a5 = DPBUSD(a5, w, x), a6 = DPBUSD(a6, w, x), a7 = DPBUSD(a7, w, x);              \
      a8 = DPBUSD(a8, w, x), a9 = DPBUSD(a9, w, x), a10 = DPBUSD(a10, w, x), a11 = DPBUSD(a11, w, x);          \
      __asm__ volatile("" : "+x"(a0), "+x"(a1), "+x"(a2), "+x"(a3), "+x"(a4), "+x"(a5));                       \
      __asm__ volatile("" : "+x"(a6), "+x"(a7), "+x"(a8), "+x"(a9), "+x"(a10), "+x"(a11));                     \
    }                                                                                                          \
    const __m256i s = _mm256_add_epi32(_mm256_add_epi32(_mm256_add_epi32(a0, a1), _mm256_add_epi32(a2, a3)),   \
                                       _mm256_add_epi32(_mm256_add_epi32(a4, a5), _mm256_add_epi32(a6, a7)));  \
    const __m256i t = _mm256_add_epi32(_mm256_add_epi32(a8, a9), _mm256_add_epi32(a10, a11));                  \
    return static_cast<uint64_t>(_mm_cvtsi128_si64(_mm256_castsi256_si128(_mm256_add_epi32(s, t))));           \
  }
MULTIPLY_256(multiply_vex, "avx2,avxvnni", _mm256_dpbusd_avx_epi32)
MULTIPLY_256(multiply_evex, "avx2,avx512f,avx512vl,avx512vnni", _mm256_dpbusd_epi32)
#define PAIRS(sum, w, x) _mm256_maddubs_epi16(w, sum)
MULTIPLY_256(multiply_avx2, "avx2", PAIRS)
#undef PAIRS
#undef MULTIPLY_256
#endif

}  // namespace

double measure_read_bandwidth(ThreadPool& pool, size_t n_bytes, int n_rounds) {
  LargeBuffer buffer(n_bytes);
  const size_t share = n_bytes / static_cast<size_t>(pool.size()) / 4096 * 4096;
  pool.run([&](int idx, int) { std::memset(buffer.data() + static_cast<size_t>(idx) * share, idx + 1, share); });
  double best = 0;
  for (int round = 0; round < 2 * n_rounds; ++round) {
    const double start = now_s();
    pool.run([&](int idx, int) {
      const uint8_t* mine = buffer.data() + static_cast<size_t>(idx) * share;
#if defined(__x86_64__) || defined(_M_X64)
      if (active_isa() == Isa::avx512vnni) {
        sink += round % 2 ? read_avx512<true>(mine, share) : read_avx512<false>(mine, share);
        return;
      }
      if (active_isa() != Isa::scalar) {
        sink += round % 2 ? read_avx2<true>(mine, share) : read_avx2<false>(mine, share);
        return;
      }
#endif
      sink += read_plain(mine, share);
    });
    best = std::max(best, static_cast<double>(share) * pool.size() / (now_s() - start));
  }
  return best;
}

double measure_int8_peak(ThreadPool& pool, int n_rounds) {
  double best = 0;
#if defined(__x86_64__) || defined(_M_X64)
  uint64_t (*multiply)(int64_t) noexcept = nullptr;
  double products = 12 * 32;  // of one loop
  switch (active_isa()) {
    case Isa::avx512vnni:
      multiply = multiply_avx512, products = 12 * 64;
      break;
    case Isa::avxvnni:
      multiply = has_vex_vnni() ? multiply_vex : multiply_evex;
      break;
    case Isa::avx2:
      multiply = multiply_avx2;
      break;
    default:
      return 0;
  }
  constexpr int64_t kLoops = 2'000'000;
  for (int round = 0; round < n_rounds; ++round) {
    const double start = now_s();
    pool.run([&](int, int) { sink += multiply(kLoops); });
    best = std::max(best, static_cast<double>(kLoops) * products * pool.size() / (now_s() - start));
  }
#else
  (void)pool, (void)n_rounds;
#endif
  return best;
}

}  // namespace phlite
