// The definition of the attention kernels: plain loops, one row at a time. Every other file gives the same bits.
#include <cmath>
#include <cstring>

#include "attention/exp2.h"
#include "attention/scratch.h"
#include "support/fp16.h"

namespace phlite::attention {
namespace {

float largest(const float* x) noexcept {
  float most = 0.0f;
  for (int i = 0; i < kQuant; ++i) most = std::fabs(x[i]) > most ? std::fabs(x[i]) : most;
  return most;
}

int quantize(const float* x, float scale, int8_t* q) noexcept {
  const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
  int sum = 0;
  for (int i = 0; i < kQuant; ++i) {
    float v = x[i] * inverse;
    v = v >= -127.0f ? v : -127.0f;  // also for NaN, so the conversion is defined
    v = v <= 127.0f ? v : 127.0f;
    q[i] = static_cast<int8_t>(std::nearbyint(v));
    sum += q[i];
  }
  return sum;
}

#include "attention/row_ops.inl"
#include "rope/rope.inl"

float exp2_nonpositive(float x) noexcept {
  if (!(x >= kExp2Floor)) return 0.0f;
  const float n = std::nearbyint(x);
  const float f = x - n;
  float p = kExp2C6;
  p = std::fma(p, f, kExp2C5);
  p = std::fma(p, f, kExp2C4);
  p = std::fma(p, f, kExp2C3);
  p = std::fma(p, f, kExp2C2);
  p = std::fma(p, f, kExp2C1);
  p = std::fma(p, f, 1.0f);
  return p * bits_to_float(static_cast<uint32_t>(static_cast<int>(n) + 127) << 23);
}

float sum_lanes(const float* lanes) noexcept {
  float s[kLanes];
  std::memcpy(s, lanes, sizeof s);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) s[i] += s[i + half];
  return s[0];
}

float k_value(const HeadLayout& layout, const uint8_t* head, int j, int d) noexcept {
  const size_t at = layout.key_at(j, d);
  if (layout.type == KVType::f32) return reinterpret_cast<const float*>(head)[at];
  return fp16_to_fp32(reinterpret_cast<const uint16_t*>(head)[at]);
}

float v_value(const HeadLayout& layout, const uint8_t* head, int j, int d) noexcept {
  const size_t at = static_cast<size_t>(j) * layout.v_stride + d;
  if (layout.type == KVType::f32) return reinterpret_cast<const float*>(head + layout.v)[at];
  return fp16_to_fp32(reinterpret_cast<const uint16_t*>(head + layout.v)[at]);
}

float score(const AttendArgs& a, const Scratch& s, const uint8_t* head, int row, int j) noexcept {
  const HeadLayout& layout = *a.layout;
  float sum = 0.0f;
  if (layout.type != KVType::q8_0) {
    for (int d = 0; d < layout.head_dim; ++d) sum = std::fma(a.q[row][d], k_value(layout, head, j, d), sum);
    return sum;
  }
  const int nq = layout.n_quant(), Dq = layout.v_stride;
  const auto* k_scales = reinterpret_cast<const uint16_t*>(head + layout.k_scales) + j;
  for (int b = 0; b < nq; ++b) {
    int dot = 0;
    for (int i = 0; i < kQuant; ++i)
      dot += s.q[row * Dq + b * kQuant + i] * (head[layout.key_at(j, b * kQuant + i)] - 128);
    sum = std::fma(s.q_scale[row * nq + b] * bf16_to_fp32(k_scales[b * kBlock]), static_cast<float>(dot), sum);
  }
  return sum;
}

// o = o * alpha + p v for int8 values: p * vscale is rounded to int16 per 32 dims.
void add_values_q8(const HeadLayout& layout, const uint8_t* head, const float* p, int from, int to, float alpha,
                   float* o) noexcept {
  const int Dq = layout.v_stride;
  const auto* scales = reinterpret_cast<const uint16_t*>(head + layout.v_scales);
  const auto* v = reinterpret_cast<const int8_t*>(head + layout.v);
  for (int b = 0; b < layout.n_quant(); ++b) {
    float w[kBlock], most = 0.0f;
    for (int j = from; j < to; ++j) {
      w[j] = p[j] * bf16_to_fp32(scales[b * kBlock + j]);
      most = w[j] > most ? w[j] : most;
    }
    const bool counts = most >= kSmallestWeight;
    const float inverse = counts ? kMostWeight / most : 0.0f, scale = counts ? most / kMostWeight : 0.0f;
    for (int d = b * kQuant; d < (b + 1) * kQuant; ++d) {
      int sum = 0;
      for (int j = from; j < to; ++j)
        sum += static_cast<int>(std::nearbyint(w[j] * inverse)) * v[(static_cast<size_t>(j / 2) * Dq + d) * 2 + j % 2];
      o[d] = std::fma(static_cast<float>(sum), scale, o[d] * alpha);
    }
  }
}

// One row over one block; positions `from` to `to` of it are visible.
void attend_block(const AttendArgs& a, const Scratch& s, const uint8_t* head, int row, int from, int to) noexcept {
  const HeadLayout& layout = *a.layout;
  float p[kBlock] = {};
  float m = a.out.m[row];
  for (int j = from; j < to; ++j) {
    p[j] = score(a, s, head, row, j);
    m = p[j] > m ? p[j] : m;
  }
  const float alpha = exp2_nonpositive(a.out.m[row] - m);
  a.out.m[row] = m;
  for (int j = from; j < to; ++j) p[j] = exp2_nonpositive(p[j] - m);

  float* l = s.l + row * kLanes;
  for (int i = 0; i < kLanes; ++i) {
    const float tile_sum = (p[i] + p[i + kLanes]) + (p[i + 2 * kLanes] + p[i + 3 * kLanes]);
    l[i] = std::fma(l[i], alpha, tile_sum);
  }
  float* o = a.out.o + static_cast<size_t>(row) * o_stride(layout.head_dim);
  if (layout.type == KVType::q8_0) return add_values_q8(layout, head, p, from, to, alpha, o);
  for (int d = 0; d < layout.head_dim; ++d) {
    float sum = o[d] * alpha;
    for (int j = from; j < to; ++j) sum = std::fma(p[j], v_value(layout, head, j, d), sum);
    o[d] = sum;
  }
}

void attend(const AttendArgs& a) noexcept {
  const Scratch s(a.scratch, a.layout->head_dim);
  const int stride = o_stride(a.layout->head_dim);
  if (a.layout->type == KVType::q8_0 && !a.same_rows) quantize_queries(a, s);
  for (int r = 0; r < a.n_rows; ++r) {
    const uint8_t* first_block = a.head_base + a.layout->bytes * (r / (a.n_rows / a.n_kv_heads));
    a.out.m[r] = kNoScore;
    std::memset(s.l + r * kLanes, 0, kLanes * sizeof(float));
    std::memset(a.out.o + static_cast<size_t>(r) * stride, 0, stride * sizeof(float));
    for (int32_t base = a.first; base < a.last; base += kBlock) {
      const int from = a.lo[r] > base ? a.lo[r] - base : 0;
      const int to = a.hi[r] < base + kBlock ? a.hi[r] - base : kBlock;
      const uint8_t* head = first_block + a.block_stride * static_cast<size_t>(a.block_table[base / kBlock]);
      if (from < to && sees(a.sparse, r, base, stripe_of(a.sparse, base))) attend_block(a, s, head, r, from, to);
    }
    a.out.l[r] = sum_lanes(s.l + r * kLanes);
  }
}

void merge(const Partial& total, const Partial& next, int n_rows, int stride) noexcept {
  for (int r = 0; r < n_rows; ++r) {
    const float m = next.m[r] > total.m[r] ? next.m[r] : total.m[r];
    const float a = exp2_nonpositive(total.m[r] - m), b = exp2_nonpositive(next.m[r] - m);
    total.m[r] = m;
    total.l[r] = std::fma(next.l[r], b, total.l[r] * a);
    float* o = total.o + static_cast<size_t>(r) * stride;
    const float* o_next = next.o + static_cast<size_t>(r) * stride;
    for (int d = 0; d < stride; ++d) o[d] = std::fma(o_next[d], b, o[d] * a);
  }
}

void rope(const float* x, const float* cos_sin, int head_dim, int rot, bool interleaved, float scale,
          float* out) noexcept {
  rope_head(x, cos_sin, head_dim, rot, interleaved, scale, out);
}

void write(const HeadLayout& layout, uint8_t* head, int slot, const float* k, const float* v) noexcept {
  if (layout.type == KVType::q8_0) return write_q8(layout, head, slot, k, v);
  if (layout.type == KVType::f32) return write_f32(layout, head, slot, k, v);
  const int D = layout.head_dim;
  uint16_t* k_out = reinterpret_cast<uint16_t*>(head);
  uint16_t* v_out = reinterpret_cast<uint16_t*>(head + layout.v) + static_cast<size_t>(slot) * layout.v_stride;
  for (int d = 0; d < D; ++d) k_out[layout.key_at(slot, d)] = fp32_to_fp16(saturate_to_half(k[d]));
  for (int d = 0; d < D; ++d) v_out[d] = fp32_to_fp16(saturate_to_half(v[d]));
}

}  // namespace

const Kernels kScalarKernels = {rope, write, attend, merge};

}  // namespace phlite::attention
