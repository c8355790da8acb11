// The matrix-product kernels, written once over a vector type V and included by each instruction set's file inside its
// target region; that file defines V, INLINE and UNROLL first. No include guard and no includes for that reason.
//
// V has `lanes` 32-bit lanes (1, 8 or 16); a plane of sixteen lanes is 16 / lanes vectors, worked off one after
// another. V::dot<MaxCode>(acc, codes, act) adds the products of four codes and four activations per lane;
// V::flush_every gives how many steps fit its accumulator, V::fold moves an accumulator, times the scale of its group,
// into an int32 total. Signed codes (Q8_0, IQ4) are passed through V::from_signed: where the hardware multiplies
// unsigned by signed bytes it adds 128, which V::kSignedOffset and the block sums take back.

// clang-format off: each part builds on those before it
#include "matmul/codes.inl"
#include "matmul/scales.inl"
#include "matmul/formats.inl"
#include "matmul/rows.inl"
// clang-format on

template <class V>
INLINE void store_sum(const TileArgs& a, int64_t row, int lane, typename V::F sum) {
  if (a.residual) sum = V::add_f(V::load_f(a.residual + row * a.ld + lane), sum);
  V::store_f(a.out + row * a.ld + lane, sum);
}

// One pass over the packed tile, the sums stay in registers.
template <class F, int M>
INLINE void add_tile(const TileArgs& a, int64_t row, int lane) {
  using V = typename F::V;
  const Activations& act = *a.act;
  const int64_t n_slices = (act.n_cols + kSuperblock - 1) / kSuperblock;
  typename V::F acc[M];
  UNROLL for (int m = 0; m < M; ++m) acc[m] = V::zero_f();
  // The last large group fetches the next tile: this one's bytes are in the cache by then, and the memory is idle. One
  // row alone leaves that to the processor, which does it better.
  constexpr int kLarge = V::kMaxRows < 8 ? V::kMaxRows : 8;
  const int64_t n_left = a.n_rows - row;
  const bool fetch_next = M >= 2 && a.next && (a.n_rows < kLarge || (M >= kLarge && n_left - M < kLarge));
  for (int64_t b = 0; b < n_slices; ++b) {
    if (fetch_next)
      for (int i = 0; i < F::kSliceBytes; i += kPlaneBytes) prefetch(a.next + b * F::kSliceBytes + i);
    const Place p = F::place(a.tile, act.n_cols, b);
    F::template add_slice<M>(p, act, b, a.row + row, lane, acc);
  }
  UNROLL for (int m = 0; m < M; ++m) store_sum<V>(a, row + m, lane, acc[m]);
}

// Many rows of a format worth unpacking: slice by slice, once in the first-level cache for all rows, and so the sums.
template <class F, int M>
INLINE void add_wide_slice(Place p, const TileArgs& a, int64_t b, int64_t row, int lane, float* sums) {
  using V = typename F::V;
  typename V::F acc[M];
  sums += row * kTileRows + lane;
  UNROLL for (int m = 0; m < M; ++m) acc[m] = V::load_f(sums + m * kTileRows);
  F::template add_slice<M>(p, *a.act, b, a.row + row, lane, acc);
  UNROLL for (int m = 0; m < M; ++m) V::store_f(sums + m * kTileRows, acc[m]);
}

// Calls f<M>(row) for groups of rows that cover [0, n), M at most what the registers hold.
#define FOR_ROW_GROUPS(V, n, CALL)                 \
  do {                                             \
    int64_t row = 0;                               \
    if constexpr (V::kMaxRows >= 12)               \
      for (; (n) - row >= 12; row += 12) CALL(12); \
    if constexpr (V::kMaxRows >= 8)                \
      for (; (n) - row >= 8; row += 8) CALL(8);    \
    if constexpr (V::kMaxRows >= 4)                \
      for (; (n) - row >= 4; row += 4) CALL(4);    \
    if constexpr (V::kMaxRows >= 2)                \
      for (; (n) - row >= 2; row += 2) CALL(2);    \
    for (; row < (n); ++row) CALL(1);              \
  } while (0)

template <class F>
INLINE void unpacked_kernel(const TileArgs& a) {
  using V = typename F::V;
  using Wide = typename F::Wide;
  const Activations& act = *a.act;
  alignas(64) uint8_t scratch[Wide::kSliceBytes];
  alignas(64) float sums[kMaxTileRows * kTileRows];
  for (int64_t i = 0; i < a.n_rows * kTileRows; i += V::lanes) V::store_f(sums + i, V::zero_f());
  for (int64_t b = 0; b * kSuperblock < act.n_cols; ++b) {
    // The next slice (after the last one, usually the next tile) comes from memory while this one is multiplied.
    const uint8_t* next = F::place(a.tile, act.n_cols, b + 1).body;
    for (int i = 0; i < F::kSliceBytes; i += kPlaneBytes) V::prefetch(next + i);
    for (int lane = 0; lane < kTileRows; lane += V::lanes) {
      const Place p = F::unpack(F::place(a.tile, act.n_cols, b), lane, scratch);
#define CALL(M) add_wide_slice<Wide, M>(p, a, b, row, lane, sums)
      FOR_ROW_GROUPS(V, a.n_rows, CALL);
#undef CALL
    }
  }
  for (int64_t row = 0; row < a.n_rows; ++row)
    for (int lane = 0; lane < kTileRows; lane += V::lanes)
      store_sum<V>(a, row, lane, V::load_f(sums + row * kTileRows + lane));
}

template <class F>
void tile_kernel(const TileArgs& a) noexcept {
  using V = typename F::V;
  if constexpr (F::kUnpack) {
    if (a.n_rows >= kUnpackRows) return unpacked_kernel<F>(a);
  }
  for (int lane = 0; lane < kTileRows; lane += V::lanes) {
#define CALL(M) add_tile<F, M>(a, row, lane)
    FOR_ROW_GROUPS(V, a.n_rows, CALL);
#undef CALL
  }
}

template <class V>
MatmulKernels build_kernels() {
  MatmulKernels t{};
  const auto set = [&](GGMLType type, MatmulKernels::TileFn fn) {
    t.tile[packed_format_index(static_cast<int>(type))] = fn;
  };
  set(GGMLType::F32, &tile_kernel<FloatFormat<V, GGMLType::F32>>);
  set(GGMLType::F16, &tile_kernel<FloatFormat<V, GGMLType::F16>>);
  set(GGMLType::BF16, &tile_kernel<FloatFormat<V, GGMLType::BF16>>);
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
  t.quantize_row = &quantize_row<V>;
  t.rms_norm_row = &rms_norm_row<V>;
  t.layer_norm_row = &layer_norm_row<V>;
  t.swiglu = &swiglu<V>;
  t.gelu_tanh = &gelu_tanh<V>;
  t.gegelu = &gegelu<V>;
  return t;
}
