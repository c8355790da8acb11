// The linear operation of a decoder layer with what surrounds it.
#pragma once
#include <cstdint>

#include "matmul/packed_matrix.h"
#include "support/operation.h"
#include "support/thread_pool.h"

namespace phlite {

// RMS norm, or LayerNorm where there is a bias.
struct Norm {
  const float* weight = nullptr;  // float32[K]; null: no norm
  const float* bias = nullptr;    // float32[K]
  float eps = 0;
};

struct LinearArgs {
  const float* x = nullptr;  // float32[n_x_rows, K]
  int64_t n_x_rows = 0;
  const int32_t* rows = nullptr;    // which rows of x, or all when null
  int64_t n_rows = 0;               // rows of the result
  Norm norm;                        // of x, before the product
  const float* bias = nullptr;      // float32[w.n_rows()]: added to the product before the activation
  const float* addend = nullptr;    // float32[n_rows, w.n_rows()]: likewise, of each row its own
  const float* residual = nullptr;  // float32[n_x_rows, N]: of the same rows, added after the activation
  float* out = nullptr;             // float32[n_rows, N]; may be `residual` when all rows are wanted
};

// out = residual + activation(W norm(x) + bias + addend).
class LinearOperation final : public Operation {
 public:
  LinearOperation(const LinearArgs& args, const PackedMatrix& w, int n_threads);
  size_t scratch_bytes(int n_threads) const noexcept override;
  void prepare(uint8_t* scratch, int n_threads) noexcept override;
  void work(ThreadPool& pool, int thread, int n_threads) noexcept override;
  void warm_up(int thread, int n_threads) const noexcept override;

 private:
  struct Chunk {
    int64_t first, last;  // tiles
  };
  Chunk chunk(int64_t idx) const noexcept;
  bool shared() const noexcept { return args_.n_rows > 1; }

  LinearArgs args_;
  const PackedMatrix& w_;
  bool two_tiles_;         // may be multiplied at once
  int64_t tiles_at_once_;  // a gate and its up rows, two that may be multiplied at once, or one
  int64_t chunk_tiles_, n_whole_chunks_, n_chunks_;
  int64_t n_sets_, set_bytes_, row_bytes_, own_bytes_;  // of the scratch memory
  bool keep_floats_;
  uint8_t* scratch_ = nullptr;
};

// One such operation in a region of its own.
void linear(const LinearArgs& args, const PackedMatrix& w, ThreadPool& pool);

// out[n_rows, n_cols] = norm(x), the same bits that `linear` multiplies. Threads share the rows; null: this thread
// alone.
void norm(const Norm& norm, const float* x, int64_t n_rows, int64_t n_cols, float* out, ThreadPool* pool);

}  // namespace phlite
