// The quantisers one lane at a time: the definition that the other sets equal bit for bit, and the way on machines that
// none of them fits.
#include <cmath>
#include <cstring>
#include <limits>

#include "quantize/kernels.h"
#include "quantize/pack.h"
#include "support/fp16.h"

#define INLINE inline
#define INLINE_LAMBDA
#define UNROLL_FIT

namespace phlite {
namespace {

#include "quantize/iq4_search.inl"

struct V1 {
  using F = float;
  using M = bool;
  static constexpr int lanes = 1;

  static F load(const float* p) { return *p; }
  static F load_unaligned(const float* p) { return *p; }
  static void store(float* p, F v) { *p = v; }
  static void store_bytes(uint8_t* p, F v) { *p = static_cast<uint8_t>(static_cast<int32_t>(v)); }
  static void transpose(const float* from, int, float* to, int) { *to = *from; }
  static F set1(float v) { return v; }
  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F div(F a, F b) { return a / b; }
  // The second one where either is a NaN or both are zero, as in hardware.
  static F min(F a, F b) { return a < b ? a : b; }
  static F max(F a, F b) { return a > b ? a : b; }
  static F abs(F v) { return std::fabs(v); }
  static M less(F a, F b) { return a < b; }
  static M equal(F a, F b) { return a == b; }
  static M both(M a, M b) { return a && b; }
  static F select(M mask, F yes, F no) { return mask ? yes : no; }

  static F iq4_level(F t) { return static_cast<F>(kIQ4Values[search(t)]); }
  static F iq4_code(F t) { return static_cast<F>(search(t)); }

  static void to_f16(const float* x, int64_t n, uint8_t* out) noexcept {
    for (int64_t i = 0; i < n; ++i) {
      const uint16_t half = fp32_to_fp16(x[i]);
      std::memcpy(out + 2 * i, &half, 2);
    }
  }
  static void to_bf16(const float* x, int64_t n, uint8_t* out) noexcept {
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t bits = float_bits(x[i]);
      const uint16_t high = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
      std::memcpy(out + 2 * i, &high, 2);
    }
  }

 private:
  static int search(F t) {
    int node = 1;
    while (node < 16) node = 2 * node + (t >= kIq4Midpoints[node] ? 1 : 0);
    return node - 16;
  }
};

#include "quantize/formats.inl"

}  // namespace

const QuantizeKernels& quantize_kernels_scalar() {
  static const QuantizeKernels table = build_kernels<V1>();
  return table;
}

}  // namespace phlite
