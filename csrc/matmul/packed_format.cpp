#include "matmul/packed_format.h"

#include <cstring>

namespace phlite {
namespace {

using A = ActivationKind;
using W = WeightType;

constexpr PackedFormat kFormats[kPackedFormatCount] = {
    {W::F32, "F32", A::f32, 1, 4, 0, 0},           {W::F16, "F16", A::f32, 1, 2, 0, 0},
    {W::BF16, "BF16", A::f32, 1, 2, 0, 0},         {W::Q4_0, "Q4_0", A::q8, 32, 18, 32, 4},
    {W::Q4_1, "Q4_1", A::q8, 32, 20, 64, 4},       {W::Q5_0, "Q5_0", A::q8, 32, 22, 32, 5},
    {W::Q5_1, "Q5_1", A::q8, 32, 24, 64, 5},       {W::Q8_0, "Q8_0", A::q8, 32, 34, 32, 8},
    {W::IQ4_NL, "IQ4_NL", A::q8, 32, 18, 32, 4},   {W::Q2_K, "Q2_K", A::q8k, 256, 84, 0, 21},
    {W::Q3_K, "Q3_K", A::q8k, 256, 110, 32, 27},   {W::Q4_K, "Q4_K", A::q8k, 256, 144, 0, 36},
    {W::Q5_K, "Q5_K", A::q8k, 256, 176, 0, 44},    {W::Q6_K, "Q6_K", A::q8k, 256, 210, 32, 52},
    {W::IQ4_XS, "IQ4_XS", A::q8k, 256, 136, 0, 34},
};

uint32_t load32(const uint8_t* p) {
  uint32_t v;
  std::memcpy(&v, p, 4);
  return v;
}

// One row's place in the planes of a tile: plane i of this row is a dword 64 bytes after that of plane i - 1.
struct Lane {
  uint8_t* base;
  void put(int plane, uint32_t v) const { std::memcpy(base + plane * kPlaneBytes, &v, 4); }
};

constexpr uint32_t kLo = 0x0F0F0F0Fu, kHi = 0xF0F0F0F0u;

// The bits of `bits` (bit i = column i) as a bit plane: bit s of byte b = column 4s + b.
uint32_t to_bit_plane(uint32_t bits) {
  uint32_t out = 0;
  for (int b = 0; b < 4; ++b)
    for (int s = 0; s < 8; ++s) out |= ((bits >> (4 * s + b)) & 1u) << (8 * b + s);
  return out;
}

// Nibbles of 64 columns in the file (low: group g, high: group g + 1) to two groups of nibble planes.
void put_nibble_groups(const uint8_t* qs, Lane lane, int plane_g, int plane_g1) {
  for (int s = 0; s < 4; ++s) {
    const uint32_t a = load32(qs + 4 * s), b = load32(qs + 4 * (s + 4));
    lane.put(plane_g + s, (a & kLo) | ((b & kLo) << 4));
    lane.put(plane_g1 + s, ((a & kHi) >> 4) | (b & kHi));
  }
}

// A scale or a pair of halves of a row into a plane-like array of sixteen float16 (2 bytes a row).
void put_half(uint8_t* array, int row, const uint8_t* half) { std::memcpy(array + 2 * row, half, 2); }

void pack_q4_k(const uint8_t* src, int row, uint8_t* body) {
  const Lane lane{body + 4 * row};
  put_half(body, row, src);            // d[16] then dmin[16]: one plane
  put_half(body + 32, row, src + 2);
  for (int i = 0; i < 3; ++i) lane.put(1 + i, load32(src + 4 + 4 * i));
  for (int p = 0; p < 4; ++p) put_nibble_groups(src + 16 + 32 * p, lane, 4 + 8 * p, 4 + 8 * p + 4);
}

void pack_q5_k(const uint8_t* src, int row, uint8_t* body) {
  const Lane lane{body + 4 * row};
  put_half(body, row, src);
  put_half(body + 32, row, src + 2);
  for (int i = 0; i < 3; ++i) lane.put(1 + i, load32(src + 4 + 4 * i));
  for (int p = 0; p < 4; ++p) put_nibble_groups(src + 48 + 32 * p, lane, 4 + 10 * p, 4 + 10 * p + 5);
  for (int g = 0; g < 8; ++g) {
    uint32_t bits = 0;
    for (int s = 0; s < 8; ++s) bits |= ((load32(src + 16 + 4 * s) >> g) & 0x01010101u) << s;
    lane.put(4 + 5 * g + 4, bits);
  }
}

void pack_q6_k(const uint8_t* src, int row, uint8_t* body) {
  const Lane lane{body + 4 * row};
  const uint8_t *ql = src, *qh = src + 128;
  for (int i = 0; i < 4; ++i) lane.put(i, load32(src + 192 + 4 * i));
  for (int g = 0; g < 16; ++g) {
    const int half = g / 8, quarter = g % 8 / 2, upper = g % 2;  // columns 128 half + 32 quarter + 16 upper ...
    uint32_t lo[4], hi[4];
    for (int s = 0; s < 4; ++s) {
      const uint32_t l = load32(ql + 64 * half + 32 * (quarter & 1) + 16 * upper + 4 * s);
      lo[s] = quarter < 2 ? l & kLo : (l >> 4) & kLo;
      hi[s] = (load32(qh + 32 * half + 16 * upper + 4 * s) >> (2 * quarter)) & 0x03030303u;
    }
    const int plane = 4 + 3 * g;
    lane.put(plane, lo[0] | (lo[2] << 4));
    lane.put(plane + 1, lo[1] | (lo[3] << 4));
    lane.put(plane + 2, hi[0] | (hi[1] << 2) | (hi[2] << 4) | (hi[3] << 6));
  }
}

// Two-bit codes of Q2_K and Q3_K: 16 groups of 16 columns, one plane a group.
uint32_t two_bit_plane(const uint8_t* qs, int g) {
  const int half = g / 8, shift = g % 8 / 2 * 2, upper = g % 2;
  uint32_t out = 0;
  for (int s = 0; s < 4; ++s)
    out |= ((load32(qs + 32 * half + 16 * upper + 4 * s) >> shift) & 0x03030303u) << (2 * s);
  return out;
}

void pack_q2_k(const uint8_t* src, int row, uint8_t* body) {
  const Lane lane{body + 4 * row};
  put_half(body, row, src + 80);
  put_half(body + 32, row, src + 82);
  for (int i = 0; i < 4; ++i) lane.put(1 + i, load32(src + 4 * i));
  for (int g = 0; g < 16; ++g) lane.put(5 + g, two_bit_plane(src + 16, g));
}

void pack_q3_k(const uint8_t* src, int row, uint8_t* body) {
  const Lane lane{body + 4 * row};
  for (int i = 0; i < 3; ++i) lane.put(i, load32(src + 96 + 4 * i));
  for (int pair = 0; pair < 8; ++pair) {
    uint32_t high = 0;
    for (int odd = 0; odd < 2; ++odd) {
      const int g = 2 * pair + odd, bit = g / 2;  // columns of group g: hmask[16 (g % 2) ..], bit 4 (g / 8) + g % 8 / 2
      lane.put(3 + 3 * pair + odd, two_bit_plane(src + 32, g));
      for (int s = 0; s < 4; ++s)
        high |= ((load32(src + 16 * odd + 4 * s) >> bit) & 0x01010101u) << (s + 4 * odd);
    }
    lane.put(3 + 3 * pair + 2, high);
  }
}

void pack_iq4_xs(const uint8_t* src, int row, uint8_t* body) {
  const Lane lane{body + 4 * row};
  put_half(body, row, src);            // d[16] then scales_h[16]
  put_half(body + 32, row, src + 2);
  lane.put(1, load32(src + 4));
  for (int i = 0; i < 32; ++i) lane.put(2 + i, load32(src + 8 + 4 * i));  // the file pairs columns j and j + 16 already
}

void pack_superblock(WeightType type, const uint8_t* src, int row, uint8_t* header, uint8_t* body) {
  switch (type) {
    case W::Q2_K: return pack_q2_k(src, row, body);
    case W::Q3_K: put_half(header, row, src + 108); return pack_q3_k(src, row, body);
    case W::Q4_K: return pack_q4_k(src, row, body);
    case W::Q5_K: return pack_q5_k(src, row, body);
    case W::Q6_K: put_half(header, row, src + 208); return pack_q6_k(src, row, body);
    case W::IQ4_XS: return pack_iq4_xs(src, row, body);
    default: return;
  }
}

void pack_block32(WeightType type, const uint8_t* src, int row, uint8_t* header, uint8_t* body) {
  const Lane lane{body + 4 * row};
  put_half(header, row, src);
  const bool has_min = type == W::Q4_1 || type == W::Q5_1, has_fifth = type == W::Q5_0 || type == W::Q5_1;
  const uint8_t* qs = src + 2;
  if (has_min) put_half(header + 32, row, qs), qs += 2;
  if (has_fifth) lane.put(4, to_bit_plane(load32(qs))), qs += 4;
  const int n_planes = type == W::Q8_0 ? 8 : 4;
  for (int s = 0; s < n_planes; ++s) lane.put(s, load32(qs + 4 * s));
}

}  // namespace

int packed_format_index(int ggml_type) {
  for (int i = 0; i < kPackedFormatCount; ++i)
    if (static_cast<int>(kFormats[i].type) == ggml_type) return i;
  return -1;
}

const PackedFormat& packed_format(int index) { return kFormats[index]; }

int64_t tile_header_bytes(const PackedFormat& f, int64_t n_cols) {
  const int64_t bytes = n_cols / f.block_cols * f.header_bytes;
  return (bytes + kPlaneBytes - 1) / kPlaneBytes * kPlaneBytes;
}

int64_t tile_bytes(const PackedFormat& f, int64_t n_cols) {
  if (f.activations == A::f32) {
    const int64_t bytes = n_cols * f.block_bytes * kTileRows;
    return (bytes + kPlaneBytes - 1) / kPlaneBytes * kPlaneBytes;
  }
  return tile_header_bytes(f, n_cols) + n_cols / f.block_cols * f.body_planes * kPlaneBytes;
}

void pack_tile(const PackedFormat& f, const uint8_t* const rows[kTileRows], int64_t n_cols, uint8_t* dst) noexcept {
  if (f.activations == A::f32) {
    const int size = f.block_bytes;
    for (int64_t k0 = 0; k0 < n_cols; k0 += 64) {  // a stretch of columns at a time keeps sixteen source lines in cache
      const int64_t k1 = k0 + 64 < n_cols ? k0 + 64 : n_cols;
      for (int r = 0; r < kTileRows; ++r)
        for (int64_t k = k0; k < k1; ++k) {
          uint8_t* to = dst + (k * kTileRows + r) * size;
          if (rows[r]) std::memcpy(to, rows[r] + k * size, size);
          else std::memset(to, 0, size);
        }
    }
    return;
  }
  const int64_t n_blocks = n_cols / f.block_cols;
  uint8_t* body = dst + tile_header_bytes(f, n_cols);
  static const uint8_t zeros[256] = {};
  for (int64_t b = 0; b < n_blocks; ++b) {
    uint8_t* header = dst + b * f.header_bytes;
    for (int r = 0; r < kTileRows; ++r) {
      const uint8_t* src = rows[r] ? rows[r] + b * f.block_bytes : zeros;
      if (f.block_cols == kSuperblock) pack_superblock(f.type, src, r, header, body);
      else pack_block32(f.type, src, r, header, body);
    }
    body += f.body_planes * kPlaneBytes;
  }
}

}  // namespace phlite
