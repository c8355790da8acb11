#include "matmul/linear.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "support/aligned.h"

namespace phlite {
namespace {

// Tiles that a thread takes at once: their weights stay in its second-level cache while all rows pass.
constexpr int64_t kChunkTiles = 4;

// Bytes of activations that go over a chunk of tiles together.
constexpr int64_t kPassBytes = 600 << 10;

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

}  // namespace

PackedMatrix::PackedMatrix(const std::vector<MatrixPart>& parts, int64_t n_cols, Activation activation,
                           float gegelu_limit, bool release_source, StoredTiles stored, ThreadPool& pool)
    : n_cols_(n_cols), activation_(activation), gegelu_limit_(gegelu_limit) {
  for (const MatrixPart& p : parts) {
    const int format = packed_format_index(p.ggml_type);
    if (format < 0) throw std::invalid_argument("block format " + std::to_string(p.ggml_type) + " is not supported");
    const PackedFormat& f = packed_format(format);
    if (n_cols <= 0 || p.n_rows <= 0 || n_cols % f.block_cols != 0)
      throw std::invalid_argument(std::string(f.name) + " matrix of " + std::to_string(p.n_rows) + " x " +
                                  std::to_string(n_cols) + ": columns must be a positive multiple of " +
                                  std::to_string(f.block_cols));
    if (p.n_bytes != p.n_rows * (n_cols / f.block_cols) * f.block_bytes)
      throw std::invalid_argument(std::string(f.name) + " matrix of " + std::to_string(p.n_rows) + " x " +
                                  std::to_string(n_cols) + " has " + std::to_string(p.n_bytes) + " bytes");
    n_rows_ += p.n_rows;
    needs_[static_cast<int>(f.activations)] = true;
  }
  if (n_rows_ == 0 || (gated() && n_rows_ % 2))
    throw std::invalid_argument("a gate and up matrix needs an even number of rows");

  // Source rows in the order of the output: of a gated matrix, tiles of gate and up rows alternate.
  struct Source {
    const uint8_t* rows[kTileRows];
  };
  std::vector<Source> sources;
  const auto find = [&](int64_t row, int& part) {
    part = 0;
    while (row >= parts[part].n_rows) row -= parts[part++].n_rows;
    return row;
  };
  const auto add_tile = [&](int64_t out_col, int half, int64_t offset) {
    Source s{};
    Tile t{offset, static_cast<int32_t>(out_col), 0, 0};
    const auto [first, stride] = source_rows(out_col, half);
    int first_part = 0;
    find(first, first_part);
    t.format = static_cast<int16_t>(packed_format_index(parts[first_part].ggml_type));
    const PackedFormat& f = packed_format(t.format);
    const int64_t row_bytes = n_cols_ / f.block_cols * f.block_bytes;
    for (int r = 0; r < kTileRows && out_col + r < n_outputs(); ++r) {
      int part = 0;
      const int64_t at = find(first + r * stride, part);
      if (part != first_part) break;  // a tile has one format: a new part begins a new tile
      s.rows[r] = parts[part].data + at * row_bytes;
      ++t.n_valid;
    }
    sources.push_back(s);
    tiles_.push_back(t);
    return std::pair<int64_t, int64_t>{t.n_valid, tile_bytes(f, n_cols_)};
  };
  int64_t offset = 0;
  for (int64_t out_col = 0; out_col < n_outputs();) {
    const auto [n, bytes] = add_tile(out_col, 0, offset);
    offset += bytes;
    if (gated()) {
      const auto [n_up, up_bytes] = add_tile(out_col, 1, offset);
      offset += up_bytes;
      if (n_up != n) throw std::invalid_argument("gate and up rows are split in different places");
    }
    out_col += n;
  }

  n_bytes_ = offset;
  if (stored.data) {
    if (stored.n_bytes != offset || reinterpret_cast<uintptr_t>(stored.data) % kPlaneBytes)
      throw std::invalid_argument(std::to_string(stored.n_bytes) + " bytes of stored tiles, expected " +
                                  std::to_string(offset) + ", aligned to 64");
    data_ = stored.data;
    return;
  }
  storage_ = LargeBuffer(static_cast<size_t>(offset));
  data_ = storage_.data();
  const int64_t n_tiles = static_cast<int64_t>(tiles_.size());
  pool.run([&](int, int) {
    for (int64_t i; (i = pool.take_chunk(1)) < n_tiles;)
      pack_tile(packed_format(tiles_[i].format), sources[i].rows, n_cols_, storage_.data() + tiles_[i].offset);
  });
  if (release_source)
    for (const MatrixPart& p : parts) release_mapped_pages(p.data, static_cast<size_t>(p.n_bytes));
}

namespace {

// From one row of float activations to the next: a line more than the columns, since the rows of a group are read side
// by side, and rows that are a multiple of 4 KB apart would meet in the same few places of the first-level cache.
int64_t float_stride(int64_t n_cols) { return round_up(n_cols, 16) + 16; }

// Where the quantised rows lie in one block of scratch memory.
struct Workspace {
  Activations act;
  float* normed = nullptr;  // float32[n_rows][float_stride(K)]

  // Sets the pointers of the kinds that `w` needs into `base`; returns the bytes used (base may be null to measure).
  int64_t lay_out(uint8_t* base, const PackedMatrix& w, int64_t n_rows, bool keep_floats) {
    int64_t used = 0;
    const auto take = [&](int64_t n_bytes) {
      uint8_t* p = base ? base + used : nullptr;
      used += round_up(n_bytes, 64);
      return p;
    };
    const int64_t slices = round_up(w.n_cols(), kSuperblock) / kSuperblock;
    act.n_rows = n_rows;
    act.n_cols = w.n_cols();
    act.q = reinterpret_cast<int8_t*>(take(slices * n_rows * kSuperblock));
    act.d = reinterpret_cast<float*>(take(slices * n_rows * 8 * 4));
    act.bsum16 = reinterpret_cast<int16_t*>(take(slices * n_rows * 16 * 2));
    act.bsum32 = reinterpret_cast<int16_t*>(take(slices * n_rows * 8 * 2));
    act.minus_sum16 = reinterpret_cast<int32_t*>(take(slices * n_rows * 16 * 4));
    act.minus_sum32 = reinterpret_cast<int32_t*>(take(slices * n_rows * 8 * 4));
    if (keep_floats) normed = reinterpret_cast<float*>(take(n_rows * float_stride(w.n_cols()) * 4));
    return used;
  }
};

void norm_row(const MatmulKernels& kernels, const Norm& norm, const float* x, int64_t n, float* y) {
  if (norm.bias)
    kernels.layer_norm_row(x, norm.weight, norm.bias, norm.eps, n, y);
  else
    kernels.rms_norm_row(x, norm.weight, norm.eps, n, y);
}

// The codes of a group's rows, one after another, to the order in which the kernels read them: four columns of every
// row in turn. A group's codes stay in the first-level cache, which one row's places in the interleaved slices would
// not.
void interleave(const int8_t* codes, RowGroup group, const Activations& act) {
  const int64_t n = group.size, n_cols = act.n_cols;
  for (int64_t k = 0, slice = 0; k < n_cols; k += kSuperblock, ++slice) {
    int8_t* to = act.q + (slice * act.n_rows + group.first) * kSuperblock;
    const int64_t last = std::min(k + kSuperblock, n_cols);
    for (int64_t c = k; c < last; c += 4)
      for (int64_t i = 0; i < n; ++i, to += 4) std::memcpy(to, codes + i * n_cols + c, 4);
  }
}

struct Job {
  const LinearArgs& args;
  const PackedMatrix& w;
  const MatmulKernels& kernels;

  const float* source_row(int64_t r) const { return args.x + (args.rows ? args.rows[r] : r) * w.n_cols(); }

  // A group of rows of the activations: the norm of each into `normed` (float32[K], the next row's n_normed further),
  // then every kind that the matrix needs. `codes` has room for the group.
  void prepare_group(RowGroup group, Workspace (&ws)[2], float* normed, int64_t n_normed, int8_t* codes) const {
    const bool q8k = w.needs(ActivationKind::q8k), q8 = w.needs(ActivationKind::q8);
    int8_t* const codes_q8 = codes + (q8k ? group.size * w.n_cols() : 0);
    for (int64_t i = 0; i < group.size; ++i, normed += n_normed) {
      const float* x = source_row(group.first + i);
      if (args.norm.weight) {
        norm_row(kernels, args.norm, x, w.n_cols(), normed);
        x = normed;
      } else if (w.needs(ActivationKind::f32)) {
        std::memcpy(normed, x, static_cast<size_t>(w.n_cols()) * 4);
      }
      const int64_t row = group.first + i, at = i * w.n_cols();
      if (q8k) kernels.quantize_row(x, row, ActivationKind::q8k, ws[0].act, codes + at);
      if (q8) kernels.quantize_row(x, row, ActivationKind::q8, ws[1].act, codes_q8 + at);
    }
    if (q8k) interleave(codes, group, ws[0].act);
    if (q8) interleave(codes_q8, group, ws[1].act);
  }

  const Activations& activations_of(int format, const Workspace (&ws)[2]) const {
    return packed_format(format).activations == ActivationKind::q8 ? ws[1].act : ws[0].act;
  }

  void multiply(const PackedMatrix::Tile& tile, int64_t row, int64_t n, const Workspace (&ws)[2], float* out,
                int64_t ld = kTileRows, const float* residual = nullptr) const {
    const Activations& act = activations_of(tile.format, ws);
    kernels.tile[tile.format]({w.storage() + tile.offset, &act, row, n, out, ld, residual});
  }

  // Adds bias and addend to the product of rows [row, row + n) with a tile, the gate (half 0) or up (half 1) rows of a
  // gated matrix.
  void add_terms(const PackedMatrix::Tile& tile, int half, int64_t row, int64_t n, float* product) const {
    if (!args.bias && !args.addend) return;
    const auto [first, stride] = w.source_rows(tile.out_col, half);
    for (int64_t m = 0; m < n; ++m) {
      float* p = product + m * kTileRows;
      if (args.bias)
        for (int c = 0; c < tile.n_valid; ++c) p[c] += args.bias[first + c * stride];
      if (args.addend) {
        const float* addend = args.addend + (row + m) * w.n_rows();
        for (int c = 0; c < tile.n_valid; ++c) p[c] += addend[first + c * stride];
      }
    }
  }

  // Rows [row, row + n) of tile i (of tiles i and i + 1, a gate and its up rows, when gated).
  void multiply_tile(int64_t i, int64_t row, int64_t n, const Workspace (&ws)[2], float* product, float* up) const {
    const PackedMatrix::Tile& tile = w.tiles()[i];
    const int64_t ld = w.n_outputs(), at = row * ld + tile.out_col;
    const float* residual = args.residual ? args.residual + at : nullptr;
    if (tile.n_valid == kTileRows && w.activation() == Activation::none && !args.bias && !args.addend)
      return multiply(tile, row, n, ws, args.out + at, ld, residual);
    multiply(tile, row, n, ws, product);
    add_terms(tile, 0, row, n, product);
    if (w.gated()) {
      multiply(w.tiles()[i + 1], row, n, ws, up);
      add_terms(w.tiles()[i + 1], 1, row, n, up);
      if (w.activation() == Activation::swiglu)
        kernels.swiglu(product, up, n * kTileRows, product);
      else
        kernels.gegelu(product, up, w.gegelu_limit(), n * kTileRows, product);
    } else if (w.activation() == Activation::gelu_tanh) {
      kernels.gelu_tanh(product, n * kTileRows, product);
    }
    for (int64_t m = 0; m < n; ++m) {
      float* out = args.out + at + m * ld;
      const float* p = product + m * kTileRows;
      if (residual) {
        for (int c = 0; c < tile.n_valid; ++c) out[c] = residual[m * ld + c] + p[c];
      } else if (tile.n_valid == kTileRows) {  // a fixed count becomes a few vector moves
        std::memcpy(out, p, kTileRows * sizeof(float));
      } else {
        std::memcpy(out, p, static_cast<size_t>(tile.n_valid) * sizeof(float));
      }
    }
  }
};

// Rows whose activations stay in the second-level cache while the tiles of a chunk pass, a multiple of the register
// tile.
int64_t rows_per_pass(int64_t n_rows, int64_t row_bytes) {
  const int64_t fit = std::clamp<int64_t>(kPassBytes / row_bytes / 12 * 12, 24, kMaxTileRows);
  return std::min(n_rows, fit);
}

}  // namespace

void linear(const LinearArgs& args, const PackedMatrix& w, ThreadPool& pool) {
  const Job job{args, w, matmul_kernels()};
  const int64_t n_tiles = static_cast<int64_t>(w.tiles().size());
  const int64_t step = w.gated() ? 2 : 1;
  const int64_t chunk = std::clamp<int64_t>(n_tiles / (pool.size() * 4) / step * step, step, kChunkTiles);
  const int64_t pass = rows_per_pass(args.n_rows, w.n_cols() * (w.needs(ActivationKind::f32) ? 4 : 1));
  const bool shared = args.n_rows > 1;
  const bool both = w.needs(ActivationKind::q8) && w.needs(ActivationKind::q8k);

  // One row is prepared by every thread for itself: a microsecond of double work costs less than a barrier.
  Workspace measure;
  const bool floats = w.needs(ActivationKind::f32), keep_floats = floats || !shared;
  const int64_t set_bytes = measure.lay_out(nullptr, w, args.n_rows, keep_floats);
  const int64_t n_sets = both ? 2 : 1;
  const int64_t row_bytes = round_up(w.n_cols() * 4, 64);
  const int64_t code_bytes = round_up(n_sets * w.n_cols() * std::min<int64_t>(args.n_rows, job.kernels.max_rows), 64);
  const int64_t share_bytes = n_sets * set_bytes, own_bytes = row_bytes + code_bytes;
  thread_local AlignedBuffer scratch;
  scratch.reserve(
      static_cast<size_t>(shared ? share_bytes + pool.size() * own_bytes : pool.size() * (share_bytes + own_bytes)));
  uint8_t* const base = scratch.data();

  pool.run([&](int idx, int n_threads) {
    uint8_t* mine = shared ? base : base + idx * (share_bytes + own_bytes);
    uint8_t* const own = shared ? base + share_bytes + idx * own_bytes : mine + share_bytes;
    int8_t* const codes = reinterpret_cast<int8_t*>(own + row_bytes);
    Workspace ws[2];
    ws[0].lay_out(mine, w, args.n_rows, keep_floats);
    ws[1].lay_out(both ? mine + set_bytes : mine, w, args.n_rows, keep_floats);
    ws[0].act.x = ws[0].normed;
    ws[0].act.ld = float_stride(w.n_cols());
    if (shared) {
      const int64_t begin = args.n_rows * idx / n_threads, end = args.n_rows * (idx + 1) / n_threads;
      for (int64_t r = 0; r < args.n_rows;) {  // the groups whose first row is among this thread's
        const RowGroup group = row_group(args.n_rows, job.kernels.max_rows, r);
        if (r >= begin && r < end) {
          float* normed = floats ? ws[0].normed + r * ws[0].act.ld : reinterpret_cast<float*>(own);
          job.prepare_group(group, ws, normed, floats ? ws[0].act.ld : 0, codes);
        }
        r += group.size;
      }
      pool.barrier();
    } else {
      job.prepare_group({0, 1}, ws, ws[0].normed, 0, codes);
    }
    alignas(64) float product[kMaxTileRows * kTileRows], up[kMaxTileRows * kTileRows];
    for (int64_t first; (first = pool.take_chunk(chunk)) < n_tiles;) {
      const int64_t last = std::min(first + chunk, n_tiles);
      for (int64_t row = 0; row < args.n_rows; row += pass)
        for (int64_t i = first; i < last; i += step)
          job.multiply_tile(i, row, std::min(pass, args.n_rows - row), ws, product, up);
    }
  });
}

void norm(const Norm& norm, const float* x, int64_t n_rows, int64_t n_cols, float* out, ThreadPool* pool) {
  const MatmulKernels& kernels = matmul_kernels();
  const auto rows = [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) norm_row(kernels, norm, x + r * n_cols, n_cols, out + r * n_cols);
  };
  if (!pool || n_rows == 1) return rows(0, n_rows);
  pool->run([&](int idx, int n_threads) { rows(n_rows * idx / n_threads, n_rows * (idx + 1) / n_threads); });
}

const MatmulKernels& matmul_kernels() {
  switch (active_isa()) {
#if defined(__x86_64__) || defined(_M_X64)
    case Isa::avx512vnni:
      return matmul_kernels_avx512vnni();
    case Isa::avxvnni:
      return matmul_kernels_avxvnni();
    case Isa::avx2:
      return matmul_kernels_avx2();
#endif
    default:
      return matmul_kernels_scalar();
  }
}

}  // namespace phlite
