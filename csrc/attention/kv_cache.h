// The block-based cache of keys and values of all layers.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "attention/attention.h"
#include "support/large_buffer.h"

namespace phlite::attention {

class KVCache {
 public:
  // dtype: "f16", "f32" or "q8_0". Throws std::invalid_argument on a bad argument, std::bad_alloc without memory.
  KVCache(int n_layers, int n_blocks, int n_kv_heads, int head_dim, const std::string& dtype);
  KVCache(const KVCache&) = delete;
  KVCache& operator=(const KVCache&) = delete;

  int n_layers() const { return static_cast<int>(layers_.size()); }
  int n_blocks() const { return n_blocks_; }
  int n_kv_heads() const { return n_kv_heads_; }
  int head_dim() const { return layout_.head_dim; }
  const char* dtype() const;
  const HeadLayout& layout() const { return layout_; }
  // Bytes of one block of 64 positions in all layers together.
  size_t block_bytes() const { return block_stride() * layers_.size(); }
  // Bytes from one block of a layer to the next.
  size_t block_stride() const { return layout_.bytes * n_kv_heads_; }

  uint8_t* head(int layer, int kv_head) { return layers_[layer].data() + layout_.bytes * kv_head; }
  const uint8_t* head(int layer, int kv_head) const { return layers_[layer].data() + layout_.bytes * kv_head; }

  // Copies block src over block dst in all layers.
  void copy_block(int src, int dst);

  // Expands n positions of one layer, found through a block table: k, v float[n][n_kv_heads][head_dim].
  void read(int layer, const int32_t* block_table, int n_positions, float* k, float* v) const;

 private:
  HeadLayout layout_;
  int n_blocks_, n_kv_heads_;
  std::vector<LargeBuffer> layers_;  // pages come into being when they are first written
};

}  // namespace phlite::attention
