// What is done once per head vector: rounding to the cache's types. Plain loops with internal linkage, read inside the
// target region of each kernel file; every step is rounded on its own, so the bits do not depend on the instruction
// set. No includes: <cstring>, support/fp16.h and scratch.h come first, and two functions of the kernel file:
//   float largest(const float* x)                              max|x| of 32 values
//   int quantize(const float* x, float scale, int8_t* q)       q = x / scale of 32 values, to nearest, ties to even,
//                                                              within +-127; all 0 for scale 0; returns the sum of q

static constexpr float kSmallestScale = 0x1p-100f;  // below it a block counts as zero, so 1 / scale stays finite
static constexpr float kLargestValue = 1e30f;       // larger values count as this one, so a scale stays finite

static constexpr float kMostWeight = 32767.0f;       // p * vscale as int16
static constexpr float kSmallestWeight = 0x1p-100f;  // a tile whose largest p * vscale is below it adds nothing

// The next bfloat16 that is not smaller: rounding up keeps every value within 127 steps.
static inline uint16_t bf16_up(float positive) noexcept {
  return static_cast<uint16_t>((float_bits(positive) + 0xffffu) >> 16);
}

static inline float scale_of(float most) noexcept {
  const float scale = (most > kLargestValue ? kLargestValue : most) / 127.0f;
  return scale >= kSmallestScale ? scale : 0.0f;  // also for NaN: a scale in the cache is always finite
}

static inline float saturate_to_half(float x) noexcept {
  x = x > 65504.0f ? 65504.0f : x;
  return x < -65504.0f ? -65504.0f : x;
}

// 32 values of a vector of which `left` remain; zeros after its end.
struct Block32 {
  float padded[kQuant];
  const float* x;
  Block32(const float* from, int left) noexcept : x(from) {
    if (left >= kQuant) return;
    for (int i = 0; i < kQuant; ++i) padded[i] = i < left ? from[i] : 0.0f;
    x = padded;
  }
};

static inline void write_q8(const HeadLayout& layout, uint8_t* head, int slot, const float* k,
                            const float* v) noexcept {
  const int D = layout.head_dim, Dq = layout.v_stride, nq = layout.n_quant();
  uint8_t* k_out = head + layout.key_at(slot, 0);
  uint16_t* k_scales = reinterpret_cast<uint16_t*>(head + layout.k_scales) + slot;
  int8_t* v_out = reinterpret_cast<int8_t*>(head + layout.v) + static_cast<size_t>(slot / 2) * Dq * 2 + slot % 2;
  uint16_t* v_scales = reinterpret_cast<uint16_t*>(head + layout.v_scales) + slot;
  int8_t q[kQuant];
  for (int b = 0; b < nq; ++b) {
    const Block32 key(k + b * kQuant, D - b * kQuant), value(v + b * kQuant, D - b * kQuant);
    k_scales[b * kBlock] = bf16_up(scale_of(largest(key.x)));
    quantize(key.x, bf16_to_fp32(k_scales[b * kBlock]), q);
    for (int i = 0; i < kQuant; i += 4) {
      uint32_t four;
      std::memcpy(&four, q + i, sizeof four);
      four ^= 0x80808080u;  // adds 128 to each
      std::memcpy(k_out + (b * kQuant + i) * kLanes, &four, sizeof four);
    }
    v_scales[b * kBlock] = bf16_up(scale_of(largest(value.x)));
    quantize(value.x, bf16_to_fp32(v_scales[b * kBlock]), q);
    for (int i = 0; i < kQuant; ++i) v_out[(b * kQuant + i) * 2] = q[i];
  }
}

static inline void write_f32(const HeadLayout& layout, uint8_t* head, int slot, const float* k,
                             const float* v) noexcept {
  const int D = layout.head_dim;
  float* k_out = reinterpret_cast<float*>(head) + layout.key_at(slot, 0);
  float* v_out = reinterpret_cast<float*>(head + layout.v) + static_cast<size_t>(slot) * layout.v_stride;
  for (int d = 0; d < D; ++d) k_out[d * kLanes] = k[d];
  for (int d = 0; d < D; ++d) v_out[d] = v[d];
}

// Rounds the queries of all rows to int8 for a q8_0 cache.
static inline void quantize_queries(const AttendArgs& a, const Scratch& s) noexcept {
  const int D = a.layout->head_dim, Dq = a.layout->v_stride, nq = a.layout->n_quant();
  for (int r = 0; r < a.n_rows; ++r) {
    for (int b = 0; b < nq; ++b) {
      const Block32 block(a.q[r] + b * kQuant, D - b * kQuant);
      const float scale = scale_of(largest(block.x));
      s.q_scale[r * nq + b] = scale;
      s.q_sum[r * nq + b] = quantize(block.x, scale, s.q + static_cast<size_t>(r) * Dq + b * kQuant);
    }
  }
}
