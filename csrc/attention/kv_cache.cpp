#include "attention/kv_cache.h"

#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>

#include "support/fp16.h"

namespace phlite::attention {
namespace {

size_t aligned64(size_t n) { return (n + 63) / 64 * 64; }

KVType parse_type(const std::string& name) {
  if (name == "f16") return KVType::f16;
  if (name == "f32") return KVType::f32;
  if (name == "q8_0") return KVType::q8_0;
  throw std::invalid_argument("KV cache dtype '" + name + "' is unknown; possible: f16, f32, q8_0");
}

int checked_head_dim(int head_dim) {
  if (head_dim < 2 || head_dim > kMaxHeadDim || head_dim % 2 != 0)
    throw std::invalid_argument("KV cache: head_dim is " + std::to_string(head_dim) +
                                ", expected an even number from 2 to " + std::to_string(kMaxHeadDim));
  return head_dim;
}

void check_positive(const char* what, int value) {
  if (value < 1)
    throw std::invalid_argument(std::string("KV cache: ") + what + " is " + std::to_string(value) +
                                ", expected at least 1");
}

struct Element {
  float k, v;
};

Element element(const HeadLayout& layout, const uint8_t* head, int slot, int d) {
  const size_t k_at = layout.key_at(slot, d);
  const size_t v_at = static_cast<size_t>(slot) * layout.v_stride + d;
  switch (layout.type) {
    case KVType::f32:
      return {reinterpret_cast<const float*>(head)[k_at], reinterpret_cast<const float*>(head + layout.v)[v_at]};
    case KVType::f16:
      return {fp16_to_fp32(reinterpret_cast<const uint16_t*>(head)[k_at]),
              fp16_to_fp32(reinterpret_cast<const uint16_t*>(head + layout.v)[v_at])};
    case KVType::q8_0:
      break;
  }
  const int Dq = layout.v_stride;
  const auto* k_scales = reinterpret_cast<const uint16_t*>(head + layout.k_scales);
  const auto* v_scales = reinterpret_cast<const uint16_t*>(head + layout.v_scales);
  const int kq = head[k_at] - 128;
  const int vq =
      reinterpret_cast<const int8_t*>(head + layout.v)[(static_cast<size_t>(slot / 2) * Dq + d) * 2 + slot % 2];
  return {static_cast<float>(kq) * bf16_to_fp32(k_scales[d / kQuant * kBlock + slot]),
          static_cast<float>(vq) * bf16_to_fp32(v_scales[d / kQuant * kBlock + slot])};
}

}  // namespace

HeadLayout::HeadLayout(KVType t, int D) : type(t), head_dim(D) {
  if (type == KVType::q8_0) {
    v_stride = (D + kQuant - 1) / kQuant * kQuant;
    const size_t values = aligned64(static_cast<size_t>(kBlock) * v_stride);
    const size_t scales = aligned64(static_cast<size_t>(kBlock) * n_quant() * sizeof(uint16_t));
    k_scales = values;
    v = k_scales + scales;
    v_scales = v + values;
    bytes = v_scales + scales;
  } else {
    v_stride = (D + kLanes - 1) / kLanes * kLanes;
    v = aligned64(static_cast<size_t>(kBlock) * D * value_bytes());
    bytes = v + aligned64(static_cast<size_t>(kBlock) * v_stride * value_bytes());
  }
}

KVCache::KVCache(int n_layers, int n_blocks, int n_kv_heads, int head_dim, const std::string& dtype)
    : layout_(parse_type(dtype), checked_head_dim(head_dim)), n_blocks_(n_blocks), n_kv_heads_(n_kv_heads) {
  check_positive("n_layers", n_layers);
  check_positive("n_blocks", n_blocks);
  check_positive("n_kv_heads", n_kv_heads);
  constexpr size_t kMost = std::numeric_limits<ptrdiff_t>::max() / 2;
  if (static_cast<size_t>(n_kv_heads) > kMost / layout_.bytes || static_cast<size_t>(n_blocks) > kMost / block_stride())
    throw std::bad_alloc();
  layers_.reserve(n_layers);
  for (int i = 0; i < n_layers; ++i) layers_.emplace_back(block_stride() * n_blocks);
}

const char* KVCache::dtype() const {
  switch (layout_.type) {
    case KVType::f32:
      return "f32";
    case KVType::f16:
      return "f16";
    case KVType::q8_0:
      break;
  }
  return "q8_0";
}

void KVCache::copy_block(int src, int dst) {
  for (int block : {src, dst})
    if (block < 0 || block >= n_blocks_)
      throw std::invalid_argument("KV cache: block " + std::to_string(block) + " does not exist, expected 0 to " +
                                  std::to_string(n_blocks_ - 1));
  if (src == dst) return;
  for (auto& layer : layers_)
    std::memcpy(layer.data() + block_stride() * dst, layer.data() + block_stride() * src, block_stride());
}

void KVCache::read(int layer, const int32_t* block_table, int n_positions, float* k, float* v) const {
  for (int p = 0; p < n_positions; ++p) {
    const size_t block = static_cast<size_t>(block_table[p / kBlock]);
    for (int h = 0; h < n_kv_heads_; ++h) {
      const uint8_t* share = head(layer, h) + block * block_stride();
      for (int d = 0; d < head_dim(); ++d) {
        const Element e = element(layout_, share, p % kBlock, d);
        *k++ = e.k;
        *v++ = e.v;
      }
    }
  }
}

}  // namespace phlite::attention
