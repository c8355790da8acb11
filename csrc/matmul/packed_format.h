// How a weight matrix lies in memory for the kernels: tiles of 16 rows, repacked once at load.
//
// C[M,N] = A[M,K] W[N,K]^T. Sixteen rows of W form a tile. Inside a tile everything is stored in planes of sixteen
// lanes, lane = row, so that sixteen outputs come out of sixteen lanes with no horizontal sum, the scales of sixteen
// rows are one vector, and a decode step reads each tile as one forward stream. A plane of codes holds, per row, the
// four bytes (or bit fields of four bytes) that meet four consecutive activations in one dot-product instruction.
//
// "Step" s of a group = columns 4s .. 4s+3 of it. Within a 32-bit lane byte b belongs to column 4s+b.
//
//   nibble planes of a group of 32:  plane s (s = 0..3) holds step s in the low and step s+4 in the high nibbles
//   bit plane of a group of 32:      bit s of byte b is the fifth bit of column 4s+b
//   6-bit planes of a group of 16:   two nibble planes (steps s and s+2), one plane with two high bits at bits 2s, 2s+1
//   2-bit plane of a group of 16:    bits 2s, 2s+1 of byte b are column 4s+b
//   3-bit:                           as 2-bit, and one bit plane for two groups (bit s: even group, bit s+4: odd one)
//   8-bit planes:                    plane s is step s
//
// Scales of blocks of 32 columns lie together, eight blocks at a time, in front of the planes of these blocks: a decode
// step is one forward stream, which the hardware fetches ahead. d of Q6_K and Q3_K lies in front of all planes. Both
// are padded to whole planes.
//
// The packed size equals the size in the file (float16 scales stay float16, packed 6-bit scales stay packed), so a
// decode step reads not a byte more than the file has.
#pragma once
#include <cstdint>

#include "formats/blocks.h"

namespace phlite {

constexpr int kPackedLayout =
    2;  // counts the changes of what this file describes; stored tiles of another one are stale
constexpr int kTileRows = 16;
constexpr int kPlaneBytes = 64;
constexpr int kSuperblock = 256;  // columns of one slice of quantised activations

// What the activations become before they meet a format.
enum class ActivationKind {
  f32,  // float32 as they are: F32, F16, BF16 weights
  q8,   // int8 with one float32 scale per 32 columns: formats with blocks of 32
  q8k,  // int8 with one float32 scale per 256 columns: formats with superblocks of 256
};

struct PackedFormat {
  GGMLType type;
  const char* name;
  ActivationKind activations;
  int block_cols;    // columns of a block in the file
  int block_bytes;   // bytes of a block in the file
  int header_bytes;  // per block and tile: float16 scales of sixteen rows that are not in a plane
  int body_planes;   // planes per block and tile (for floats: unused)
};

// Index into the kernel tables; -1 when the type is not supported.
int packed_format_index(int ggml_type);
const PackedFormat& packed_format(int index);
constexpr int kPackedFormatCount = 15;

// Bytes of one tile of n_cols columns.
int64_t tile_bytes(const PackedFormat& f, int64_t n_cols);

// Packs one tile: rows[r] points to the first block of row r in the file's layout, nullptr for a row of zeros.
// `dst` has room for tile_bytes(f, n_cols).
void pack_tile(const PackedFormat& f, const uint8_t* const rows[kTileRows], int64_t n_cols, uint8_t* dst) noexcept;

}  // namespace phlite
