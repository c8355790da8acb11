#include "matmul/packed_matrix.h"

#include <stdexcept>
#include <string>
#include <utility>

namespace phlite {

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

}  // namespace phlite
