// A weight matrix packed for the kernels, and the linear operation of a decoder layer with what surrounds it.
#pragma once
#include <cstdint>
#include <vector>

#include "matmul/kernels.h"
#include "matmul/packed_format.h"
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

class PackedMatrix {
 public:
  // Packs the stacked rows of `parts`, in parallel over tiles. With `swiglu` the rows are [gate; up], gate and up tiles
  // alternate, and the product is silu(gate) * up with half as many columns. With `release_source` the pages of a
  // mapped file are dropped from memory as soon as they have been packed. Throws std::invalid_argument on bad shapes.
  PackedMatrix(const std::vector<MatrixPart>& parts, int64_t n_cols, bool swiglu, bool release_source,
               ThreadPool& pool);

  int64_t n_rows() const { return n_rows_; }
  int64_t n_cols() const { return n_cols_; }
  int64_t n_outputs() const { return swiglu_ ? n_rows_ / 2 : n_rows_; }
  bool swiglu() const { return swiglu_; }
  int64_t n_bytes() const { return static_cast<int64_t>(storage_.size()); }

  struct Tile {
    int64_t offset;   // bytes into the storage
    int32_t out_col;  // first output column
    int16_t n_valid;  // rows of the tile that exist
    int16_t format;   // index of its PackedFormat
  };
  const std::vector<Tile>& tiles() const { return tiles_; }
  const uint8_t* storage() const { return storage_.data(); }
  bool needs(ActivationKind kind) const { return needs_[static_cast<int>(kind)]; }

 private:
  int64_t n_rows_ = 0, n_cols_ = 0;
  bool swiglu_ = false;
  bool needs_[3] = {false, false, false};
  std::vector<Tile> tiles_;
  LargeBuffer storage_;
};

struct LinearArgs {
  const float* x = nullptr;  // float32[n_x_rows, K]
  int64_t n_x_rows = 0;
  const int32_t* rows = nullptr;       // which rows of x, or all when null
  int64_t n_rows = 0;                  // rows of the result
  const float* norm_weight = nullptr;  // float32[K]: RMS norm of x before the product
  float eps = 0;
  const float* residual = nullptr;  // float32[n_rows, N]: added to the product; may be `out`
  float* out = nullptr;             // float32[n_rows, N]
};

// out = residual + W norm(x), or silu(gate) * up of it. One parallel region.
void linear(const LinearArgs& args, const PackedMatrix& w, ThreadPool& pool);

}  // namespace phlite
