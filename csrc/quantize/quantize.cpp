#include "quantize/quantize.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>

#include "formats/dequantize.h"
#include "quantize/kernels.h"

namespace phlite {
namespace {

constexpr int64_t kChunkElements = 16 * kMaxPanel;  // handed to a thread at once; a whole number of every panel

// The largest float that is finite in the format; blocks have scales, which are looked at where they arise.
float largest_value(GGMLType type) noexcept {
  if (type == GGMLType::F16) return 0x1.ffdffep+15f;    // below 65520, half way to the power of two after 65504
  if (type == GGMLType::BF16) return 0x1.fefffep+127f;  // below half way to 2^128
  return std::numeric_limits<float>::max();
}

// Elements [start, start + n) of the source, n at most kChunkElements; copied only where they are no aligned floats.
const float* read(const QuantizeArgs& args, int64_t start, int64_t n, float* buffer) noexcept {
  const uint8_t* source = args.x + start * block_size(args.x_type).bytes;
  if (args.x_type == GGMLType::F32 && reinterpret_cast<uintptr_t>(source) % alignof(float) == 0)
    return reinterpret_cast<const float*>(source);
  dequantize_row(args.x_type, source, buffer, n);
  return buffer;
}

// The importance of elements [start, start + n) of the matrix.
void read_importance(const QuantizeArgs& args, int64_t start, int64_t n, float* out) noexcept {
  while (n > 0) {
    const int64_t column = start % args.n_cols, step = std::min(n, args.n_cols - column);
    std::memcpy(out, args.importance + column, static_cast<size_t>(step) * sizeof(float));
    out += step, start += step, n -= step;
  }
}

struct Chunk {
  const float* x;
  int64_t start, n;  // elements
  uint8_t* out;
};

bool write(const QuantizeArgs& args, const QuantizeKernels& kernels, const Chunk& chunk) noexcept {
  if (args.type == GGMLType::F16) return kernels.to_f16(chunk.x, chunk.n, chunk.out), true;
  if (args.type == GGMLType::BF16) return kernels.to_bf16(chunk.x, chunk.n, chunk.out), true;
  const BlockSize block = block_size(args.type);
  const auto panel = kernels.panel[static_cast<int>(args.type)];
  const int64_t step = panel_elements(args.type);
  alignas(64) float padded[kMaxPanel], importance[kMaxPanel];
  for (int64_t i = 0; i < chunk.n; i += step) {
    const int64_t n = std::min(step, chunk.n - i);
    const float* x = chunk.x + i;
    if (n < step) {
      std::memcpy(padded, x, static_cast<size_t>(n) * sizeof(float));
      std::fill(padded + n, padded + step, 0.0f);
      x = padded;
    }
    if (args.importance) {
      read_importance(args, chunk.start + i, n, importance);
      std::fill(importance + n, importance + step, 1.0f);
    }
    uint8_t* out = chunk.out + i / block.elements * block.bytes;
    if (!panel({x, args.importance ? importance : nullptr, static_cast<int>(n / block.elements), out})) return false;
  }
  return true;
}

}  // namespace

bool can_quantize(GGMLType type) noexcept {
  const int id = static_cast<int>(type);
  if (type == GGMLType::F16 || type == GGMLType::BF16) return true;
  return id >= 0 && id < kQuantizeTypes && quantize_kernels_scalar().panel[id] != nullptr;
}

bool quantize(const QuantizeArgs& args, ThreadPool& pool) {
  const QuantizeKernels& kernels = quantize_kernels();
  const BlockSize block = block_size(args.type);
  const int64_t total = args.n_rows * args.n_cols;
  const float limit = largest_value(args.type);
  std::atomic<bool> good{true};
  std::atomic<int64_t> next{0};
  pool.run([&](int, int) {
    alignas(64) float buffer[kChunkElements];
    for (int64_t start; good && (start = next.fetch_add(kChunkElements)) < total;) {
      const int64_t n = std::min(kChunkElements, total - start);
      const float* x = read(args, start, n, buffer);
      uint8_t* out = args.out + start / block.elements * block.bytes;
      if (!kernels.within(x, n, limit) || !write(args, kernels, {x, start, n, out})) good = false;
    }
  });
  return good;
}

const QuantizeKernels& quantize_kernels() {
  switch (active_isa()) {
#if defined(__x86_64__) || defined(_M_X64)
    case Isa::avx512vnni:
      return quantize_kernels_avx512vnni();
    case Isa::avxvnni:
    case Isa::avx2:
      return quantize_kernels_avx2();
#endif
    default:
      return quantize_kernels_scalar();
  }
}

}  // namespace phlite
