// Half precision to and from float in portable code, for everything that runs once per block. Both directions give the
// bits of the x86 and Arm conversion instructions, so a kernel may use those instead without changing a result.
#pragma once

#include <cstdint>
#include <cstring>

namespace phlite {

inline uint32_t float_bits(float value) noexcept {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float bits_to_float(uint32_t bits) noexcept {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// IEEE binary16 to binary32, exact; a signalling NaN becomes quiet.
inline float fp16_to_fp32(uint16_t half) noexcept {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = (half >> 10) & 31;
  const uint32_t mantissa = half & 0x3ff;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24 is a normal float
    return bits_to_float(float_bits(static_cast<float>(mantissa) * 0x1p-24f) | sign);
  }
  if (exponent == 31) {
    return bits_to_float(sign | 0x7f800000u | (mantissa ? 0x400000u | mantissa << 13 : 0u));
  }
  return bits_to_float(sign | (exponent + 112) << 23 | mantissa << 13);
}

// IEEE binary32 to binary16, to nearest, ties to even; beyond 65504 + 16 infinite; a NaN stays one and becomes quiet.
inline uint16_t fp32_to_fp16(float value) noexcept {
  const uint32_t bits = float_bits(value);
  const uint32_t sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00 | (magnitude >> 13 & 0x3ff);
  } else if (magnitude >= 0x477ff000u) {  // 65520, half way to the power of two after the largest half
    half = 0x7c00;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: at 0.5 a float's last place is 2^-24, so the sum rounds for us
    half = float_bits(bits_to_float(magnitude) + 0.5f) - float_bits(0.5f);
  } else {
    half = (magnitude - 0x38000000u + 0xfff + (magnitude >> 13 & 1)) >> 13;
  }
  return static_cast<uint16_t>(sign | half);
}

// bfloat16 is the upper half of a float.
inline float bf16_to_fp32(uint16_t bf16) noexcept { return bits_to_float(static_cast<uint32_t>(bf16) << 16); }

}  // namespace phlite
