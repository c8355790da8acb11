// Attention of new tokens over a block-based KV cache: the contract of the kernels and their dispatch table.
//
// Shapes: T new tokens, Hq query heads, Hkv key/value heads, D head_dim (even, <= 256), G = Hq / Hkv. A row is one
// query of one head; rows that share a key/value head are processed together, so keys and values are read once for
// them.
//
// One KV block holds 64 positions of every head of one layer; the part of one head is contiguous, 64-byte aligned:
//   f16, f32   K [4][D][16]  16 positions side by side: their scores come out of 16 lanes, with no sum across lanes
//              V [64][Dp]    Dp = D rounded up to 16, the padding is zero and its results are dropped
//   q8_0       K uint8 [4][Dq/4][16][4] = value + 128, K scales bfloat16 [Dq/32][64]
//              V int8 [64/2][Dq][2], two positions side by side, V scales bfloat16 [Dq/32][64]
//              Dq = D rounded up to 32; the scale is max|x| / 127 of 32 dims, rounded up; value = x / scale to nearest
// f16 values beyond +-65504 are stored as +-65504, so a masked key can never make a NaN of its neighbours.
//
// What is computed, for query i of a row over its visible keys j (lo <= j <= i), all in float32:
//   s[j] = chain over d of fma(q[d], k[j][d], s)            q is pre-scaled by softmax_scale * log2(e): p = 2^(s - m)
//   q8_0: s[j] = chain over 32-blocks of fma(qscale * kscale[j], float(exact int32 dot), s)
//   in tiles of one block: m' = max(m, s); l = fma(l, 2^(m - m'), tile sum by lane j % 16); o = o * 2^(m - m'), then
//   chain over j of fma(p[j], v[j], o)
//   q8_0: the last chain is in integers: per tile and 32 dims, w[j] = p[j] * vscale[j], W[j] = w[j] * 32767 / max w to
//   nearest, o = fma(float(exact int32 sum of W[j] v[j]), max w / 32767, o * 2^(m - m'))
//   in segments of 512 absolute positions, each started afresh and merged in order: o = fma(o', a', o * a)
// So the order of all sums depends on the position of the query, its mask and D alone: not on threads, neighbours,
// chunks or the instruction set. Every kernel file gives the same bits as scalar.cpp.
//
// A block-sparse mask hides whole blocks from a row: they are skipped, neither read nor summed, as if they were not
// there. A sparse block is a multiple of 64 positions, so a tile is either seen or not.
//
// Error against exact arithmetic on the stored K and V, eps = 2^-24: a score is off by at most
// (D + 3) eps sum_d |q k| log2(e) softmax_scale, p by 2 ulp of 2^x, a sum over n keys by (n + 16) eps of sum p |v|.
// int32 dots: |dot| <= 32 * 255 * 127 < 2^21, exact in float32. int32 sums: |sum| <= 64 * 32767 * 127 < 2^28.
// q8_0 adds at most 64 / 65534 of max |v|, typically a hundredth of that: half a step of W for each key.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cpu/isa.h"

namespace phlite::attention {

constexpr int kBlock = 64;     // positions of a KV block, and of a softmax tile
constexpr int kLanes = 16;     // positions side by side in K
constexpr int kQuant = 32;     // dims that share a scale in q8_0
constexpr int kSegment = 512;  // positions whose partial results are merged; a multiple of kBlock
constexpr int kTileRows = 64;  // most rows that one call of `attend` takes
constexpr int kMaxHeadDim = 256;
constexpr float kNoScore = -1e30f;  // running maximum before the first key; finite, so that differences are never NaN

enum class KVType : uint8_t { f32, f16, q8_0 };

// Where the parts of one head lie inside its share of a block, in bytes.
struct HeadLayout {
  KVType type;
  int head_dim;  // D
  int v_stride;  // values per V row: Dp, or Dq
  size_t k_scales = 0, v = 0, v_scales = 0, bytes = 0;

  HeadLayout(KVType type, int head_dim);
  size_t value_bytes() const { return type == KVType::q8_0 ? 1 : type == KVType::f16 ? 2 : 4; }
  int n_quant() const { return (head_dim + kQuant - 1) / kQuant; }
  // Values from the start of K to the one of a slot 0..63 and a dim.
  size_t key_at(int slot, int d) const {
    const int group = slot / kLanes, lane = slot % kLanes;
    if (type != KVType::q8_0) return (static_cast<size_t>(group) * head_dim + d) * kLanes + lane;
    return ((static_cast<size_t>(group) * (v_stride / 4) + d / 4) * kLanes + lane) * 4 + d % 4;
  }
};

// The result of some rows over one segment, not yet divided by l.
struct Partial {
  float* m;  // [n_rows] largest score
  float* l;  // [n_rows] sum of 2^(s - m)
  float* o;  // [n_rows][o_stride], o_stride = D rounded up to 32
};

// Which blocks of keys each row sees: block b of `block` positions when it begins at or behind local[row], or when
// b % stride == stripe[row].
struct SparseRows {
  int32_t block = 0;  // positions of a sparse block, a multiple of kBlock; 0: every block is seen
  int32_t stride = 1;
  const int32_t* local = nullptr;   // [n_rows] first position of the row's local band, a multiple of block
  const int32_t* stripe = nullptr;  // [n_rows] 0 .. stride - 1
};

struct AttendArgs {
  const HeadLayout* layout;
  const uint8_t* head_base;    // block 0 of this layer at the first key/value head
  int n_kv_heads;              // key/value heads, one behind the other; each has n_rows / n_kv_heads rows in turn
  size_t block_stride;         // bytes from one block to the next
  const int32_t* block_table;  // block ids of the sequence, by position / 64
  int n_rows;                  // 1 .. kTileRows
  const float* const* q;       // [n_rows] roped and scaled queries, float[D]
  const int32_t* lo;           // [n_rows] first visible position
  const int32_t* hi;           // [n_rows] one past the last visible position
  SparseRows sparse;           // blocks between lo and hi that a row does not see
  int32_t first, last;         // positions of the segment to look at: first is a multiple of 64, first < last
  Partial out;
  bool same_rows;   // the last call with this scratch had the same rows: what was made of q is still there
  bool continues;   // the next call has the same rows and the positions behind `last`
  bool fetch_near;  // what is read ahead goes into the first-level cache, not the second
  float* scratch;   // Scratch(nullptr, D).n_floats floats, 64-byte aligned; see scratch.h
};

// The stripe that the 64 positions from base on belong to.
inline int32_t stripe_of(const SparseRows& sparse, int32_t base) {
  return sparse.block == 0 ? 0 : base / sparse.block % sparse.stride;
}

// Whether a row sees the positions from base on, of that stripe, as far as the block-sparse mask goes.
inline bool sees(const SparseRows& sparse, int row, int32_t base, int32_t stripe) {
  return sparse.block == 0 || base >= sparse.local[row] || stripe == sparse.stripe[row];
}

struct Kernels {
  // Rotates a head and scales it, into `out`, which is not x; see rope/rope.inl.
  void (*rope)(const float* x, const float* cos_sin, int head_dim, int rot, bool interleaved, float scale,
               float* out) noexcept;
  // Stores one key and one value float[D] at slot 0..63 of a head's share of a block.
  void (*write)(const HeadLayout&, uint8_t* head, int slot, const float* k, const float* v) noexcept;
  void (*attend)(const AttendArgs&) noexcept;
  // total = total (earlier positions) merged with next; o rows have o_stride floats.
  void (*merge)(const Partial& total, const Partial& next, int n_rows, int o_stride) noexcept;
};

inline int o_stride(int head_dim) { return (head_dim + 31) / 32 * 32; }

extern const Kernels kScalarKernels;
extern const Kernels kAvx2Kernels;        // defined on x86 only
extern const Kernels kAvx512VnniKernels;  // defined on x86 only

// The kernels of an instruction set, or of the next lower one that has a file.
const Kernels& kernels(Isa isa);

}  // namespace phlite::attention
