#include "matmul/packed_format.h"

#include <cstring>

#include "support/transpose.h"

namespace phlite {
namespace {

using A = ActivationKind;
using W = GGMLType;

constexpr PackedFormat kFormats[kPackedFormatCount] = {
    {W::F32, "F32", A::f32, 1, 4, 0, 0},
    {W::F16, "F16", A::f32, 1, 2, 0, 0},
    {W::BF16, "BF16", A::f32, 1, 2, 0, 0},
    {W::Q4_0, "Q4_0", A::q8, 32, 18, 32, 4},
    {W::Q4_1, "Q4_1", A::q8, 32, 20, 64, 4},
    {W::Q5_0, "Q5_0", A::q8, 32, 22, 32, 5},
    {W::Q5_1, "Q5_1", A::q8, 32, 24, 64, 5},
    {W::Q8_0, "Q8_0", A::q8, 32, 34, 32, 8},
    {W::IQ4_NL, "IQ4_NL", A::q8, 32, 18, 32, 4},
    {W::Q2_K, "Q2_K", A::q8k, 256, 84, 0, 21},
    {W::Q3_K, "Q3_K", A::q8k, 256, 110, 32, 27},
    {W::Q4_K, "Q4_K", A::q8k, 256, 144, 0, 36},
    {W::Q5_K, "Q5_K", A::q8k, 256, 176, 0, 44},
    {W::Q6_K, "Q6_K", A::q8k, 256, 210, 32, 52},
    {W::IQ4_XS, "IQ4_XS", A::q8k, 256, 136, 0, 34},
};

// The same dword of sixteen rows. Plain loops over the lanes: every compiler turns them into vector instructions.
struct Lanes {
  uint32_t v[kTileRows];

  Lanes operator&(uint32_t mask) const {
    return map([=](uint32_t x) { return x & mask; });
  }
  Lanes operator<<(int n) const {
    return map([=](uint32_t x) { return x << n; });
  }
  Lanes operator>>(int n) const {
    return map([=](uint32_t x) { return x >> n; });
  }
  Lanes operator|(const Lanes& o) const {
    Lanes out;
    for (int r = 0; r < kTileRows; ++r) out.v[r] = v[r] | o.v[r];
    return out;
  }
  Lanes operator^(const Lanes& o) const {
    Lanes out;
    for (int r = 0; r < kTileRows; ++r) out.v[r] = v[r] ^ o.v[r];
    return out;
  }

 private:
  template <class F>
  Lanes map(F f) const {
    Lanes out;
    for (int r = 0; r < kTileRows; ++r) out.v[r] = f(v[r]);
    return out;
  }
};

constexpr uint32_t kLow4 = 0x0F0F0F0Fu, kHigh4 = 0xF0F0F0F0u, kLow2 = 0x03030303u, kLow1 = 0x01010101u;

// Past the caches, where that can be said: a packed plane is read when all others have been packed too, and a store
// into a cache would fetch the line first. `finish_planes` comes before other threads read.
void put(uint8_t* body, int plane, const Lanes& lanes) {
  uint8_t* to = body + plane * kPlaneBytes;
#if defined(__SSE2__)
  for (int i = 0; i < kPlaneBytes; i += 16)
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(lanes.v + i / 4)));
#else
  std::memcpy(to, lanes.v, kPlaneBytes);
#endif
}

void finish_planes() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// The low halves of sixteen dwords, then the high ones (float16 scales stay as they are in the file).
void put_halves(uint8_t* body, int plane, const Lanes& lanes) {
  uint16_t halves[2 * kTileRows];
  for (int r = 0; r < kTileRows; ++r) {
    halves[r] = static_cast<uint16_t>(lanes.v[r]);
    halves[kTileRows + r] = static_cast<uint16_t>(lanes.v[r] >> 16);
  }
  Lanes both;
  std::memcpy(both.v, halves, sizeof halves);
  put(body, plane, both);
}

using Rows = const uint8_t* const[kTileRows];

// `N` dwords of each row, from `offset` bytes into its block, as N sets of lanes.
template <int N>
struct Block {
  Lanes dw[N];
  Block(Rows rows, int offset) {
    constexpr int kInFours = N / 4 * 4;
    for (int i = 0; i < kInFours; i += 4)
      for (int r = 0; r < kTileRows; r += 4)
        transpose_4x4(rows + r, offset + 4 * i, reinterpret_cast<uint8_t*>(dw[i].v + r), sizeof(Lanes));
    for (int r = 0; r < kTileRows; ++r)
      for (int i = kInFours; i < N; ++i) std::memcpy(&dw[i].v[r], rows[r] + offset + 4 * i, 4);
  }
  const Lanes& operator[](int i) const { return dw[i]; }
};

void put_half_at(uint8_t* dst, Rows rows, int offset) {
  for (int r = 0; r < kTileRows; ++r) std::memcpy(dst + 2 * r, rows[r] + offset, 2);
}

// Eight dwords whose low nibbles are one group and whose high nibbles the next one, to two groups of nibble planes.
void put_nibble_groups(const Lanes* qs, uint8_t* body, int plane_even, int plane_odd) {
  for (int s = 0; s < 4; ++s) {
    put(body, plane_even + s, (qs[s] & kLow4) | ((qs[s + 4] & kLow4) << 4));
    put(body, plane_odd + s, ((qs[s] & kHigh4) >> 4) | (qs[s + 4] & kHigh4));
  }
}

void pack_q4_k(Rows rows, uint8_t* body) {
  const Block<36> b(rows, 0);  // d and dmin, scales[3], qs[32]
  put_halves(body, 0, b[0]);
  for (int i = 1; i < 4; ++i) put(body, i, b[i]);
  for (int p = 0; p < 4; ++p) put_nibble_groups(b.dw + 4 + 8 * p, body, 4 + 8 * p, 8 + 8 * p);
}

void pack_q5_k(Rows rows, uint8_t* body) {
  const Block<44> b(rows, 0);  // d and dmin, scales[3], qh[8], qs[32]
  put_halves(body, 0, b[0]);
  for (int i = 1; i < 4; ++i) put(body, i, b[i]);
  for (int p = 0; p < 4; ++p) put_nibble_groups(b.dw + 12 + 8 * p, body, 4 + 10 * p, 9 + 10 * p);
  for (int g = 0; g < 8; ++g) {
    Lanes bits = (b[4] >> g) & kLow1;
    for (int s = 1; s < 8; ++s) bits = bits | (((b[4 + s] >> g) & kLow1) << s);
    put(body, 4 + 5 * g + 4, bits);
  }
}

void pack_q6_k(Rows rows, uint8_t* header, uint8_t* body) {
  const Block<52> b(rows, 0);  // ql[32], qh[16], scales[4]; then d
  put_half_at(header, rows, 208);
  for (int i = 0; i < 4; ++i) put(body, i, b[48 + i]);
  for (int g = 0; g < 16; ++g) {
    const int half = g / 8, quarter = g % 8 / 2, upper = g % 2;  // columns 128 half + 32 quarter + 16 upper ...
    const Lanes* ql = b.dw + 16 * half + 8 * (quarter & 1) + 4 * upper;
    const Lanes* qh = b.dw + 32 + 8 * half + 4 * upper;
    const int shift = quarter < 2 ? 0 : 4, high = 2 * quarter, plane = 4 + 3 * g;
    put(body, plane, ((ql[0] >> shift) & kLow4) | (((ql[2] >> shift) & kLow4) << 4));
    put(body, plane + 1, ((ql[1] >> shift) & kLow4) | (((ql[3] >> shift) & kLow4) << 4));
    put(body, plane + 2,
        ((qh[0] >> high) & kLow2) | (((qh[1] >> high) & kLow2) << 2) | (((qh[2] >> high) & kLow2) << 4) |
            (((qh[3] >> high) & kLow2) << 6));
  }
}

// Two-bit codes of group g of Q2_K and Q3_K, whose sixteen dwords begin at qs.
Lanes two_bit_plane(const Lanes* qs, int g) {
  const Lanes* q = qs + 8 * (g / 8) + 4 * (g % 2);
  const int shift = g % 8 / 2 * 2;
  return ((q[0] >> shift) & kLow2) | (((q[1] >> shift) & kLow2) << 2) | (((q[2] >> shift) & kLow2) << 4) |
         (((q[3] >> shift) & kLow2) << 6);
}

void pack_q2_k(Rows rows, uint8_t* body) {
  const Block<21> b(rows, 0);  // scales[4], qs[16], d and dmin
  put_halves(body, 0, b[20]);
  for (int i = 0; i < 4; ++i) put(body, 1 + i, b[i]);
  for (int g = 0; g < 16; ++g) put(body, 5 + g, two_bit_plane(b.dw + 4, g));
}

void pack_q3_k(Rows rows, uint8_t* header, uint8_t* body) {
  const Block<27> b(rows, 0);  // hmask[8], qs[16], scales[3]; then d
  put_half_at(header, rows, 108);
  for (int i = 0; i < 3; ++i) put(body, i, b[24 + i]);
  for (int pair = 0; pair < 8; ++pair) {
    put(body, 3 + 3 * pair, two_bit_plane(b.dw + 8, 2 * pair));
    put(body, 4 + 3 * pair, two_bit_plane(b.dw + 8, 2 * pair + 1));
    Lanes high = (b[0] >> pair) & kLow1;  // bit `pair` of hmask: columns 32 pair ..
    for (int s = 1; s < 8; ++s) high = high | (((b[s] >> pair) & kLow1) << s);
    put(body, 5 + 3 * pair, high);
  }
}

void pack_iq4_xs(Rows rows, uint8_t* body) {
  const Block<34> b(rows, 0);  // d and scales_h, scales_l, qs[32]: the file pairs columns j and j + 16 already
  put_halves(body, 0, b[0]);
  for (int i = 1; i < 34; ++i) put(body, i, b[i]);
}

void pack_superblock(GGMLType type, Rows rows, uint8_t* header, uint8_t* body) {
  switch (type) {
    case W::Q2_K:
      return pack_q2_k(rows, body);
    case W::Q3_K:
      return pack_q3_k(rows, header, body);
    case W::Q4_K:
      return pack_q4_k(rows, body);
    case W::Q5_K:
      return pack_q5_k(rows, body);
    case W::Q6_K:
      return pack_q6_k(rows, header, body);
    case W::IQ4_XS:
      return pack_iq4_xs(rows, body);
    default:
      return;
  }
}

// Swaps the bits under `mask` with those `distance` above them.
Lanes swap_bits(const Lanes& x, int distance, uint32_t mask) {
  const Lanes differ = (x ^ (x >> distance)) & mask;
  return x ^ differ ^ (differ << distance);
}

// The 32 fifth bits of a block (bit i = column i) as a bit plane: bit s of byte b = column 4s + b. In the number of a
// column s are the three high bits and b the two low ones, so the numbers turn by two bits: four swaps.
Lanes to_bit_plane(const Lanes& bits) {
  const Lanes a = swap_bits(bits, 14, 0x0000CCCCu), b = swap_bits(a, 7, 0x00AA00AAu);
  return swap_bits(swap_bits(b, 2, 0x0C0C0C0Cu), 1, 0x22222222u);
}

void pack_block32(GGMLType type, Rows rows, uint8_t* header, uint8_t* body) {
  const bool has_min = type == W::Q4_1 || type == W::Q5_1, has_fifth = type == W::Q5_0 || type == W::Q5_1;
  int offset = 2;
  put_half_at(header, rows, 0);
  if (has_min) put_half_at(header + 32, rows, offset), offset += 2;
  if (has_fifth) put(body, 4, to_bit_plane(Block<1>(rows, offset)[0])), offset += 4;
  const Block<4> q(rows, offset);
  for (int s = 0; s < 4; ++s) put(body, s, q[s]);
  if (type == W::Q8_0) {
    const Block<4> upper(rows, offset + 16);
    for (int s = 0; s < 4; ++s) put(body, 4 + s, upper[s]);
  }
}

// Floats, column by column: four dwords of each row are four or eight columns.
template <class T>
void pack_floats(Rows rows, int64_t n_cols, uint8_t* dst) {
  constexpr int kBytes = sizeof(T), kStep = 16 / kBytes, kColumnBytes = kTileRows * kBytes;
  static const uint8_t zeros[16] = {};
  int64_t k = 0;
  for (; k + kStep <= n_cols; k += kStep) {
    const uint8_t* at[kTileRows];
    for (int r = 0; r < kTileRows; ++r) at[r] = rows[r] ? rows[r] + k * kBytes : zeros;
    const Block<4> columns(at, 0);
    for (int i = 0; i < 4; ++i) {
      if (kBytes == 4)
        put(dst + k * kColumnBytes, i, columns[i]);
      else
        put_halves(dst + k * kColumnBytes, i, columns[i]);
    }
  }
  for (; k < n_cols; ++k)
    for (int r = 0; r < kTileRows; ++r) {
      T value = 0;
      if (rows[r]) std::memcpy(&value, rows[r] + k * kBytes, kBytes);
      std::memcpy(dst + k * kColumnBytes + r * kBytes, &value, kBytes);
    }
}

}  // namespace

int packed_format_index(int ggml_type) {
  for (int i = 0; i < kPackedFormatCount; ++i)
    if (static_cast<int>(kFormats[i].type) == ggml_type) return i;
  return -1;
}

const PackedFormat& packed_format(int index) { return kFormats[index]; }

namespace {

constexpr int kSliceBlocks = kSuperblock / 32;  // blocks of 32 columns whose scales lie together

int64_t round_to_plane(int64_t n_bytes) { return (n_bytes + kPlaneBytes - 1) / kPlaneBytes * kPlaneBytes; }

// Where the header and the planes of block b lie in a tile.
struct BlockPlace {
  int64_t header;
  int64_t planes;
};

BlockPlace place_of(const PackedFormat& f, int64_t n_blocks, int64_t b) {
  const int64_t body_bytes = int64_t{f.body_planes} * kPlaneBytes;
  if (f.block_cols == kSuperblock)
    return {b * f.header_bytes, round_to_plane(n_blocks * f.header_bytes) + b * body_bytes};
  const int64_t first = b / kSliceBlocks * kSliceBlocks;
  const int64_t n_slice = n_blocks - first < kSliceBlocks ? n_blocks - first : kSliceBlocks;
  const int64_t slice = first * (f.header_bytes + body_bytes);
  return {slice + (b - first) * f.header_bytes,
          slice + round_to_plane(n_slice * f.header_bytes) + (b - first) * body_bytes};
}

}  // namespace

int64_t tile_bytes(const PackedFormat& f, int64_t n_cols) {
  if (f.activations == A::f32) return round_to_plane(n_cols * f.block_bytes * kTileRows);
  const int64_t n_blocks = n_cols / f.block_cols;
  return place_of(f, n_blocks, n_blocks - 1).planes + int64_t{f.body_planes} * kPlaneBytes;
}

void pack_tile(const PackedFormat& f, const uint8_t* const rows[kTileRows], int64_t n_cols, uint8_t* dst) noexcept {
  if (f.activations == A::f32) {
    if (f.block_bytes == 4)
      pack_floats<uint32_t>(rows, n_cols, dst);
    else
      pack_floats<uint16_t>(rows, n_cols, dst);
    finish_planes();
    return;
  }
  const int64_t n_blocks = n_cols / f.block_cols;
  static const uint8_t zeros[256] = {};
  for (int64_t b = 0; b < n_blocks; ++b) {
    const uint8_t* block[kTileRows];
    for (int r = 0; r < kTileRows; ++r) block[r] = rows[r] ? rows[r] + b * f.block_bytes : zeros;
    const BlockPlace place = place_of(f, n_blocks, b);
    uint8_t *header = dst + place.header, *body = dst + place.planes;
    if (f.block_cols == kSuperblock)
      pack_superblock(f.type, block, header, body);
    else
      pack_block32(f.type, block, header, body);
  }
  finish_planes();
}

}  // namespace phlite
