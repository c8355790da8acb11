// A weight matrix packed for the kernels.
#pragma once
#include <cstdint>
#include <vector>

#include "matmul/packed_format.h"
#include "matmul/source.h"
#include "support/large_buffer.h"
#include "support/thread_pool.h"

namespace phlite {

// Rows of one tensor of a file: a matrix may be stacked from several (split q, k, v), each in a format of its own.
struct MatrixPart {
  const uint8_t* data;
  int64_t n_bytes;
  int ggml_type;
  int64_t n_rows;
};

// What becomes of the product. Of a gated one, gate and up rows make one output: n_outputs is half of n_rows.
enum class Activation {
  none,
  swiglu,     // silu(gate) * up, rows [gate; up]
  gelu_tanh,  // 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
  gegelu,     // gelu(gate) * (up + 1), both clamped, rows gate 0, up 0, gate 1, up 1, ...
};

class PackedMatrix {
 public:
  // Packs the stacked rows of `parts`, in parallel over tiles. Of a gated matrix, tiles of gate rows and of up rows
  // alternate, in whatever order the rows come. `gegelu_limit` clamps gegelu's inputs; infinity: not at all. Parts that
  // are mapped bytes of one of `files` are read through its descriptor. `stored` tiles, which an earlier matrix of the
  // same parts packed, are used where they lie; the parts' data is not read then.
  // Throws std::invalid_argument on bad shapes, SourceError where a file cannot be read.
  struct StoredTiles {
    const uint8_t* data = nullptr;  // aligned to 64 bytes; outlives the matrix
    int64_t n_bytes = 0;
  };
  PackedMatrix(const std::vector<MatrixPart>& parts, int64_t n_cols, Activation activation, float gegelu_limit,
               const std::vector<SourceFile>& files, StoredTiles stored, ThreadPool& pool);

  int64_t n_rows() const { return n_rows_; }
  int64_t n_cols() const { return n_cols_; }
  int64_t n_outputs() const { return gated() ? n_rows_ / 2 : n_rows_; }
  Activation activation() const { return activation_; }
  bool gated() const { return activation_ == Activation::swiglu || activation_ == Activation::gegelu; }
  float gegelu_limit() const { return gegelu_limit_; }
  int64_t n_bytes() const { return n_bytes_; }

  struct Tile {
    int64_t offset;   // bytes into the storage
    int32_t out_col;  // first output column
    int16_t n_valid;  // rows of the tile that exist
    int16_t format;   // index of its PackedFormat
  };
  const std::vector<Tile>& tiles() const { return tiles_; }

  // Rows of the matrix, in the order given, that meet in a tile: first + lane * stride.
  struct SourceRows {
    int64_t first;
    int64_t stride;
  };
  // For the outputs from out_col: the rows themselves, or for half 0 and 1 of a gated matrix their gate and up rows.
  SourceRows source_rows(int64_t out_col, int half) const {
    if (activation_ == Activation::gegelu) return {2 * out_col + half, 2};
    return {half * (n_rows_ / 2) + out_col, 1};
  }
  const uint8_t* storage() const { return data_; }
  bool needs(ActivationKind kind) const { return needs_[static_cast<int>(kind)]; }

 private:
  int64_t n_rows_ = 0, n_cols_ = 0;
  Activation activation_ = Activation::none;
  float gegelu_limit_ = 0;
  bool needs_[3] = {false, false, false};
  std::vector<Tile> tiles_;
  AdjacentBuffer storage_;  // empty where stored tiles are used
  const uint8_t* data_ = nullptr;
  int64_t n_bytes_ = 0;
};

}  // namespace phlite
