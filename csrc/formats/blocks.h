// The block formats of ggml files, byte for byte. A row of a matrix is a sequence of blocks without gaps.
//
// All numbers are little-endian, d and m are IEEE halves, "lo" and "hi" are bits 0-3 and 4-7 of a byte. Blocks have an
// even size, but a file promises no alignment: copy a block with memcpy, or reach it through unaligned loads.
// Names, ids and layouts: https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-common.h
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "phlite reads model files in place and needs a little-endian machine"
#endif

namespace phlite {

// The same ids as phlite.gguf.GGMLType.
enum class GGMLType : int32_t {
  F32 = 0,
  F16 = 1,
  Q4_0 = 2,
  Q4_1 = 3,
  Q5_0 = 6,
  Q5_1 = 7,
  Q8_0 = 8,
  Q2_K = 10,
  Q3_K = 11,
  Q4_K = 12,
  Q5_K = 13,
  Q6_K = 14,
  IQ4_NL = 20,
  IQ4_XS = 23,
  BF16 = 30,
};

constexpr int kSmallBlock = 32;   // elements of Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 IQ4_NL
constexpr int kSuperBlock = 256;  // elements of the K formats and IQ4_XS

// y[j] = d * (lo(qs[j]) - 8), y[j+16] = d * (hi(qs[j]) - 8)
struct BlockQ4_0 {
  uint16_t d;
  uint8_t qs[16];
};
static_assert(sizeof(BlockQ4_0) == 18);

// y[j] = d * lo(qs[j]) + m, y[j+16] = d * hi(qs[j]) + m
struct BlockQ4_1 {
  uint16_t d;
  uint16_t m;
  uint8_t qs[16];
};
static_assert(sizeof(BlockQ4_1) == 20);

// As Q4_0 with a fifth bit, bit j of the 32 bits in qh for y[j]: y[j] = d * (q - 16)
struct BlockQ5_0 {
  uint16_t d;
  uint8_t qh[4];
  uint8_t qs[16];
};
static_assert(sizeof(BlockQ5_0) == 22);

// As Q4_1 with a fifth bit as in Q5_0: y[j] = d * q + m
struct BlockQ5_1 {
  uint16_t d;
  uint16_t m;
  uint8_t qh[4];
  uint8_t qs[16];
};
static_assert(sizeof(BlockQ5_1) == 24);

// y[j] = d * qs[j]
struct BlockQ8_0 {
  uint16_t d;
  int8_t qs[32];
};
static_assert(sizeof(BlockQ8_0) == 34);

// y[j] = d * kIQ4Values[lo(qs[j])], y[j+16] = d * kIQ4Values[hi(qs[j])]
struct BlockIQ4_NL {
  uint16_t d;
  uint8_t qs[16];
};
static_assert(sizeof(BlockIQ4_NL) == 18);

// 16 groups of 16; group g has scale lo(scales[g]) and minimum hi(scales[g]): y = d * scale * q - dmin * minimum.
// y[128h + 32j + l] takes bits 2j, 2j+1 of qs[32h + l], for h < 2, j < 4, l < 32.
struct BlockQ2_K {
  uint8_t scales[16];
  uint8_t qs[64];
  uint16_t d;
  uint16_t dmin;
};
static_assert(sizeof(BlockQ2_K) == 84);

// 16 groups of 16 with six-bit scales (see unpack_q3_scales): y = d * (scale - 32) * (q - 4 + 4 * high bit).
// Low bits as in Q2_K; the high bit of y[128h + 32j + l] is bit 4h + j of hmask[l].
struct BlockQ3_K {
  uint8_t hmask[32];
  uint8_t qs[64];
  uint8_t scales[12];
  uint16_t d;
};
static_assert(sizeof(BlockQ3_K) == 110);

// 8 groups of 32 with six-bit scales and minima (see unpack_k4_scales): y = d * scale * q - dmin * minimum.
// y[64g + l] takes lo(qs[32g + l]), y[64g + 32 + l] hi(qs[32g + l]), for g < 4, l < 32.
struct BlockQ4_K {
  uint16_t d;
  uint16_t dmin;
  uint8_t scales[12];
  uint8_t qs[128];
};
static_assert(sizeof(BlockQ4_K) == 144);

// As Q4_K with a fifth bit: bit k of qh[l] belongs to y[32k + l].
struct BlockQ5_K {
  uint16_t d;
  uint16_t dmin;
  uint8_t scales[12];
  uint8_t qh[32];
  uint8_t qs[128];
};
static_assert(sizeof(BlockQ5_K) == 176);

// 16 groups of 16 with signed scales: y = d * scales[group] * (q - 32). For h < 2, j < 4, l < 32, y[128h + 32j + l]
// takes four bits of ql[64h + 32(j & 1) + l], lo for j < 2 and else hi, and bits 2j, 2j+1 of qh[32h + l] above them.
struct BlockQ6_K {
  uint8_t ql[128];
  uint8_t qh[64];
  int8_t scales[16];
  uint16_t d;
};
static_assert(sizeof(BlockQ6_K) == 210);

// 8 groups of 32 with six-bit scales: low bits in the nibbles of scales_l (group 2i lo, 2i+1 hi), high bits 2g, 2g+1
// of scales_h. y[32g + j] = d * (scale - 32) * kIQ4Values[lo(qs[16g + j])], y[32g + 16 + j] the same with hi.
struct BlockIQ4_XS {
  uint16_t d;
  uint16_t scales_h;
  uint8_t scales_l[4];
  uint8_t qs[128];
};
static_assert(sizeof(BlockIQ4_XS) == 136);

// The sixteen levels of IQ4_NL and IQ4_XS.
constexpr int8_t kIQ4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

struct BlockSize {
  int elements;  // 0 for an id that is not a GGMLType
  int bytes;
};

constexpr BlockSize block_size(GGMLType type) noexcept {
  switch (type) {
      // clang-format off
    case GGMLType::F32: return {1, 4};
    case GGMLType::F16: return {1, 2};
    case GGMLType::BF16: return {1, 2};
    case GGMLType::Q4_0: return {kSmallBlock, sizeof(BlockQ4_0)};
    case GGMLType::Q4_1: return {kSmallBlock, sizeof(BlockQ4_1)};
    case GGMLType::Q5_0: return {kSmallBlock, sizeof(BlockQ5_0)};
    case GGMLType::Q5_1: return {kSmallBlock, sizeof(BlockQ5_1)};
    case GGMLType::Q8_0: return {kSmallBlock, sizeof(BlockQ8_0)};
    case GGMLType::IQ4_NL: return {kSmallBlock, sizeof(BlockIQ4_NL)};
    case GGMLType::Q2_K: return {kSuperBlock, sizeof(BlockQ2_K)};
    case GGMLType::Q3_K: return {kSuperBlock, sizeof(BlockQ3_K)};
    case GGMLType::Q4_K: return {kSuperBlock, sizeof(BlockQ4_K)};
    case GGMLType::Q5_K: return {kSuperBlock, sizeof(BlockQ5_K)};
    case GGMLType::Q6_K: return {kSuperBlock, sizeof(BlockQ6_K)};
    case GGMLType::IQ4_XS: return {kSuperBlock, sizeof(BlockIQ4_XS)};
      // clang-format on
  }
  return {0, 0};
}

// Bytes of a row of n elements; n must be a multiple of the block.
constexpr int64_t row_bytes(GGMLType type, int64_t n) noexcept {
  return n / block_size(type).elements * block_size(type).bytes;
}

// Scales and minima of Q4_K and Q5_K, eight each from 0 to 63, out of 12 bytes: the first four of both lie in the low
// six bits of bytes 0-3 and 4-7; of the last four, the low nibbles lie in bytes 8-11 and the rest in the two spare
// bits.
inline void unpack_k4_scales(const uint8_t packed[12], uint8_t scales[8], uint8_t minima[8]) noexcept {
  for (int i = 0; i < 4; ++i) {
    scales[i] = packed[i] & 63;
    minima[i] = packed[i + 4] & 63;
    scales[i + 4] = static_cast<uint8_t>((packed[i + 8] & 15) | (packed[i] >> 6) << 4);
    minima[i + 4] = static_cast<uint8_t>((packed[i + 8] >> 4) | (packed[i + 4] >> 6) << 4);
  }
}

// Scales of Q3_K, sixteen from -32 to 31, out of 12 bytes: low nibbles in bytes 0-7 (scale i in lo, scale i+8 in hi),
// the upper two bits of scale i in bits 2(i/4), 2(i/4)+1 of byte 8 + i%4.
inline void unpack_q3_scales(const uint8_t packed[12], int8_t scales[16]) noexcept {
  for (int i = 0; i < 16; ++i) {
    const int low = i < 8 ? packed[i] & 15 : packed[i - 8] >> 4;
    const int high = packed[8 + i % 4] >> (2 * (i / 4)) & 3;
    scales[i] = static_cast<int8_t>((low | high << 4) - 32);
  }
}

// Scale of group g of an IQ4_XS block, from -32 to 31.
inline int iq4_xs_scale(const BlockIQ4_XS& block, int g) noexcept {
  const int low = block.scales_l[g / 2] >> (4 * (g % 2)) & 15;
  return (low | (block.scales_h >> (2 * g) & 3) << 4) - 32;
}

}  // namespace phlite
