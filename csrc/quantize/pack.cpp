#include "quantize/pack.h"

#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace phlite {
namespace {

#if defined(__SSE2__)
// rows[i][j] -> out[j * stride + i] for 16 x 16 bytes: each of four rounds interleaves rows i and i + 8.
void transpose_16x16(const uint8_t* rows, uint8_t* out, int stride) noexcept {
  __m128i a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows + 16 * i));
  for (int round = 0; round < 4; ++round) {
    for (int i = 0; i < 8; ++i) {
      b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 8]);
      b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 8]);
    }
    std::memcpy(a, b, sizeof a);
  }
  for (int j = 0; j < 16; ++j) _mm_storeu_si128(reinterpret_cast<__m128i*>(out + stride * j), a[j]);
}

// Bit 4 of each of 32 codes.
uint32_t fifth_bits(const uint8_t q[32]) noexcept {
  const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q));
  const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q + 16));
  const auto bits = [](__m128i v) { return static_cast<uint32_t>(_mm_movemask_epi8(_mm_slli_epi16(v, 3))); };
  return bits(low) | bits(high) << 16;
}
#else
void transpose_16x16(const uint8_t* rows, uint8_t* out, int stride) noexcept {
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) out[stride * j + i] = rows[16 * i + j];
}

uint32_t fifth_bits(const uint8_t q[32]) noexcept {
  uint32_t bits = 0;
  for (int j = 0; j < 32; ++j) bits |= static_cast<uint32_t>(q[j] >> 4 & 1) << j;
  return bits;
}
#endif

// The inverse of unpack_k4_scales.
void pack_k4_scales(const int8_t scales[8], const uint8_t minima[8], uint8_t packed[12]) noexcept {
  for (int i = 0; i < 4; ++i) {
    const int high_scale = scales[i + 4] >> 4, high_minimum = minima[i + 4] >> 4;
    packed[i] = static_cast<uint8_t>(scales[i] | high_scale << 6);
    packed[i + 4] = static_cast<uint8_t>(minima[i] | high_minimum << 6);
    packed[i + 8] = static_cast<uint8_t>((scales[i + 4] & 15) | (minima[i + 4] & 15) << 4);
  }
}

// The inverse of unpack_q3_scales.
void pack_q3_scales(const int8_t scales[16], uint8_t packed[12]) noexcept {
  std::memset(packed, 0, 12);
  for (int i = 0; i < 16; ++i) {
    const int value = scales[i] + 32;
    packed[i % 8] = static_cast<uint8_t>(packed[i % 8] | (value & 15) << (i < 8 ? 0 : 4));
    packed[8 + i % 4] = static_cast<uint8_t>(packed[8 + i % 4] | value >> 4 << (2 * (i / 4)));
  }
}

// Two low bits of 256 codes as Q2_K and Q3_K keep them.
void pack_two_bits(const uint8_t q[kSuperBlock], uint8_t qs[64]) noexcept {
  for (int half = 0; half < 2; ++half)
    for (int l = 0; l < 32; ++l) {
      const uint8_t* c = q + 128 * half + l;
      qs[32 * half + l] = static_cast<uint8_t>((c[0] & 3) | (c[32] & 3) << 2 | (c[64] & 3) << 4 | (c[96] & 3) << 6);
    }
}

void pack_nibbles_of_64(const uint8_t q[kSuperBlock], uint8_t qs[128]) noexcept {
  for (int g = 0; g < 4; ++g)
    for (int l = 0; l < 32; ++l)
      qs[32 * g + l] = static_cast<uint8_t>((q[64 * g + l] & 15) | (q[64 * g + 32 + l] & 15) << 4);
}

void pack(const SuperblockCodes& c, BlockQ2_K& b) noexcept {
  for (int g = 0; g < 16; ++g) b.scales[g] = static_cast<uint8_t>(c.scales[g] | c.minima[g] << 4);
  pack_two_bits(c.q, b.qs);
  b.d = c.d;
  b.dmin = c.dmin;
}

void pack(const SuperblockCodes& c, BlockQ3_K& b) noexcept {
  pack_q3_scales(c.scales, b.scales);
  pack_two_bits(c.q, b.qs);
  std::memset(b.hmask, 0, sizeof b.hmask);
  for (int k = 0; k < 8; ++k)
    for (int l = 0; l < 32; ++l) b.hmask[l] = static_cast<uint8_t>(b.hmask[l] | (c.q[32 * k + l] >> 2 & 1) << k);
  b.d = c.d;
}

void pack(const SuperblockCodes& c, BlockQ4_K& b) noexcept {
  pack_k4_scales(c.scales, c.minima, b.scales);
  pack_nibbles_of_64(c.q, b.qs);
  b.d = c.d;
  b.dmin = c.dmin;
}

void pack(const SuperblockCodes& c, BlockQ5_K& b) noexcept {
  pack_k4_scales(c.scales, c.minima, b.scales);
  pack_nibbles_of_64(c.q, b.qs);
  std::memset(b.qh, 0, sizeof b.qh);
  for (int k = 0; k < 8; ++k)
    for (int l = 0; l < 32; ++l) b.qh[l] = static_cast<uint8_t>(b.qh[l] | c.q[32 * k + l] >> 4 << k);
  b.d = c.d;
  b.dmin = c.dmin;
}

void pack(const SuperblockCodes& c, BlockQ6_K& b) noexcept {
  for (int half = 0; half < 2; ++half)
    for (int l = 0; l < 32; ++l) {
      const uint8_t* q = c.q + 128 * half + l;
      b.ql[64 * half + l] = static_cast<uint8_t>((q[0] & 15) | (q[64] & 15) << 4);
      b.ql[64 * half + 32 + l] = static_cast<uint8_t>((q[32] & 15) | (q[96] & 15) << 4);
      b.qh[32 * half + l] = static_cast<uint8_t>(q[0] >> 4 | q[32] >> 4 << 2 | q[64] >> 4 << 4 | q[96] >> 4 << 6);
    }
  std::memcpy(b.scales, c.scales, sizeof b.scales);
  b.d = c.d;
}

void pack(const SuperblockCodes& c, BlockIQ4_XS& b) noexcept {
  int high = 0;
  for (int g = 0; g < 8; ++g) high |= (c.scales[g] + 32) >> 4 << (2 * g);
  b.scales_h = static_cast<uint16_t>(high);
  for (int i = 0; i < 4; ++i)
    b.scales_l[i] = static_cast<uint8_t>(((c.scales[2 * i] + 32) & 15) | ((c.scales[2 * i + 1] + 32) & 15) << 4);
  for (int g = 0; g < 8; ++g)
    for (int j = 0; j < 16; ++j) b.qs[16 * g + j] = static_cast<uint8_t>(c.q[32 * g + j] | c.q[32 * g + 16 + j] << 4);
  b.d = c.d;
}

template <class Block>
void write(const SuperblockCodes& codes, uint8_t* out) noexcept {
  Block block;
  pack(codes, block);
  std::memcpy(out, &block, sizeof block);
}

template <class Block, bool kMinimum, bool kFifthBit>
void write_blocks(const uint8_t q[][32], const uint16_t* d, const uint16_t* m, int n, uint8_t* out) noexcept {
  for (int b = 0; b < n; ++b, out += sizeof(Block)) {
    Block block;
    block.d = d[b];
    if constexpr (kMinimum) block.m = m[b];
    if constexpr (kFifthBit) {
      const uint32_t high = fifth_bits(q[b]);
      std::memcpy(block.qh, &high, sizeof block.qh);
    }
    for (int j = 0; j < 16; ++j) block.qs[j] = static_cast<uint8_t>((q[b][j] & 15) | q[b][j + 16] << 4);
    std::memcpy(out, &block, sizeof block);
  }
}

}  // namespace

void order_codes(const uint8_t* codes, int n, uint8_t* out) noexcept {
  for (int j = 0; j < n; j += 16) transpose_16x16(codes + 16 * j, out + j, n);
}

void pack_superblock(GGMLType type, const SuperblockCodes& codes, uint8_t* out) noexcept {
  switch (type) {
      // clang-format off
    case GGMLType::Q2_K: return write<BlockQ2_K>(codes, out);
    case GGMLType::Q3_K: return write<BlockQ3_K>(codes, out);
    case GGMLType::Q4_K: return write<BlockQ4_K>(codes, out);
    case GGMLType::Q5_K: return write<BlockQ5_K>(codes, out);
    case GGMLType::Q6_K: return write<BlockQ6_K>(codes, out);
    case GGMLType::IQ4_XS: return write<BlockIQ4_XS>(codes, out);
    default: return;
      // clang-format on
  }
}

void pack_blocks(GGMLType type, const uint8_t q[][32], const uint16_t* d, const uint16_t* m, int n,
                 uint8_t* out) noexcept {
  switch (type) {
      // clang-format off
    case GGMLType::Q4_0: return write_blocks<BlockQ4_0, false, false>(q, d, m, n, out);
    case GGMLType::Q4_1: return write_blocks<BlockQ4_1, true, false>(q, d, m, n, out);
    case GGMLType::Q5_0: return write_blocks<BlockQ5_0, false, true>(q, d, m, n, out);
    case GGMLType::Q5_1: return write_blocks<BlockQ5_1, true, true>(q, d, m, n, out);
    case GGMLType::IQ4_NL: return write_blocks<BlockIQ4_NL, false, false>(q, d, m, n, out);
    case GGMLType::Q8_0:
      for (int b = 0; b < n; ++b, out += sizeof(BlockQ8_0)) {
        std::memcpy(out, &d[b], 2);
        std::memcpy(out + 2, q[b], 32);
      }
      return;
    default: return;
      // clang-format on
  }
}

}  // namespace phlite
