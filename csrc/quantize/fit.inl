// Fits of one group per lane: y = scale * level + offset, the levels being whole numbers or the values of IQ4.
// x and w point at the first of V::lanes columns of a
// transposed panel [n][16]; w is not looked at without weights (kW = false).

template <class V, bool kW>
INLINE typename V::F weight_of(const float* w, int j) {
  if constexpr (kW) return V::load(w + kPanelGroups * j);
  return V::set1(1.0f);
}

template <class V, bool kW>
INLINE typename V::F weigh(typename V::F weight, typename V::F v) {
  if constexpr (kW) return V::mul(weight, v);
  return v;
}

// The nearest whole number in [low, high], ties to even; a NaN gives low. Exact below 2^22.
template <class V>
INLINE typename V::F round_within(typename V::F v, float low, float high) {
  const typename V::F magic = V::set1(12582912.0f);
  return V::sub(V::add(V::min(V::max(v, V::set1(low)), V::set1(high)), magic), magic);
}

// Whole numbers; the code of a level is the level plus kBias.
template <int kLow, int kHigh, int kBias = -kLow>
struct WholeLevels {
  template <class V>
  static INLINE typename V::F level(typename V::F t) {
    return round_within<V>(t, kLow, kHigh);
  }
  template <class V>
  static INLINE typename V::F code(typename V::F t) {
    return V::add(level<V>(t), V::set1(kBias));
  }
};

struct Iq4Levels {
  template <class V>
  static INLINE typename V::F level(typename V::F t) {
    return V::iq4_level(t);
  }
  template <class V>
  static INLINE typename V::F code(typename V::F t) {
    return V::iq4_code(t);
  }
};

template <class V>
INLINE typename V::F reciprocal(typename V::F v) {  // 0 for 0
  const typename V::F zero = V::set1(0.0f);
  const typename V::M none = V::equal(v, zero);
  return V::select(none, zero, V::div(V::set1(1.0f), V::select(none, V::set1(1.0f), v)));
}

// ---- y = scale * level ----

template <class V>
struct ScaleSums {
  typename V::F lx, ll;  // sums of w * level * x and w * level^2
};

template <class V, int n, class Levels, bool kW>
INLINE ScaleSums<V> scale_sums(const float* x, const float* w, typename V::F inverse) {
  ScaleSums<V> s{V::set1(0.0f), V::set1(0.0f)};
  UNROLL_FIT for (int j = 0; j < n; ++j) {
    const typename V::F v = V::load(x + kPanelGroups * j);
    const typename V::F level = Levels::template level<V>(V::mul(v, inverse));
    const typename V::F wl = weigh<V, kW>(weight_of<V, kW>(w, j), level);
    s.lx = V::add(s.lx, V::mul(wl, v));
    s.ll = V::add(s.ll, V::mul(wl, level));
  }
  return s;
}

// sum of w * (x - scale * level)^2
template <class V, int n, class Levels, bool kW>
INLINE typename V::F scale_error(const float* x, const float* w, typename V::F scale) {
  const typename V::F inverse = reciprocal<V>(scale);
  typename V::F error = V::set1(0.0f);
  UNROLL_FIT for (int j = 0; j < n; ++j) {
    const typename V::F v = V::load(x + kPanelGroups * j);
    const typename V::F level = Levels::template level<V>(V::mul(v, inverse));
    const typename V::F r = V::sub(v, V::mul(scale, level));
    error = V::add(error, V::mul(weigh<V, kW>(weight_of<V, kW>(w, j), r), r));
  }
  return error;
}

// The scale with the least squared error of those that put the largest element at `edges` (in levels) and are then
// fitted to the levels that come out, and of n_steps more fits from the best of them.
template <class V, int n, class Levels, bool kW, int n_edges>
INLINE typename V::F fit_scale(const float* x, const float* w, const float (&edges)[n_edges], int n_steps) {
  using F = typename V::F;
  const F zero = V::set1(0.0f);
  F peak = zero, largest = zero;
  for (int j = 0; j < n; ++j) {
    const F v = V::load(x + kPanelGroups * j), magnitude = V::abs(v);
    peak = V::select(V::less(largest, magnitude), v, peak);
    largest = V::max(largest, magnitude);
  }
  const F per_peak = reciprocal<V>(peak);
  F best = zero, gain = zero;
  const auto take = [&](F inverse) INLINE_LAMBDA {
    const ScaleSums<V> s = scale_sums<V, n, Levels, kW>(x, w, inverse);
    const F scale = V::mul(s.lx, reciprocal<V>(s.ll));
    const F g = V::mul(scale, s.lx);
    const typename V::M better = V::less(gain, g);
    best = V::select(better, scale, best);
    gain = V::max(gain, g);
  };
  for (int i = 0; i < n_edges; ++i) take(V::mul(V::set1(edges[i]), per_peak));
  for (int i = 0; i < n_steps; ++i) take(reciprocal<V>(best));
  return best;
}

// ---- y = scale * level + offset, levels from 0 to kMax ----

template <class V>
struct AffineSums {
  typename V::F l, ll, lx;  // sums of w * level, w * level^2, w * level * x
};

template <class V, int n, int kMax, bool kW>
INLINE AffineSums<V> affine_sums(const float* x, const float* w, typename V::F inverse, typename V::F offset) {
  const typename V::F zero = V::set1(0.0f);
  AffineSums<V> s{zero, zero, zero};
  UNROLL_FIT for (int j = 0; j < n; ++j) {
    const typename V::F v = V::load(x + kPanelGroups * j);
    const typename V::F level = round_within<V>(V::mul(V::sub(v, offset), inverse), 0.0f, kMax);
    const typename V::F wl = weigh<V, kW>(weight_of<V, kW>(w, j), level);
    s.l = V::add(s.l, wl);
    s.ll = V::add(s.ll, V::mul(wl, level));
    s.lx = V::add(s.lx, V::mul(wl, v));
  }
  return s;
}

template <class V, int n, int kMax, bool kW>
INLINE typename V::F affine_error(const float* x, const float* w, typename V::F scale, typename V::F offset) {
  const typename V::F inverse = reciprocal<V>(scale);
  typename V::F error = V::set1(0.0f);
  UNROLL_FIT for (int j = 0; j < n; ++j) {
    const typename V::F v = V::sub(V::load(x + kPanelGroups * j), offset);
    const typename V::F level = round_within<V>(V::mul(v, inverse), 0.0f, kMax);
    const typename V::F r = V::sub(v, V::mul(scale, level));
    error = V::add(error, V::mul(weigh<V, kW>(weight_of<V, kW>(w, j), r), r));
  }
  return error;
}

template <class V>
struct Affine {
  typename V::F scale, offset;
};

// Scale and offset with the least squared error of those that spread the levels over the range of x, widened or
// narrowed by `spreads` (in levels), and are then fitted to the levels that come out, and of n_steps more fits from
// the best of them. kMinimum: the offset is at most 0, as in the K formats.
template <class V, int n, int kMax, bool kW, bool kMinimum, int n_spreads>
INLINE Affine<V> fit_affine(const float* x, const float* w, const float (&spreads)[n_spreads][2], int n_steps) {
  using F = typename V::F;
  using M = typename V::M;
  const F zero = V::set1(0.0f);
  F low = kMinimum ? zero : V::load(x), high = V::load(x), sum_x = zero, sum_w = V::set1(kW ? 0.0f : n);
  for (int j = 0; j < n; ++j) {
    const F v = V::load(x + kPanelGroups * j), weight = weight_of<V, kW>(w, j);
    low = V::min(v, low);
    high = V::max(v, high);
    sum_x = V::add(sum_x, weigh<V, kW>(weight, v));
    if constexpr (kW) sum_w = V::add(sum_w, weight);
  }
  const F range = V::sub(high, low), per_range = reciprocal<V>(range), step = V::mul(range, V::set1(1.0f / kMax));
  Affine<V> best{step, low};
  F gain = V::set1(-std::numeric_limits<float>::infinity());
  const auto take = [&](F inverse, F offset) INLINE_LAMBDA {
    const AffineSums<V> s = affine_sums<V, n, kMax, kW>(x, w, inverse, offset);
    const F product = V::mul(sum_w, s.ll), spread = V::sub(product, V::mul(s.l, s.l));
    F usable = V::select(V::less(V::mul(product, V::set1(1e-6f)), spread), V::set1(1.0f), zero);
    const F per_spread = V::mul(usable, reciprocal<V>(spread));
    F scale = V::mul(V::sub(V::mul(sum_w, s.lx), V::mul(sum_x, s.l)), per_spread);
    F fitted = V::mul(V::sub(V::mul(s.ll, sum_x), V::mul(s.l, s.lx)), per_spread);
    if constexpr (kMinimum) {
      const M above = V::less(zero, fitted);
      scale = V::select(above, V::mul(s.lx, reciprocal<V>(s.ll)), scale);
      fitted = V::min(fitted, zero);
    }
    const F g = V::add(V::mul(scale, s.lx), V::mul(fitted, sum_x));
    const M better = V::both(V::less(gain, g), V::less(zero, V::mul(scale, usable)));
    best.scale = V::select(better, scale, best.scale);
    best.offset = V::select(better, fitted, best.offset);
    gain = V::select(better, g, gain);
  };
  for (int i = 0; i < n_spreads; ++i) {
    const F inverse = V::mul(V::set1(kMax + spreads[i][0]), per_range);
    take(inverse, V::add(low, V::mul(step, V::set1(spreads[i][1]))));
  }
  for (int i = 0; i < n_steps; ++i) take(reciprocal<V>(best.scale), best.offset);
  return best;
}
