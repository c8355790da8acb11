// Panels of each format: transpose, fit every group, round the scales of a superblock together, code, pack.

#include "quantize/fit.inl"

// x[16][n] -> t[n][16]
template <class V, int n>
INLINE void transpose(const float* x, float* t) {
  for (int g = 0; g < kPanelGroups; g += V::lanes)
    for (int j = 0; j < n; j += V::lanes) V::transpose(x + n * g + j, n, t + kPanelGroups * j + g, kPanelGroups);
}

// A panel as the fits see it.
template <class V, int n, bool kW>
struct Panel {
  alignas(64) float x[n * kPanelGroups];
  alignas(64) float w[kW ? n * kPanelGroups : 1];

  explicit Panel(const PanelArgs& args) {
    transpose<V, n>(args.x, x);
    if constexpr (kW) transpose<V, n>(args.importance, w);
  }
  INLINE const float* w_at(int lane) const { return kW ? w + lane : w; }
};

using Lanes = float[kPanelGroups];

INLINE float half_value(uint16_t half) { return fp16_to_fp32(half); }
INLINE bool is_finite_half(uint16_t half) { return (half & 0x7c00) != 0x7c00; }

template <class V>
INLINE typename V::F floor_within(typename V::F v, float low, float high) {
  return round_within<V>(V::sub(v, V::set1(0.5f)), low, high);
}

// Codes of all groups, transposed bytes [n][16], for scales and offsets as the block has them.
template <class V, int n, class Levels, bool kOffset>
INLINE void write_codes(const float* x, const Lanes& scale, const Lanes& offset, uint8_t* codes) {
  for (int lane = 0; lane < kPanelGroups; lane += V::lanes) {
    const typename V::F inverse = reciprocal<V>(V::load(scale + lane));
    typename V::F start = V::set1(0.0f);
    if constexpr (kOffset) start = V::load(offset + lane);
    for (int j = 0; j < n; ++j) {
      typename V::F v = V::load(x + kPanelGroups * j + lane);
      if constexpr (kOffset) v = V::sub(v, start);
      V::store_bytes(codes + kPanelGroups * j + lane, Levels::template code<V>(V::mul(v, inverse)));
    }
  }
}

// ---- K formats with y = d * scale * level ----

// Scales of a superblock are whole multiples, from kLow to kHigh, of d.
template <class V, int n, class Levels, bool kW, int kLow, int kHigh>
struct ScaledSuperblocks {
  static constexpr int kGroups = kSuperBlock / n, kCount = kPanelGroups / kGroups;

  const Panel<V, n, kW>& panel;
  alignas(64) Lanes fitted;  // scales as each group would have them

  // What a choice of d gives: whole scales and squared errors of the groups, sums for the next d.
  struct Choice {
    alignas(64) Lanes d, whole, error, lx, ll;
    uint16_t half[kCount];
  };

  INLINE void round_scales(Choice& c) const {
    for (int i = 0; i < kCount; ++i)
      for (int g = 0; g < kGroups; ++g) c.d[kGroups * i + g] = half_value(c.half[i]);
    for (int lane = 0; lane < kPanelGroups; lane += V::lanes) {
      using F = typename V::F;
      const float *x = panel.x + lane, *w = panel.w_at(lane);
      const F d = V::load(c.d + lane), ratio = V::mul(V::load(fitted + lane), reciprocal<V>(d));
      F whole = floor_within<V>(ratio, kLow, kHigh);
      const F above = V::min(V::add(whole, V::set1(1.0f)), V::set1(kHigh));
      const F error = scale_error<V, n, Levels, kW>(x, w, V::mul(d, whole));
      const F error_above = scale_error<V, n, Levels, kW>(x, w, V::mul(d, above));
      whole = V::select(V::less(error_above, error), above, whole);
      V::store(c.whole + lane, whole);
      V::store(c.error + lane, V::min(error, error_above));
      const ScaleSums<V> s = scale_sums<V, n, Levels, kW>(x, w, reciprocal<V>(V::mul(d, whole)));
      V::store(c.lx + lane, s.lx);
      V::store(c.ll + lane, s.ll);
    }
  }

  // d by the largest scale, which becomes kLow.
  INLINE void first_d(Choice& c) const {
    for (int i = 0; i < kCount; ++i) {
      float largest = 0.0f;
      for (int g = 0; g < kGroups; ++g) {
        const float s = fitted[kGroups * i + g];
        if ((s < 0 ? -s : s) > (largest < 0 ? -largest : largest)) largest = s;
      }
      c.half[i] = fp32_to_fp16(largest * (1.0f / kLow));
    }
  }

  // d with the least squared error for the codes and scales of `c`.
  INLINE void next_d(const Choice& c, Choice& next) const {
    for (int i = 0; i < kCount; ++i) {
      float lx = 0.0f, ll = 0.0f;
      for (int g = kGroups * i; g < kGroups * (i + 1); ++g) {
        lx += c.whole[g] * c.lx[g];
        ll += c.whole[g] * c.whole[g] * c.ll[g];
      }
      next.half[i] = ll > 0 ? fp32_to_fp16(lx / ll) : c.half[i];
    }
  }
};

template <class V, GGMLType type, int n, class Levels, bool kW, int kLow, int kHigh, int n_edges>
INLINE bool quantize_scaled(const PanelArgs& args, const float (&edges)[n_edges], int n_fits, int n_rounds) {
  const Panel<V, n, kW> panel(args);
  using Search = ScaledSuperblocks<V, n, Levels, kW, kLow, kHigh>;
  Search search{panel, {}};
  for (int lane = 0; lane < kPanelGroups; lane += V::lanes)
    V::store(search.fitted + lane, fit_scale<V, n, Levels, kW>(panel.x + lane, panel.w_at(lane), edges, n_fits));
  typename Search::Choice best, next;
  search.first_d(best);
  search.round_scales(best);
  for (int round = 0; round < n_rounds; ++round) {
    search.next_d(best, next);
    search.round_scales(next);
    for (int i = 0; i < Search::kCount; ++i) {
      float before = 0.0f, after = 0.0f;
      for (int g = Search::kGroups * i; g < Search::kGroups * (i + 1); ++g) {
        before += best.error[g];
        after += next.error[g];
      }
      if (!(after < before)) continue;
      best.half[i] = next.half[i];
      for (int g = Search::kGroups * i; g < Search::kGroups * (i + 1); ++g) {
        best.d[g] = next.d[g];
        best.whole[g] = next.whole[g];
        best.error[g] = next.error[g];
        best.lx[g] = next.lx[g];
        best.ll[g] = next.ll[g];
      }
    }
  }
  alignas(64) Lanes scale;
  for (int g = 0; g < kPanelGroups; ++g) scale[g] = best.d[g] * best.whole[g];
  alignas(64) uint8_t codes[n * kPanelGroups], ordered[n * kPanelGroups];
  write_codes<V, n, Levels, false>(panel.x, scale, scale, codes);
  order_codes(codes, n, ordered);
  for (int i = 0; i < args.n_blocks; ++i) {
    if (!is_finite_half(best.half[i])) return false;
    int8_t scales[kPanelGroups];
    for (int g = 0; g < Search::kGroups; ++g) scales[g] = static_cast<int8_t>(best.whole[Search::kGroups * i + g]);
    const SuperblockCodes out{ordered + kSuperBlock * i, scales, nullptr, best.half[i], 0};
    pack_superblock(type, out, args.out + i * block_size(type).bytes);
  }
  return true;
}

// ---- K formats with y = d * scale * level - dmin * minimum ----

template <class V, int n, int kMaxLevel, bool kW, int kMaxScale>
struct AffineSuperblocks {
  static constexpr int kGroups = kSuperBlock / n, kCount = kPanelGroups / kGroups;

  const Panel<V, n, kW>& panel;
  alignas(64) Lanes scale, minimum;  // as each group would have them

  struct Choice {
    alignas(64) Lanes d, dmin, whole, whole_min, error, l, ll, lx;
    uint16_t half[kCount], half_min[kCount];
  };

  INLINE void round_scales(Choice& c) const {
    for (int i = 0; i < kCount; ++i)
      for (int g = 0; g < kGroups; ++g) {
        c.d[kGroups * i + g] = half_value(c.half[i]);
        c.dmin[kGroups * i + g] = half_value(c.half_min[i]);
      }
    for (int lane = 0; lane < kPanelGroups; lane += V::lanes) {
      using F = typename V::F;
      const float *x = panel.x + lane, *w = panel.w_at(lane);
      const F d = V::load(c.d + lane), minus_dmin = V::sub(V::set1(0.0f), V::load(c.dmin + lane));
      const F one = V::set1(1.0f), top = V::set1(kMaxScale);
      const F low = floor_within<V>(V::mul(V::load(scale + lane), reciprocal<V>(d)), 0.0f, kMaxScale);
      const F low_min =
          floor_within<V>(V::mul(V::load(minimum + lane), reciprocal<V>(V::load(c.dmin + lane))), 0.0f, kMaxScale);
      const F high = V::min(V::add(low, one), top), high_min = V::min(V::add(low_min, one), top);
      F whole = low, whole_min = low_min;
      F error = affine_error<V, n, kMaxLevel, kW>(x, w, V::mul(d, low), V::mul(minus_dmin, low_min));
      const auto take = [&](F s, F m) INLINE_LAMBDA {
        const F e = affine_error<V, n, kMaxLevel, kW>(x, w, V::mul(d, s), V::mul(minus_dmin, m));
        const typename V::M better = V::less(e, error);
        whole = V::select(better, s, whole);
        whole_min = V::select(better, m, whole_min);
        error = V::min(e, error);
      };
      take(high, low_min);
      take(low, high_min);
      take(high, high_min);
      V::store(c.whole + lane, whole);
      V::store(c.whole_min + lane, whole_min);
      V::store(c.error + lane, error);
      const AffineSums<V> s =
          affine_sums<V, n, kMaxLevel, kW>(x, w, reciprocal<V>(V::mul(d, whole)), V::mul(minus_dmin, whole_min));
      V::store(c.l + lane, s.l);
      V::store(c.ll + lane, s.ll);
      V::store(c.lx + lane, s.lx);
    }
  }

  INLINE void first_d(Choice& c) const {
    for (int i = 0; i < kCount; ++i) {
      float largest = 0.0f, largest_min = 0.0f;
      for (int g = kGroups * i; g < kGroups * (i + 1); ++g) {
        if (scale[g] > largest) largest = scale[g];
        if (minimum[g] > largest_min) largest_min = minimum[g];
      }
      c.half[i] = fp32_to_fp16(largest * (1.0f / kMaxScale));
      c.half_min[i] = fp32_to_fp16(largest_min * (1.0f / kMaxScale));
    }
  }

  // The d and dmin with the least squared error for the codes, scales and minima of `c`: two linear equations.
  INLINE void next_d(const Choice& c, const Lanes& sum_x, const Lanes& sum_w, Choice& next) const {
    for (int i = 0; i < kCount; ++i) {
      float aa = 0.0f, ab = 0.0f, bb = 0.0f, ax = 0.0f, bx = 0.0f;
      for (int g = kGroups * i; g < kGroups * (i + 1); ++g) {
        aa += c.whole[g] * c.whole[g] * c.ll[g];
        ab += c.whole[g] * c.whole_min[g] * c.l[g];
        bb += c.whole_min[g] * c.whole_min[g] * sum_w[g];
        ax += c.whole[g] * c.lx[g];
        bx += c.whole_min[g] * sum_x[g];
      }
      const float spread = aa * bb - ab * ab;
      float d = aa > 0 ? ax / aa : 0.0f, dmin = 0.0f;
      if (spread > 1e-6f * aa * bb) {
        d = (ax * bb - bx * ab) / spread;
        dmin = (ax * ab - bx * aa) / spread;
      }
      const bool usable = d > 0 && dmin >= 0;
      next.half[i] = usable ? fp32_to_fp16(d) : c.half[i];
      next.half_min[i] = usable ? fp32_to_fp16(dmin) : c.half_min[i];
    }
  }
};

template <class V, GGMLType type, int n, int kMaxLevel, bool kW, int kMaxScale, int n_spreads>
INLINE bool quantize_affine(const PanelArgs& args, const float (&spreads)[n_spreads][2], int n_fits, int n_rounds) {
  const Panel<V, n, kW> panel(args);
  using Search = AffineSuperblocks<V, n, kMaxLevel, kW, kMaxScale>;
  Search search{panel, {}, {}};
  alignas(64) Lanes sum_x, sum_w;
  for (int lane = 0; lane < kPanelGroups; lane += V::lanes) {
    using F = typename V::F;
    const float *x = panel.x + lane, *w = panel.w_at(lane);
    const Affine<V> fit = fit_affine<V, n, kMaxLevel, kW, true>(x, w, spreads, n_fits);
    V::store(search.scale + lane, fit.scale);
    V::store(search.minimum + lane, V::sub(V::set1(0.0f), fit.offset));
    F total = V::set1(0.0f), weights = V::set1(kW ? 0.0f : n);
    for (int j = 0; j < n; ++j) {
      const F weight = weight_of<V, kW>(w, j);
      total = V::add(total, weigh<V, kW>(weight, V::load(x + kPanelGroups * j)));
      if constexpr (kW) weights = V::add(weights, weight);
    }
    V::store(sum_x + lane, total);
    V::store(sum_w + lane, weights);
  }
  typename Search::Choice best, next;
  search.first_d(best);
  search.round_scales(best);
  for (int round = 0; round < n_rounds; ++round) {
    search.next_d(best, sum_x, sum_w, next);
    search.round_scales(next);
    for (int i = 0; i < Search::kCount; ++i) {
      float before = 0.0f, after = 0.0f;
      for (int g = Search::kGroups * i; g < Search::kGroups * (i + 1); ++g) {
        before += best.error[g];
        after += next.error[g];
      }
      if (!(after < before)) continue;
      best.half[i] = next.half[i];
      best.half_min[i] = next.half_min[i];
      for (int g = Search::kGroups * i; g < Search::kGroups * (i + 1); ++g) {
        best.d[g] = next.d[g];
        best.dmin[g] = next.dmin[g];
        best.whole[g] = next.whole[g];
        best.whole_min[g] = next.whole_min[g];
        best.error[g] = next.error[g];
        best.l[g] = next.l[g];
        best.ll[g] = next.ll[g];
        best.lx[g] = next.lx[g];
      }
    }
  }
  alignas(64) Lanes scale, offset;
  for (int g = 0; g < kPanelGroups; ++g) {
    scale[g] = best.d[g] * best.whole[g];
    offset[g] = -(best.dmin[g] * best.whole_min[g]);
  }
  alignas(64) uint8_t codes[n * kPanelGroups], ordered[n * kPanelGroups];
  write_codes<V, n, WholeLevels<0, kMaxLevel>, true>(panel.x, scale, offset, codes);
  order_codes(codes, n, ordered);
  for (int i = 0; i < args.n_blocks; ++i) {
    if (!is_finite_half(best.half[i]) || !is_finite_half(best.half_min[i])) return false;
    int8_t scales[kPanelGroups];
    uint8_t minima[kPanelGroups];
    for (int g = 0; g < Search::kGroups; ++g) {
      scales[g] = static_cast<int8_t>(best.whole[Search::kGroups * i + g]);
      minima[g] = static_cast<uint8_t>(best.whole_min[Search::kGroups * i + g]);
    }
    const SuperblockCodes out{ordered + kSuperBlock * i, scales, minima, best.half[i], best.half_min[i]};
    pack_superblock(type, out, args.out + i * block_size(type).bytes);
  }
  return true;
}

// ---- formats with blocks of 32 ----

INLINE bool pack_panel(GGMLType type, const PanelArgs& args, const uint8_t* codes, const uint16_t* d,
                       const uint16_t* m) {
  for (int b = 0; b < args.n_blocks; ++b)
    if (!is_finite_half(d[b]) || !is_finite_half(m[b])) return false;
  alignas(64) uint8_t ordered[kPanelGroups][32];
  order_codes(codes, 32, ordered[0]);
  pack_blocks(type, ordered, d, m, args.n_blocks, args.out);
  return true;
}

template <class V, GGMLType type, class Levels, bool kW, int n_edges>
INLINE bool quantize_scaled_blocks(const PanelArgs& args, const float (&edges)[n_edges], int n_fits) {
  const Panel<V, 32, kW> panel(args);
  alignas(64) Lanes scale;
  uint16_t d[kPanelGroups];
  for (int lane = 0; lane < kPanelGroups; lane += V::lanes)
    V::store(scale + lane, fit_scale<V, 32, Levels, kW>(panel.x + lane, panel.w_at(lane), edges, n_fits));
  for (int g = 0; g < kPanelGroups; ++g) {
    d[g] = fp32_to_fp16(scale[g]);
    scale[g] = half_value(d[g]);
  }
  alignas(64) uint8_t codes[32 * kPanelGroups];
  write_codes<V, 32, Levels, false>(panel.x, scale, scale, codes);
  return pack_panel(type, args, codes, d, d);
}

template <class V, GGMLType type, int kMaxLevel, bool kW, int n_spreads>
INLINE bool quantize_affine_blocks(const PanelArgs& args, const float (&spreads)[n_spreads][2], int n_fits) {
  const Panel<V, 32, kW> panel(args);
  alignas(64) Lanes scale, offset;
  uint16_t d[kPanelGroups], m[kPanelGroups];
  for (int lane = 0; lane < kPanelGroups; lane += V::lanes) {
    const Affine<V> fit = fit_affine<V, 32, kMaxLevel, kW, false>(panel.x + lane, panel.w_at(lane), spreads, n_fits);
    V::store(scale + lane, fit.scale);
    V::store(offset + lane, fit.offset);
  }
  for (int g = 0; g < kPanelGroups; ++g) {
    d[g] = fp32_to_fp16(scale[g]);
    m[g] = fp32_to_fp16(offset[g]);
    scale[g] = half_value(d[g]);
    offset[g] = half_value(m[g]);
  }
  alignas(64) uint8_t codes[32 * kPanelGroups];
  write_codes<V, 32, WholeLevels<0, kMaxLevel>, true>(panel.x, scale, offset, codes);
  return pack_panel(type, args, codes, d, m);
}
