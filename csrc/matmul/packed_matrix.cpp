#include "matmul/packed_matrix.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>
#include <utility>

#include "support/operation.h"

namespace phlite {
namespace {

// What a thread reads of a file at once, if no tile needs more. Both cores together, from the page cache into buffers
// of 64, 128, 256, 512 and 1024 KB and through them once: 84, 77, 72, 67 and 65 ms for 2.4 GB.
constexpr int64_t kWindowBytes = int64_t{256} << 10;

// Hands out [0, n) in ranges that begin large and become small. Large ones keep threads out of each other's pages, for
// two threads that touch a fresh huge page at the same time both clear one; small ones let them end together.
class Ranges {
 public:
  Ranges(int64_t n, int n_threads) : n_(n), n_threads_(n_threads) {}
  // The next range; an empty one at the end.
  std::pair<int64_t, int64_t> take() {
    int64_t first = next_.load(std::memory_order_relaxed), end;
    do end = first + (n_ - first + 2 * n_threads_ - 1) / (2 * n_threads_);
    while (!next_.compare_exchange_weak(first, end, std::memory_order_relaxed));
    return {first, end};
  }

 private:
  const int64_t n_;
  const int n_threads_;
  std::atomic<int64_t> next_{0};
};

// Source rows of a tile.
struct Source {
  const uint8_t* rows[kTileRows];
  const uint8_t* begin;  // of the first
  const uint8_t* end;    // of the last that exists
};

// Packs the tiles of a matrix. Gate and up tiles alternate, which are two streams of the file with a window each.
class Packing final : public Operation {
 public:
  Packing(const std::vector<Source>& sources, const std::vector<PackedMatrix::Tile>& tiles, int64_t n_cols,
          int n_streams, SourceFiles& files, uint8_t* to, int n_threads)
      : sources_(sources),
        tiles_(tiles),
        n_cols_(n_cols),
        n_streams_(n_streams),
        files_(files),
        to_(to),
        ranges_(static_cast<int64_t>(sources.size()) / n_streams, n_threads) {
    for (const Source& s : sources) window_bytes_ = std::max<int64_t>(window_bytes_, s.end - s.begin);
  }

  size_t scratch_bytes(int n_threads) const noexcept override {
    return static_cast<size_t>(n_threads * n_streams_ * window_bytes_);
  }
  void prepare(uint8_t* scratch, int) noexcept override { scratch_ = scratch; }
  void warm_up(int, int) const noexcept override {}
  void work(ThreadPool&, int thread, int) noexcept override {
    uint8_t* buffer = scratch_ + thread * n_streams_ * window_bytes_;
    SourceWindow windows[2] = {{files_, buffer}, {files_, buffer + (n_streams_ - 1) * window_bytes_}};
    for (;;) {
      const auto [first, end] = ranges_.take();
      if (first == end) return;
      for (int64_t i = first * n_streams_; i < end * n_streams_; ++i) {
        SourceWindow& window = windows[i % n_streams_];
        const Source& s = sources_[i];
        if (!window.holds(s.begin, s.end) && !window.move_to(s.begin, stretch_end(i, end * n_streams_))) return;
        const uint8_t* rows[kTileRows];
        for (int r = 0; r < kTileRows; ++r) rows[r] = s.rows[r] ? window.at(s.rows[r]) : nullptr;
        pack_tile(packed_format(tiles_[i].format), rows, n_cols_, to_ + tiles_[i].offset);
      }
    }
  }

 private:
  // How far the bytes from tile i on can be read at once: those of its stream's next tiles before `end_tile`, if they
  // lie behind each other (or, rows of gate and up in turn, in each other).
  const uint8_t* stretch_end(int64_t i, int64_t end_tile) const {
    const uint8_t *begin = sources_[i].begin, *end = sources_[i].end;
    for (int64_t j = i + n_streams_; j < end_tile; j += n_streams_) {
      const Source& s = sources_[j];
      if (s.begin < begin || s.begin > end || s.end - begin > window_bytes_) break;
      end = std::max(end, s.end);
    }
    return end;
  }

  const std::vector<Source>& sources_;
  const std::vector<PackedMatrix::Tile>& tiles_;
  const int64_t n_cols_;
  const int n_streams_;
  int64_t window_bytes_ = kWindowBytes;
  SourceFiles& files_;
  uint8_t* const to_;
  uint8_t* scratch_ = nullptr;
  Ranges ranges_;
};

}  // namespace

PackedMatrix::PackedMatrix(const std::vector<MatrixPart>& parts, int64_t n_cols, Activation activation,
                           float gegelu_limit, const std::vector<SourceFile>& files, StoredTiles stored,
                           ThreadPool& pool)
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

  // In the order of the output: of a gated matrix, tiles of gate and up rows alternate.
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
      s.end = s.rows[r] + row_bytes;
      ++t.n_valid;
    }
    s.begin = s.rows[0];
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
  storage_ = AdjacentBuffer(static_cast<size_t>(offset));
  data_ = storage_.data();
  SourceFiles reader(files);
  Packing packing(sources, tiles_, n_cols_, activation_ == Activation::swiglu ? 2 : 1, reader, storage_.data(),
                  pool.size());
  pool.run_in_order(packing);
  reader.throw_if_failed();
}

}  // namespace phlite
