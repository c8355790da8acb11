// Floats to the block formats of ggml files: what phlite writes into a model file.
//
// For every block the quantiser looks for scales and codes with a small sum of w * (x - y)^2, y being the value that a
// reader of the block gets (scales rounded to half and to their few bits) and w the importance of the column, 1 where
// none is given. Blocks are independent of each other and each sum runs over the elements of one block in a fixed
// order, so the bytes are the same for every number of threads and every instruction set.
#pragma once
#include <cstdint>

#include "formats/blocks.h"
#include "support/thread_pool.h"

namespace phlite {

struct QuantizeArgs {
  const uint8_t* x;         // n_rows * n_cols values, any alignment
  GGMLType x_type;          // F32, F16 or BF16
  int64_t n_rows, n_cols;   // n_cols a multiple of the block of `type`
  const float* importance;  // float32[n_cols], finite and above 0, or null
  GGMLType type;
  uint8_t* out;  // n_rows * row_bytes(type, n_cols)
};

// True for the formats that `quantize` writes.
bool can_quantize(GGMLType type) noexcept;

// Writes `out`. Returns false, and leaves `out` undefined, where a value of x is not finite or too large for the format
// (its scale, or for F16 the value itself, would be infinite).
bool quantize(const QuantizeArgs& args, ThreadPool& pool);

}  // namespace phlite
