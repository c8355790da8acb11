// Contract of the matrix-product kernels: quantise rows of activations, multiply them with tiles of packed weights.
//
// Arithmetic, the same on every instruction set, for every number of rows, threads and batch neighbours:
//   q8k formats  per superblock of 256 columns: an exact int32 sum over groups (scale * sum of code * activation), then
//                acc = fma(float(isum) * d [- float(msum) * dmin], d_activation, acc), superblocks in ascending order.
//   q8 formats   per block of 32 columns: an exact int32 sum, then acc = fma(float(isum) * d [+ m * bsum], d_act, acc).
//   float        acc = fma(weight, activation, acc) column by column.
// So every output is one chain of float32 operations whose order depends on K alone, and all instruction sets give the
// same bits. Bounds: |code * activation| sums stay below 2^20 per group, times a scale of at most 7 bits below 2^31 per
// superblock (Q6_K, the largest: 16 groups * 128 * 63 * 127 * 16 < 2^28). The error against exact arithmetic on the
// same int8 activations is at most (K / 256 + 2) * 2^-24 * sum |terms|; the quantisation of the activations adds at
// most amax / 254 per element of its block (block: 32 or 256 columns).
//
// Kernels are noexcept, allocate nothing and own no threads. Rows of tiles need 64-byte alignment.
#pragma once
#include <cstdint>
#include <initializer_list>

#include "cpu/isa.h"
#include "cpu/tuning.h"
#include "matmul/packed_format.h"

namespace phlite {

// Rows of activations, quantised once and shared by all tiles. The kernels take rows in groups of 12, 8, 4, 2 and 1, as
// many as their registers hold, largest first; a slice of 256 columns holds all groups, and a group is interleaved by
// steps: q[slice][group][64 steps][rows of the group][4 columns], so that the broadcasts of a kernel read one forward
// stream. Only the members of the kind in use are set.
struct Activations {
  int64_t n_rows = 0, n_cols = 0;
  int8_t* q = nullptr;             // q8, q8k: [ceil(K/256)][n_rows][256]
  float* d = nullptr;              // q8k: [K/256][n_rows]; q8: [ceil(K/256)][n_rows][8]
  int16_t* bsum16 = nullptr;       // q8k: [K/256][n_rows][16] sums of 16 codes, met by mins
  int16_t* bsum32 = nullptr;       // q8k: [K/256][n_rows][8] sums of 32 codes
  int32_t* minus_sum16 = nullptr;  // q8k: [K/256][n_rows][16] the same negated, met by the offset of the weights' codes
  int32_t* minus_sum32 = nullptr;  // q8, q8k: [ceil(K/256)][n_rows][8]
  // Only of at least kPairRows rows, and where an instruction set multiplies groups in pairs or adds in 16 bits:
  int32_t* pair_start = nullptr;  // q8k: [K/256][n_rows][8] what the sums of two groups of Q6_K start from
  int16_t* reach16 = nullptr;     // q8k: [K/256][n_rows] the most that 16 codes, none above 1 in size, can sum up to;
                                  // AVX2: two of every four of 16 codes between 0 and 1, which share a lane
  int16_t* reach32 = nullptr;     // q8k: [K/256][n_rows] the same for 32 codes between 0 and 1
  const float* x = nullptr;       // f32: [n_rows][ld]
  int64_t ld = 0;
};

// The group of rows that `row` belongs to when n_rows rows are split into the largest groups of at most max_rows.
struct RowGroup {
  int64_t first;
  int64_t size;
};

inline RowGroup row_group(int64_t n_rows, int64_t max_rows, int64_t row) {
  int64_t first = 0;
  for (int64_t size : {12, 8, 4, 2, 1}) {
    if (size > max_rows) continue;
    const int64_t end = first + (n_rows - first) / size * size;
    if (row < end) return {first + (row - first) / size * size, size};
    first = end;
  }
  return {row, 1};
}

// One packed tile times n_rows rows of the activations from `row`, the first of a group:
// out[r * ld + lane] = [residual[r * ld + lane] +] sum, all sixteen lanes.
struct TileArgs {
  const uint8_t* tile;
  const Activations* act;
  int64_t row;
  int64_t n_rows;
  float* out;
  int64_t ld;
  const float* residual;  // or null; may be `out`
  const uint8_t* next;    // the tile to come, which the memory is asked for meanwhile; or null
  // Of a pair of tiles of one format: from the first one to the second one, in bytes; from the outputs of the first one
  // to those of the second one, in floats.
  int64_t second_tile = 0, second_out = 0;
  FetchAhead fetch_ahead = FetchAhead::none;  // of what the first rows will soon need
};

// Formats whose codes take long to unpack do it once for each slice of 256 columns, into the first-level cache, where
// enough rows share it: `unpack_rows` of each instruction set says how many. Below, the codes are undone in registers
// again for every group of rows, which costs less than the way through memory. Two tiles at once always unpack
// superblocks (two_tiles.inl).
constexpr int64_t kNeverUnpack = INT64_MAX;

// The fewest rows that two tiles are ever multiplied with at once.
constexpr int64_t kTwoTilesRows = 24;

// The most rows of one call: their sums take 12 KB of the first-level cache.
constexpr int64_t kMaxTileRows = 192;

struct MatmulKernels {
  using TileFn = void (*)(const TileArgs&) noexcept;
  int max_rows;      // rows of the largest group
  bool long_passes;  // whether a call takes as many rows as it can, even if their activations outgrow the caches
  TileFn tile[kPackedFormatCount];
  TileFn two_tiles[kPackedFormatCount];    // of one format at once, for many rows; null where there is no such kernel
  int two_tiles_rows[kPackedFormatCount];  // from how many rows on that is faster, at least kTwoTilesRows
  // x[n_cols] of one row to codes q[n_cols], and its scales and sums to their places in `act`. A row with a NaN or an
  // infinity gets d = NaN.
  void (*quantize_row)(const float* x, int64_t row, ActivationKind kind, const Activations& act, int8_t* q) noexcept;
  // y = x / sqrt(mean(x^2) + eps) * weight; sums in sixteen lanes, then halves; y may be x.
  void (*rms_norm_row)(const float* x, const float* weight, float eps, int64_t n, float* y) noexcept;
  // y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias; sums in sixteen lanes, then halves; y may
  // be x. Against exact arithmetic: the mean is off by at most (n / 16 + 6) 2^-24 mean|x|, the rest by (n / 16 + 12)
  // 2^-24 relative.
  void (*layer_norm_row)(const float* x, const float* weight, const float* bias, float eps, int64_t n,
                         float* y) noexcept;
  // Activation functions of n values, a multiple of sixteen; `out` may be an input. Relative errors, z being the
  // argument of the exponential: (|z| + 4) 2^-22, while |z| < 87; beyond, an absolute error below exp(-86) |x|.
  //   swiglu     out = gate / (1 + exp(-gate)) * up
  //   gelu_tanh  out = x / 2 * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
  //   gegelu     out = g / (1 + exp(-1.702 g)) * (l + 1), g = min(gate, limit), l = min(max(up, -limit), limit)
  void (*swiglu)(const float* gate, const float* up, int64_t n, float* out) noexcept;
  void (*gelu_tanh)(const float* x, int64_t n, float* out) noexcept;
  void (*gegelu)(const float* gate, const float* up, float limit, int64_t n, float* out) noexcept;
};

const MatmulKernels& matmul_kernels_scalar();
const MatmulKernels& matmul_kernels_avx2();
const MatmulKernels& matmul_kernels_avxvnni();
const MatmulKernels& matmul_kernels_avx512vnni();

// The table of the instruction set in use.
const MatmulKernels& matmul_kernels();

}  // namespace phlite
