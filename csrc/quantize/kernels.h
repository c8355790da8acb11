// Contract of the quantising kernels: one panel of groups at a time, one group per lane.
//
// A panel is 16 groups of 16 elements (Q2_K Q3_K Q6_K: one superblock) or of 32 (Q4_K Q5_K IQ4_XS: two superblocks; the
// formats with blocks of 32: sixteen blocks). It is transposed first, so that all arithmetic of a group happens in its
// own lane: no horizontal sums, the same order and the same bits for every vector width.
// Every product and sum is rounded to float by itself (no fused multiply-add).
//
// Kernels are noexcept, allocate nothing and own no threads.
#pragma once
#include <cstdint>

#include "cpu/isa.h"
#include "formats/blocks.h"

namespace phlite {

constexpr int kPanelGroups = 16;
constexpr int kMaxPanel = kPanelGroups * 32;  // elements
constexpr int kQuantizeTypes = 31;            // above the largest GGMLType that is written

struct PanelArgs {
  const float* x;           // the panel's elements in the order of the file
  const float* importance;  // as many weights, or null
  int n_blocks;             // blocks to write; those after them in the panel are padding
  uint8_t* out;             // n_blocks * block bytes
};

struct QuantizeKernels {
  // Returns false where a scale would be infinite. Null for types that are not written.
  using PanelFn = bool (*)(const PanelArgs&) noexcept;
  PanelFn panel[kQuantizeTypes] = {};
  // n values to F16 or BF16, to nearest, ties to even.
  void (*to_f16)(const float* x, int64_t n, uint8_t* out) noexcept;
  void (*to_bf16)(const float* x, int64_t n, uint8_t* out) noexcept;
  // True when all n values lie within [-limit, limit].
  bool (*within)(const float* x, int64_t n, float limit) noexcept;
};

const QuantizeKernels& quantize_kernels_scalar();
const QuantizeKernels& quantize_kernels_avx2();
const QuantizeKernels& quantize_kernels_avx512vnni();

// The table of the instruction set in use.
const QuantizeKernels& quantize_kernels();

// Elements of a panel of this format: a whole number of its blocks.
constexpr int panel_elements(GGMLType type) noexcept {
  return type == GGMLType::Q2_K || type == GGMLType::Q3_K || type == GGMLType::Q6_K ? kPanelGroups * 16 : kMaxPanel;
}

}  // namespace phlite
