// Matrix products without vector instructions: one lane at a time, the definition that every other set equals bit for
// bit, and the way on machines that none of them fits. Multiply-adds are std::fma, rounded once, as in hardware.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "matmul/kernels.h"
#include "support/fp16.h"
#include "support/prefetch.h"

#if defined(_MSC_VER)
#define INLINE inline
#define UNROLL
#else
#define INLINE __attribute__((always_inline)) inline
#define UNROLL
#endif

namespace phlite {
namespace {

struct V1 {
  using I = int32_t;
  using F = float;
  static constexpr int lanes = 1, kFewRows = 0, kMaxRows = 1, kSignedOffset = 0;
  static constexpr int64_t unpack_rows(int, bool superblocks) { return superblocks ? 48 : kNeverUnpack; }
  static constexpr int rows_at_once(int group) { return group; }
  static constexpr int kMaxFloatRows = 1;
  static constexpr int64_t kWidenFloatRows = kNeverUnpack;
  static constexpr bool kLongPasses = false;
  static constexpr bool kSums32 = true;  // `dot` adds into 32 bits
  static constexpr bool kPairs = false, kLongSums = false, kWholeSlices = false;

  static void prefetch(const uint8_t*) {}
  static void fetch_once(const uint8_t*) {}
  static void prefetch_l2(const uint8_t*) {}
  static I zero() { return 0; }
  static F zero_f() { return 0.0f; }
  static I set1(int64_t v) { return static_cast<I>(v); }
  static F set1_f(float v) { return v; }
  static I load(const uint8_t* p) { return read<int32_t>(p); }
  static void store(uint8_t* p, I v) { std::memcpy(p, &v, 4); }
  static I load_u16(const uint8_t* p) { return read<uint16_t>(p); }
  static F load_half(const uint8_t* p) { return fp16_to_fp32(read<uint16_t>(p)); }
  static F load_f(const float* p) { return *p; }
  static void store_f(float* p, F v) { *p = v; }
  static F as_f(I v) { return read<float>(&v); }
  static I as_i(F v) { return read<int32_t>(&v); }

  static I and_(I a, I b) { return a & b; }
  static I or_(I a, I b) { return a | b; }
  static I add(I a, I b) { return a + b; }
  static I sub(I a, I b) { return a - b; }
  static I sub16(I a, I b) { return pair16(half(a, 0) - half(b, 0), half(a, 1) - half(b, 1)); }
  static I mul(I a, I b) { return a * b; }
  static I max(I a, I b) { return std::max(a, b); }
  template <int N>
  static I srl(I a) {
    return static_cast<I>(static_cast<uint32_t>(a) >> N);
  }
  template <int N>
  static I sra(I a) {
    return a >> N;
  }
  template <int N>
  static I shift(I a) {
    if constexpr (N >= 0)
      return static_cast<I>(static_cast<uint32_t>(a) << N);
    else
      return srl<-N>(a);
  }
  template <int B>
  static I byte(I a) {
    return srl<8 * B>(a) & 0xFF;
  }
  template <int P>
  static I byte_pair(I a) {
    return pair16(byte<2 * P>(a), byte<2 * P + 1>(a));
  }
  template <int P>
  static I signed_byte_pair(I a) {
    return pair16(int8_t(byte<2 * P>(a)), int8_t(byte<2 * P + 1>(a)));
  }

  static I from_signed(I a) { return a; }
  static I lookup_iq4(I a) {
    static const int8_t values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    uint32_t out = 0;
    for (int b = 0; b < 4; ++b)
      out |= static_cast<uint32_t>(static_cast<uint8_t>(values[(a >> (8 * b)) & 15])) << (8 * b);
    return static_cast<I>(out);
  }

  template <int>
  static constexpr int flush_every() {
    return 64;
  }
  template <int MaxCode>  // 255 marks signed codes
  static I dot(I acc, I codes, const int8_t* act) {
    for (int b = 0; b < 4; ++b) {
      const uint8_t u = static_cast<uint8_t>(codes >> (8 * b));
      acc += (MaxCode == 255 ? static_cast<int8_t>(u) : u) * act[b];
    }
    return acc;
  }
  template <int>
  static I fold(I total, I acc, I scale) {
    return total + acc * scale;
  }
  static I unit_scale() { return 1; }
  static I fold_scale(I scale) { return scale; }
  static I madd16(I acc, I pair, const int16_t* sums) {
    return acc + half(pair, 0) * sums[0] + half(pair, 1) * sums[1];
  }

  static F to_f(I v) { return static_cast<F>(v); }
  static I round(F v) { return static_cast<I>(std::nearbyint(v)); }
  static F add_f(F a, F b) { return a + b; }
  static F sub_f(F a, F b) { return a - b; }
  static F mul_f(F a, F b) { return a * b; }
  static F div_f(F a, F b) { return a / b; }
  static F min_f(F a, F b) { return a < b ? a : b; }
  static F max_f(F a, F b) { return a > b ? a : b; }
  static F fma(F a, F b, F c) { return std::fma(a, b, c); }
  static F fnma(F a, F b, F c) { return std::fma(-a, b, c); }
  static int32_t max_lane(I v) { return v; }
  static void store_rounded(F v, int8_t* q) {
    const I n = std::isnan(v) ? 0 : round(v);
    *q = static_cast<int8_t>(std::clamp(n, -128, 127));
  }
  static void sum_bytes(const int8_t* q, int32_t* sums) {
    for (int half = 0; half < 2; ++half) {
      sums[half] = 0;
      for (int i = 0; i < 16; ++i) sums[half] += q[16 * half + i];
    }
  }

 private:
  template <class T, class S>
  static T read(const S* p) {
    T v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static int half(I v, int i) { return static_cast<int16_t>(static_cast<uint32_t>(v) >> (16 * i)); }
  static I pair16(int lo, int hi) {
    return static_cast<I>((static_cast<uint32_t>(lo) & 0xFFFF) | static_cast<uint32_t>(hi) << 16);
  }
};

#include "matmul/tile_kernels.inl"

}  // namespace

const MatmulKernels& matmul_kernels_scalar() {
  static const MatmulKernels table = build_kernels<OneTile<V1>>();
  return table;
}

}  // namespace phlite
