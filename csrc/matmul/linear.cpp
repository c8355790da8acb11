#include "matmul/linear.h"

#include <algorithm>
#include <cstring>

#include "cpu/tuning.h"
#include "matmul/kernels.h"
#include "support/prefetch.h"
#include "support/transpose.h"

namespace phlite {
namespace {

// Tiles that a thread takes at once: their weights stay in its second-level cache while all rows pass.
constexpr int64_t kChunkTiles = 4;

// Bytes of activations that go over a chunk of tiles together, so that they stay in the second-level cache: of Zen 4,
// one tile at a time. Two tiles at once (Zen 5) and AVX2 take as many rows as a call can, though they do not fit: 128
// rows of 8,192 columns 1.04 to 1.09 times as fast, F16 1.20.
constexpr int64_t kPassBytes = 600 << 10;

// Matrices below this size may well lie in the caches, where asking ahead costs 3 % (the embedded model).
constexpr int64_t kFetchedBytes = 1 << 20;

// Bytes of its first chunk that a thread asks for while others are still busy with the operation before.
constexpr int64_t kWarmUpBytes = 16 << 10;

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

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
    act.pair_start = reinterpret_cast<int32_t*>(take(slices * n_rows * 8 * 4));
    act.reach16 = reinterpret_cast<int16_t*>(take(slices * n_rows * 2));
    act.reach32 = reinterpret_cast<int16_t*>(take(slices * n_rows * 2));
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
  if (act.n_rows == 1) {  // its slices follow each other
    std::memcpy(act.q, codes, static_cast<size_t>(n_cols));
    return;
  }
  for (int64_t k = 0, slice = 0; k < n_cols; k += kSuperblock, ++slice) {
    uint8_t* to = reinterpret_cast<uint8_t*>(act.q + (slice * act.n_rows + group.first) * kSuperblock);
    const int64_t last = std::min(k + kSuperblock, n_cols);
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
      const uint8_t* rows[4];
      for (int r = 0; r < 4; ++r) rows[r] = reinterpret_cast<const uint8_t*>(codes + (i + r) * n_cols);
      for (int64_t c = k; c < last; c += 16) transpose_4x4(rows, c, to + (c - k) * n + 4 * i, 4 * n);
    }
    for (; i < n; ++i)
      for (int64_t c = k; c < last; c += 4) std::memcpy(to + (c - k) * n + 4 * i, codes + i * n_cols + c, 4);
  }
}

struct Job {
  const LinearArgs& args;
  const PackedMatrix& w;
  const MatmulKernels& kernels;
  const Tuning& tuning;

  int64_t source_row_idx(int64_t r) const { return args.rows ? args.rows[r] : r; }
  const float* source_row(int64_t r) const { return args.x + source_row_idx(r) * w.n_cols(); }

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

  // Whether tiles i and i + 1 are multiplied at once.
  bool can_pair(int64_t i, int64_t n_rows) const {
    const auto& tiles = w.tiles();
    const int format = tiles[i].format;
    return tuning.two_tiles && i + 1 < static_cast<int64_t>(tiles.size()) && format == tiles[i + 1].format &&
           kernels.two_tiles[format] && n_rows >= kernels.two_tiles_rows[format];
  }

  // Rows of activations and where their product goes: from out[0] for the first row, ld from one row to the next, and
  // for a second tile `second` behind that.
  struct Place {
    int64_t row, n_rows;
    float* out;
    int64_t ld = kTileRows, second = 0;
    const float* residual = nullptr;
  };

  // Tile i, or tiles i and i + 1, times some rows, while tile `next`, if not negative, is fetched.
  void multiply(int64_t i, bool pair, int64_t next, const Place& p, const Workspace (&ws)[2]) const {
    const auto& tiles = w.tiles();
    const PackedMatrix::Tile& tile = tiles[i];
    TileArgs a{};
    a.tile = w.storage() + tile.offset;
    a.act = &activations_of(tile.format, ws);
    a.row = p.row;
    a.n_rows = p.n_rows;
    a.out = p.out;
    a.ld = p.ld;
    a.residual = p.residual;
    a.next = next < 0 ? nullptr : w.storage() + tiles[next].offset;
    a.fetch_ahead = w.n_bytes() >= kFetchedBytes ? tuning.fetch_ahead : FetchAhead::none;
    if (!pair) return kernels.tile[tile.format](a);
    a.second_tile = tiles[i + 1].offset - tile.offset;
    a.second_out = p.second;
    kernels.two_tiles[tile.format](a);
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

  // Tiles [first, last), which are one, two that can be paired, or a gate and its up rows, times rows [row, row + n).
  // product: float32[2][kMaxTileRows][kTileRows].
  void multiply_tiles(int64_t first, int64_t last, int64_t next, int64_t row, int64_t n, const Workspace (&ws)[2],
                      float* product) const {
    float* const second = product + kMaxTileRows * kTileRows;
    const PackedMatrix::Tile& tile = w.tiles()[first];
    const bool two = last - first == 2, pair = two && can_pair(first, n);
    const int64_t ld = w.n_outputs(), at = row * ld + tile.out_col;
    if (two && !w.gated() && !pair) {
      multiply_tiles(first, first + 1, first + 1, row, n, ws, product);
      return multiply_tiles(first + 1, last, next, row, n, ws, product);
    }
    if (w.activation() == Activation::none && !args.bias && !args.addend && !(args.residual && args.rows) &&
        tile.n_valid == kTileRows && w.tiles()[last - 1].n_valid == kTileRows) {
      const int64_t apart = w.tiles()[last - 1].out_col - tile.out_col;
      return multiply(first, pair, next,
                      {row, n, args.out + at, ld, apart, args.residual ? args.residual + at : nullptr}, ws);
    }
    if (pair) {
      multiply(first, true, next, {row, n, product, kTileRows, second - product}, ws);
    } else {
      multiply(first, false, two ? first + 1 : next, {row, n, product}, ws);
      if (two) multiply(first + 1, false, next, {row, n, second}, ws);
    }
    add_terms(tile, 0, row, n, product);
    if (two) add_terms(w.tiles()[first + 1], w.gated() ? 1 : 0, row, n, second);
    if (w.activation() == Activation::swiglu) {
      kernels.swiglu(product, second, n * kTileRows, product);
    } else if (w.activation() == Activation::gegelu) {
      kernels.gegelu(product, second, w.gegelu_limit(), n * kTileRows, product);
    } else if (w.activation() == Activation::gelu_tanh) {
      kernels.gelu_tanh(product, n * kTileRows, product);
      if (two) kernels.gelu_tanh(second, n * kTileRows, second);
    }
    copy_out(tile, row, n, product);
    if (two && !w.gated()) copy_out(w.tiles()[first + 1], row, n, second);
  }

  // Writes a tile's outputs of rows [row, row + n), added to the residual.
  void copy_out(const PackedMatrix::Tile& tile, int64_t row, int64_t n, const float* product) const {
    const int64_t ld = w.n_outputs(), at = row * ld + tile.out_col;
    for (int64_t m = 0; m < n; ++m) {
      float* out = args.out + at + m * ld;
      const float* p = product + m * kTileRows;
      if (args.residual) {
        const float* residual = args.residual + source_row_idx(row + m) * ld + tile.out_col;
        for (int c = 0; c < tile.n_valid; ++c) out[c] = residual[c] + p[c];
      } else if (tile.n_valid == kTileRows) {  // a fixed count becomes a few vector moves
        std::memcpy(out, p, kTileRows * sizeof(float));
      } else {
        std::memcpy(out, p, static_cast<size_t>(tile.n_valid) * sizeof(float));
      }
    }
  }
};

// Rows that go over a chunk of tiles together, a multiple of the register tile.
int64_t rows_per_pass(int64_t n_rows, int64_t row_bytes, bool long_passes) {
  const int64_t fit = std::clamp<int64_t>(kPassBytes / row_bytes / 12 * 12, 24, kMaxTileRows);
  return std::min(n_rows, long_passes ? kMaxTileRows : fit);
}

}  // namespace

LinearOperation::LinearOperation(const LinearArgs& args, const PackedMatrix& w, int n_threads) : args_(args), w_(w) {
  two_tiles_ = args.n_rows >= kTwoTilesRows && tuning().two_tiles;
  tiles_at_once_ = w.gated() || two_tiles_ ? 2 : 1;
  const int64_t n_tiles = static_cast<int64_t>(w.tiles().size()), step = tiles_at_once_;
  chunk_tiles_ = std::clamp<int64_t>(n_tiles / (n_threads * 4) / step * step, step, kChunkTiles);
  n_whole_chunks_ = std::max<int64_t>(0, n_tiles / chunk_tiles_ - n_threads);
  n_chunks_ = n_whole_chunks_ + (n_tiles - n_whole_chunks_ * chunk_tiles_ + step - 1) / step;

  // One row is prepared by every thread for itself: a microsecond of double work costs less than a barrier.
  const MatmulKernels& kernels = matmul_kernels();
  keep_floats_ = w.needs(ActivationKind::f32) || !shared();
  n_sets_ = w.needs(ActivationKind::q8) && w.needs(ActivationKind::q8k) ? 2 : 1;
  Workspace measure;
  set_bytes_ = measure.lay_out(nullptr, w, args.n_rows, keep_floats_);
  row_bytes_ = round_up(w.n_cols() * 4, 64);
  own_bytes_ = row_bytes_ + round_up(n_sets_ * w.n_cols() * std::min<int64_t>(args.n_rows, kernels.max_rows), 64);
}

size_t LinearOperation::scratch_bytes(int n_threads) const noexcept {
  const int64_t shared_bytes = n_sets_ * set_bytes_;
  return static_cast<size_t>(shared() ? shared_bytes + n_threads * own_bytes_
                                      : n_threads * (shared_bytes + own_bytes_));
}

void LinearOperation::prepare(uint8_t* scratch, int) noexcept { scratch_ = scratch; }

// Whole chunks first, then single tiles (or pairs of gate and up), so that the threads end together.
LinearOperation::Chunk LinearOperation::chunk(int64_t idx) const noexcept {
  const int64_t n_tiles = static_cast<int64_t>(w_.tiles().size()), step = tiles_at_once_;
  if (idx < n_whole_chunks_) return {idx * chunk_tiles_, (idx + 1) * chunk_tiles_};
  const int64_t first = n_whole_chunks_ * chunk_tiles_ + (idx - n_whole_chunks_) * step;
  return {first, std::min(first + step, n_tiles)};
}

void LinearOperation::warm_up(int thread, int) const noexcept {
  if (thread >= n_chunks_) return;
  const uint8_t* first = w_.storage() + w_.tiles()[chunk(thread).first].offset;
  const int64_t n_bytes = std::min(kWarmUpBytes, w_.storage() + w_.n_bytes() - first);
  for (int64_t i = 0; i < n_bytes; i += 64) prefetch(first + i);
  if (args_.norm.weight)
    for (int64_t i = 0; i < w_.n_cols(); i += 16) prefetch(args_.norm.weight + i);
}

void LinearOperation::work(ThreadPool& pool, int thread, int n_threads) noexcept {
  const Job job{args_, w_, matmul_kernels(), tuning()};
  const int64_t n_rows = args_.n_rows, shared_bytes = n_sets_ * set_bytes_;
  const bool floats = w_.needs(ActivationKind::f32);
  uint8_t* const mine = shared() ? scratch_ : scratch_ + thread * (shared_bytes + own_bytes_);
  uint8_t* const own = shared() ? scratch_ + shared_bytes + thread * own_bytes_ : mine + shared_bytes;
  int8_t* const codes = reinterpret_cast<int8_t*>(own + row_bytes_);
  Workspace ws[2];
  ws[0].lay_out(mine, w_, n_rows, keep_floats_);
  ws[1].lay_out(n_sets_ == 2 ? mine + set_bytes_ : mine, w_, n_rows, keep_floats_);
  ws[0].act.x = ws[0].normed;
  ws[0].act.ld = float_stride(w_.n_cols());
  if (shared()) {
    const int64_t begin = n_rows * thread / n_threads, end = n_rows * (thread + 1) / n_threads;
    for (int64_t r = 0; r < n_rows;) {  // the groups whose first row is among this thread's
      const RowGroup group = row_group(n_rows, job.kernels.max_rows, r);
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
  const int64_t step = tiles_at_once_;
  const int64_t pass = rows_per_pass(n_rows, w_.n_cols() * (floats ? 4 : 1), two_tiles_ || job.kernels.long_passes);
  alignas(64) float product[2 * kMaxTileRows * kTileRows];
  // A thread's first chunk is known beforehand, so that it can be fetched early; the others go to whoever is free. The
  // next chunk is taken before the work on one begins, so that its first tile is fetched meanwhile.
  const auto take = [&] { return n_threads + pool.take_chunk(1); };
  int64_t idx = thread, next_idx = take();
  while (idx < n_chunks_) {
    const auto [first, last] = chunk(idx);
    const int64_t next_chunk = next_idx < n_chunks_ ? chunk(next_idx).first : -1;
    for (int64_t row = 0; row < n_rows; row += pass)
      for (int64_t i = first; i < last; i += step) {
        const bool is_last = i + step >= last;
        const int64_t next = !is_last ? i + step : row + pass < n_rows ? first : next_chunk;
        job.multiply_tiles(i, std::min(i + step, last), next, row, std::min(pass, n_rows - row), ws, product);
      }
    idx = next_idx;
    next_idx = take();
  }
}

void linear(const LinearArgs& args, const PackedMatrix& w, ThreadPool& pool) {
  LinearOperation operation(args, w, pool.size());
  pool.run_in_order(operation);
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
