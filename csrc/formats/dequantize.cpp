#include "formats/dequantize.h"

#include <cstring>

#include "support/fp16.h"

namespace phlite {
namespace {

void decode(const BlockQ4_0& block, float* y) noexcept {
  const float d = fp16_to_fp32(block.d);
  for (int j = 0; j < 16; ++j) {
    y[j] = d * static_cast<float>((block.qs[j] & 15) - 8);
    y[j + 16] = d * static_cast<float>((block.qs[j] >> 4) - 8);
  }
}

void decode(const BlockQ4_1& block, float* y) noexcept {
  const float d = fp16_to_fp32(block.d), m = fp16_to_fp32(block.m);
  for (int j = 0; j < 16; ++j) {
    y[j] = d * static_cast<float>(block.qs[j] & 15) + m;
    y[j + 16] = d * static_cast<float>(block.qs[j] >> 4) + m;
  }
}

uint32_t load_u32(const uint8_t bytes[4]) noexcept {
  uint32_t value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

void decode(const BlockQ5_0& block, float* y) noexcept {
  const float d = fp16_to_fp32(block.d);
  const uint32_t high = load_u32(block.qh);
  for (int j = 0; j < 16; ++j) {
    y[j] = d * static_cast<float>(static_cast<int>((block.qs[j] & 15) | (high >> j & 1) << 4) - 16);
    y[j + 16] = d * static_cast<float>(static_cast<int>((block.qs[j] >> 4) | (high >> (j + 16) & 1) << 4) - 16);
  }
}

void decode(const BlockQ5_1& block, float* y) noexcept {
  const float d = fp16_to_fp32(block.d), m = fp16_to_fp32(block.m);
  const uint32_t high = load_u32(block.qh);
  for (int j = 0; j < 16; ++j) {
    y[j] = d * static_cast<float>((block.qs[j] & 15) | (high >> j & 1) << 4) + m;
    y[j + 16] = d * static_cast<float>((block.qs[j] >> 4) | (high >> (j + 16) & 1) << 4) + m;
  }
}

void decode(const BlockQ8_0& block, float* y) noexcept {
  const float d = fp16_to_fp32(block.d);
  for (int j = 0; j < 32; ++j) y[j] = d * static_cast<float>(block.qs[j]);
}

void decode(const BlockIQ4_NL& block, float* y) noexcept {
  const float d = fp16_to_fp32(block.d);
  for (int j = 0; j < 16; ++j) {
    y[j] = d * static_cast<float>(kIQ4Values[block.qs[j] & 15]);
    y[j + 16] = d * static_cast<float>(kIQ4Values[block.qs[j] >> 4]);
  }
}

void decode(const BlockQ2_K& block, float* y) noexcept {
  const float d = fp16_to_fp32(block.d), dmin = fp16_to_fp32(block.dmin);
  for (int group = 0; group < 16; ++group) {
    const float scale = d * static_cast<float>(block.scales[group] & 15);
    const float minimum = dmin * static_cast<float>(block.scales[group] >> 4);
    const uint8_t* qs = block.qs + 32 * (group / 8) + 16 * (group % 2);
    const int shift = 2 * (group / 2 % 4);
    for (int l = 0; l < 16; ++l) y[16 * group + l] = scale * static_cast<float>(qs[l] >> shift & 3) - minimum;
  }
}

void decode(const BlockQ3_K& block, float* y) noexcept {
  const float d = fp16_to_fp32(block.d);
  int8_t scales[16];
  unpack_q3_scales(block.scales, scales);
  for (int group = 0; group < 16; ++group) {
    const float scale = d * static_cast<float>(scales[group]);
    const uint8_t* qs = block.qs + 32 * (group / 8) + 16 * (group % 2);
    const uint8_t* hmask = block.hmask + 16 * (group % 2);
    const int shift = 2 * (group / 2 % 4);
    for (int l = 0; l < 16; ++l) {
      const int q = (qs[l] >> shift & 3) - ((hmask[l] >> (group / 2) & 1) ? 0 : 4);
      y[16 * group + l] = scale * static_cast<float>(q);
    }
  }
}

void decode(const BlockQ4_K& block, float* y) noexcept {
  const float d = fp16_to_fp32(block.d), dmin = fp16_to_fp32(block.dmin);
  uint8_t scales[8], minima[8];
  unpack_k4_scales(block.scales, scales, minima);
  for (int group = 0; group < 8; ++group) {
    const float scale = d * static_cast<float>(scales[group]);
    const float minimum = dmin * static_cast<float>(minima[group]);
    const uint8_t* qs = block.qs + 32 * (group / 2);
    const int shift = 4 * (group % 2);
    for (int l = 0; l < 32; ++l) y[32 * group + l] = scale * static_cast<float>(qs[l] >> shift & 15) - minimum;
  }
}

void decode(const BlockQ5_K& block, float* y) noexcept {
  const float d = fp16_to_fp32(block.d), dmin = fp16_to_fp32(block.dmin);
  uint8_t scales[8], minima[8];
  unpack_k4_scales(block.scales, scales, minima);
  for (int group = 0; group < 8; ++group) {
    const float scale = d * static_cast<float>(scales[group]);
    const float minimum = dmin * static_cast<float>(minima[group]);
    const uint8_t* qs = block.qs + 32 * (group / 2);
    const int shift = 4 * (group % 2);
    for (int l = 0; l < 32; ++l) {
      const int q = (qs[l] >> shift & 15) | (block.qh[l] >> group & 1) << 4;
      y[32 * group + l] = scale * static_cast<float>(q) - minimum;
    }
  }
}

void decode(const BlockQ6_K& block, float* y) noexcept {
  const float d = fp16_to_fp32(block.d);
  for (int group = 0; group < 16; ++group) {
    const float scale = d * static_cast<float>(block.scales[group]);
    const int half = group / 8, j = group / 2 % 4, start = 16 * (group % 2);
    const uint8_t* ql = block.ql + 64 * half + 32 * (j % 2) + start;
    const uint8_t* qh = block.qh + 32 * half + start;
    for (int l = 0; l < 16; ++l) {
      const int q = (ql[l] >> (4 * (j / 2)) & 15) | (qh[l] >> (2 * j) & 3) << 4;
      y[16 * group + l] = scale * static_cast<float>(q - 32);
    }
  }
}

void decode(const BlockIQ4_XS& block, float* y) noexcept {
  const float d = fp16_to_fp32(block.d);
  for (int group = 0; group < 8; ++group) {
    const float scale = d * static_cast<float>(iq4_xs_scale(block, group));
    const uint8_t* qs = block.qs + 16 * group;
    for (int j = 0; j < 16; ++j) {
      y[32 * group + j] = scale * static_cast<float>(kIQ4Values[qs[j] & 15]);
      y[32 * group + 16 + j] = scale * static_cast<float>(kIQ4Values[qs[j] >> 4]);
    }
  }
}

template <class Block>
void decode_row(const uint8_t* src, float* dst, int64_t n, int elements) noexcept {
  for (int64_t i = 0; i < n; i += elements, src += sizeof(Block)) {
    Block block;
    std::memcpy(&block, src, sizeof block);
    decode(block, dst + i);
  }
}

template <float (*to_fp32)(uint16_t) noexcept>
void widen_row(const uint8_t* src, float* dst, int64_t n) noexcept {
  for (int64_t i = 0; i < n; ++i) {
    uint16_t bits;
    std::memcpy(&bits, src + 2 * i, sizeof bits);
    dst[i] = to_fp32(bits);
  }
}

}  // namespace

bool dequantize_row(GGMLType type, const uint8_t* src, float* dst, int64_t n) noexcept {
  switch (type) {
      // clang-format off
    case GGMLType::F32: std::memcpy(dst, src, static_cast<size_t>(n) * sizeof(float)); return true;
    case GGMLType::F16: widen_row<fp16_to_fp32>(src, dst, n); return true;
    case GGMLType::BF16: widen_row<bf16_to_fp32>(src, dst, n); return true;
    case GGMLType::Q4_0: decode_row<BlockQ4_0>(src, dst, n, kSmallBlock); return true;
    case GGMLType::Q4_1: decode_row<BlockQ4_1>(src, dst, n, kSmallBlock); return true;
    case GGMLType::Q5_0: decode_row<BlockQ5_0>(src, dst, n, kSmallBlock); return true;
    case GGMLType::Q5_1: decode_row<BlockQ5_1>(src, dst, n, kSmallBlock); return true;
    case GGMLType::Q8_0: decode_row<BlockQ8_0>(src, dst, n, kSmallBlock); return true;
    case GGMLType::IQ4_NL: decode_row<BlockIQ4_NL>(src, dst, n, kSmallBlock); return true;
    case GGMLType::Q2_K: decode_row<BlockQ2_K>(src, dst, n, kSuperBlock); return true;
    case GGMLType::Q3_K: decode_row<BlockQ3_K>(src, dst, n, kSuperBlock); return true;
    case GGMLType::Q4_K: decode_row<BlockQ4_K>(src, dst, n, kSuperBlock); return true;
    case GGMLType::Q5_K: decode_row<BlockQ5_K>(src, dst, n, kSuperBlock); return true;
    case GGMLType::Q6_K: decode_row<BlockQ6_K>(src, dst, n, kSuperBlock); return true;
    case GGMLType::IQ4_XS: decode_row<BlockIQ4_XS>(src, dst, n, kSuperBlock); return true;
      // clang-format on
  }
  return false;
}

}  // namespace phlite
