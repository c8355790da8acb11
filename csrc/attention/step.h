// One layer's attention for a ragged batch: rotate, write to the cache, attend.
#pragma once
#include <memory>

#include "attention/batch.h"
#include "attention/kv_cache.h"
#include "support/thread_pool.h"

namespace phlite::attention {

// Local blocks and vertical stripes: a query in block q of its sequence sees block k <= q when q - k < local_blocks, or
// when (k + offset + 1) % vert_stride == 0, offset being head * max(1, vert_stride / n_heads), or 0 for homo_head.
// Blocks are counted from the sequence's start. Source: vLLM 0.6 attention/ops/blocksparse_attention/utils.py.
struct BlockSparse {
  int block_size = 0;  // positions, a multiple of kBlock; 0: every block is seen
  int local_blocks = 1;
  int vert_stride = 1;
  bool homo_head = false;
};

struct StepArgs {
  const float* qkv;  // float[T][(Hq + 2 Hkv) * D]: query, key, value heads
  float* out;        // float[T][Hq * D]
  int n_heads;       // Hq
  float softmax_scale;
  int sliding_window;  // key j is visible to query i when i - window < j <= i; 0: when j <= i
  bool rope_interleaved;
  BlockSparse sparse;
};

// The keys and values of all tokens are written before any of them is read. The result depends on each token's own
// sequence only, bit for bit. The caller has checked that layer, heads and every block id of the batch exist in the
// cache, and that rot <= D.
class AttentionOperation final : public Operation {
 public:
  AttentionOperation(const StepArgs& args, KVCache& cache, int layer, const Batch& batch, int n_threads);
  AttentionOperation(AttentionOperation&&) noexcept;
  ~AttentionOperation() override;
  size_t scratch_bytes(int n_threads) const noexcept override;
  void prepare(uint8_t* scratch, int n_threads) noexcept override;
  void work(ThreadPool& pool, int thread, int n_threads) noexcept override;
  void warm_up(int, int) const noexcept override {}

 private:
  class Step;
  std::unique_ptr<Step> step_;
};

}  // namespace phlite::attention
