// The matrix-product kernels, written once over a vector type V and included by each instruction set's file inside its
// target region; that file defines V, INLINE and UNROLL first. No include guard and no includes for that reason.
//
// V has `lanes` 32-bit lanes (1, 8 or 16); a plane of sixteen lanes is 16 / lanes vectors, worked off one after
// another. V::dot<MaxCode>(acc, codes, act) adds the products of four codes and four activations per lane;
// V::flush_every gives how many steps fit its accumulator, V::fold moves an accumulator, times the scale of its group,
// into an int32 total. Signed codes (Q8_0, IQ4) are passed through V::from_signed: where the hardware multiplies
// unsigned by signed bytes it adds 128, which V::kSignedOffset and the block sums take back.

// What a call with one tile means for V; TwoTiles in two_tiles.inl is the same for two.
template <class V>
struct OneTile : V {
  using F = typename V::F;
  using Bytes = const uint8_t*;  // where packed weights lie
  static constexpr int kOutputs = kTileRows;

  static INLINE Bytes tile(const TileArgs& a) { return a.tile; }
  static INLINE void fetch_next(const TileArgs& a, int64_t at) { phlite::prefetch(a.next + at); }
  static INLINE F load_sum(const float* p) { return V::load_f(p); }
  static INLINE void store_sum(float* p, F v) { V::store_f(p, v); }
  static INLINE F load_out(const TileArgs&, const float* p) { return V::load_f(p); }
  static INLINE void store_out(const TileArgs&, float* p, F v) { V::store_f(p, v); }
};

// clang-format off: each part builds on those before it
#include "matmul/codes.inl"
#include "matmul/scales.inl"
#include "matmul/formats.inl"
#include "matmul/rows.inl"
// clang-format on

// While the first group of G rows is multiplied a tile comes from memory, and the hardware fetches a stream of loads
// too late where much is computed between them: so the slices some KB ahead are asked for, in the next tile too. If
// there is but one group, nobody needs them a second time.
template <class F, int G>
INLINE void fetch_slice(const TileArgs& a, int64_t b, int64_t n_slices) {
  using V = typename F::V;
  constexpr int64_t kBytes = G <= 2 ? 4608 : 9216;
  constexpr int64_t kAhead = F::kSliceBytes < kBytes ? kBytes / F::kSliceBytes : 1;
  const int64_t at = b + kAhead - n_slices;
  if (at >= 0 && !a.next) return;
  const uint8_t* slice = at < 0 ? F::place(a.tile, a.act->n_cols, b + kAhead).body : a.next + at * F::kSliceBytes;
  if (a.n_rows <= V::kMaxRows)
    for (int i = 0; i < F::kSliceBytes; i += kPlaneBytes) V::fetch_once(slice + i);
  else
    for (int i = 0; i < F::kSliceBytes; i += kPlaneBytes) V::prefetch(slice + i);
}

// How far lines are asked for ahead of the place that the sizes of both halves give; nearly any distance does.
constexpr int kLinesAhead = 2560;

template <class F>
INLINE LinesAhead lines_ahead(const TileArgs& a, int64_t n_slices) {
  using V = typename F::V;
  LinesAhead ahead;
  if constexpr (V::kOutputs == kTileRows) {
    ahead.streams = a.fetch_ahead == FetchAhead::lines ? LinesAhead::two : LinesAhead::one;
    ahead.tile = a.tile;
    ahead.end = F::place(a.tile, a.act->n_cols, n_slices).body;
    ahead.to_next = a.next ? a.next - ahead.end : 0;
    const int64_t half = round_to_plane((ahead.end - a.tile) / 2);
    ahead.this_half = a.tile + half + kLinesAhead + kPlaneBytes / 2;  // rounds an odd number of lines up
    ahead.next_half = a.next ? a.next + kLinesAhead : a.tile;
  }
  return ahead;
}

template <class V>
INLINE void store_sum(const TileArgs& a, int64_t row, int lane, typename V::F sum) {
  const int64_t at = row * a.ld + lane;
  if (a.residual) sum = V::add_f(V::load_out(a, a.residual + at), sum);
  V::store_out(a, a.out + at, sum);
}

// One pass over the packed tile, the sums stay in registers: rows part .. part + M - 1 of the group of G rows at `row`.
template <class F, int M, int G>
INLINE void add_tile(const TileArgs& a, int64_t row, int part, int lane) {
  using V = typename F::V;
  const Activations& act = *a.act;
  const int64_t n_slices = (act.n_cols + kSuperblock - 1) / kSuperblock;
  typename V::F acc[M];
  UNROLL for (int m = 0; m < M; ++m) acc[m] = V::zero_f();
  // Where nothing is asked for ahead, the last large group fetches the next tile: this one's bytes are in the cache by
  // then, and the memory is idle. One row alone leaves that to the processor.
  constexpr int kLarge = V::kMaxRows < 8 ? V::kMaxRows : 8;
  const int64_t n_left = a.n_rows - row;
  const bool fetch_next = G > 1 && a.fetch_ahead == FetchAhead::none && a.next && part == 0 &&
                          (a.n_rows < kLarge || (G >= kLarge && n_left - G < kLarge));
  const bool ahead = a.fetch_ahead != FetchAhead::none && row == 0;
  const bool by_line = ahead && (a.fetch_ahead == FetchAhead::lines || (F::kLongSlices && G <= 2));
  const LinesAhead lines = by_line ? lines_ahead<F>(a, n_slices) : LinesAhead{};
  if (by_line)  // what lies in front of the slices
    for (typename V::Bytes line = V::tile(a), end = F::place(line, act.n_cols, 0).body; line != end;
         line += kPlaneBytes)
      fetch_lines<1>(Place<V>{line, line, lines}, line);
  for (int64_t b = 0; b < n_slices; ++b) {
    if constexpr (V::kOutputs == kTileRows)
      if (ahead && !by_line) fetch_slice<F, G>(a, b, n_slices);
    if (fetch_next)
      for (int i = 0; i < F::kSliceBytes; i += kPlaneBytes) V::fetch_next(a, b * F::kSliceBytes + i);
    Place<V> p = F::place(V::tile(a), act.n_cols, b);
    p.ahead = lines;
    F::template add_slice<M, G>(p, act, b, a.row + row + part, part, lane, acc);
  }
  UNROLL for (int m = 0; m < M; ++m) store_sum<V>(a, row + part + m, lane, acc[m]);
}

template <class F, int G>
INLINE void add_rows(const TileArgs& a, int64_t row, int lane) {
  constexpr int M = F::V::rows_at_once(G);
  UNROLL for (int part = 0; part < G; part += M) add_tile<F, M, G>(a, row, part, lane);
}

// Many rows, slice by slice: a slice stays in the first-level cache for all rows, and so do the sums until the last
// slice writes them where they belong.
template <class F, int G>
INLINE void add_to_sums(Place<typename F::V> p, const TileArgs& a, int64_t b, int64_t row, int lane, float* sums) {
  using V = typename F::V;
  constexpr int M = V::rows_at_once(G);
  const bool last = (b + 1) * kSuperblock >= a.act->n_cols;
  sums += row * V::kOutputs + lane;
  for (int part = 0; part < G; part += M, sums += M * V::kOutputs) {
    typename V::F acc[M];
    UNROLL for (int m = 0; m < M; ++m) acc[m] = V::load_sum(sums + m * V::kOutputs);
    F::template add_slice<M, G>(p, *a.act, b, a.row + row + part, part, lane, acc);
    if (last) {
      UNROLL for (int m = 0; m < M; ++m) store_sum<V>(a, row + part + m, lane, acc[m]);
    } else {
      UNROLL for (int m = 0; m < M; ++m) V::store_sum(sums + m * V::kOutputs, acc[m]);
    }
  }
}

// Calls CALL(G) for groups of G rows that cover [0, n), as large as the registers hold; eight rows are twice four where
// six is the most.
#define FOR_ROW_GROUPS(kMost, n, CALL)                            \
  do {                                                            \
    int64_t row = 0;                                              \
    if constexpr ((kMost) >= 12)                                  \
      for (; (n) - row >= 12; row += 12) CALL(12);                \
    if constexpr ((kMost) >= 8)                                   \
      for (; (n) - row >= 8; row += 8) CALL(8);                   \
    if constexpr ((kMost) == 6)                                   \
      for (; (n) - row >= 6 && (n) - row != 8; row += 6) CALL(6); \
    if constexpr ((kMost) >= 4)                                   \
      for (; (n) - row >= 4; row += 4) CALL(4);                   \
    if constexpr ((kMost) >= 2)                                   \
      for (; (n) - row >= 2; row += 2) CALL(2);                   \
    for (; row < (n); ++row) CALL(1);                             \
  } while (0)

template <class F>
INLINE void unpacked_kernel(const TileArgs& a) {
  using V = typename F::V;
  using Wide = typename F::Wide;
  const Activations& act = *a.act;
  alignas(64) uint8_t scratch[Wide::kSliceBytes];
  alignas(64) float sums[kMaxTileRows * kTileRows];
  for (int64_t i = 0; i < a.n_rows * kTileRows; i += V::lanes) V::store_f(sums + i, V::zero_f());
  const int64_t fetched = F::kSliceBytes / kPlaneBytes * F::kMaxRows / a.n_rows + 1;  // lines
  for (int64_t b = 0; b * kSuperblock < act.n_cols; ++b) {
    const int64_t left = act.n_cols - b * kSuperblock, n_cols = left < kSuperblock ? left : kSuperblock;
    // The next slice (after the last one, usually the next tile) comes from memory while this one is multiplied, a few
    // lines beside every group of rows.
    const uint8_t* next = F::place(a.tile, act.n_cols, b + 1).body;
    const uint8_t* const end = next + F::kSliceBytes;
    for (int lane = 0; lane < kTileRows; lane += V::lanes) {
      const Place<V> p = F::unpack(F::place(a.tile, act.n_cols, b), n_cols, lane, scratch);
#define CALL(M)                                                                             \
  do {                                                                                      \
    for (int i = 0; i < fetched && next < end; ++i, next += kPlaneBytes) V::prefetch(next); \
    add_to_sums<Wide, M>(p, a, b, row, lane, sums);                                         \
  } while (0)
      FOR_ROW_GROUPS(F::kMaxRows, a.n_rows, CALL);
#undef CALL
    }
  }
}

template <class F>
void tile_kernel(const TileArgs& a) noexcept {
  using V = typename F::V;
  if constexpr (F::kUnpackRows != kNeverUnpack) {
    if (a.n_rows >= F::kUnpackRows) return unpacked_kernel<F>(a);
  }
  for (int lane = 0; lane < kTileRows; lane += V::lanes) {
#define CALL(M) add_rows<F, M>(a, row, lane)
    FOR_ROW_GROUPS(F::kMaxRows, a.n_rows, CALL);
#undef CALL
  }
}

template <class V>
MatmulKernels build_kernels() {
  MatmulKernels t{};
  const auto set = [&](GGMLType type, MatmulKernels::TileFn fn) {
    t.tile[packed_format_index(static_cast<int>(type))] = fn;
  };
  set(GGMLType::F32, &tile_kernel<FormatF32<V>>);
  set(GGMLType::F16, &tile_kernel<FormatF16<V>>);
  set(GGMLType::BF16, &tile_kernel<FormatBF16<V>>);
  set(GGMLType::Q4_0, &tile_kernel<FormatQ4_0<V>>);
  set(GGMLType::Q4_1, &tile_kernel<FormatQ4_1<V>>);
  set(GGMLType::Q5_0, &tile_kernel<FormatQ5_0<V>>);
  set(GGMLType::Q5_1, &tile_kernel<FormatQ5_1<V>>);
  set(GGMLType::Q8_0, &tile_kernel<FormatQ8_0<V>>);
  set(GGMLType::IQ4_NL, &tile_kernel<FormatIQ4NL<V>>);
  set(GGMLType::Q2_K, &tile_kernel<FormatQ2K<V>>);
  set(GGMLType::Q3_K, &tile_kernel<FormatQ3K<V>>);
  set(GGMLType::Q4_K, &tile_kernel<FormatQ4K<V>>);
  set(GGMLType::Q5_K, &tile_kernel<FormatQ5K<V>>);
  set(GGMLType::Q6_K, &tile_kernel<FormatQ6K<V>>);
  set(GGMLType::IQ4_XS, &tile_kernel<FormatIQ4XS<V>>);
  t.max_rows = V::kMaxRows;
  t.long_passes = V::kLongPasses;
  t.quantize_row = &quantize_row<V>;
  t.rms_norm_row = &rms_norm_row<V>;
  t.layer_norm_row = &layer_norm_row<V>;
  t.swiglu = &swiglu<V>;
  t.gelu_tanh = &gelu_tanh<V>;
  t.gegelu = &gegelu<V>;
  return t;
}
