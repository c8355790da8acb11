// Which search each format gets, and the table of all. Included inside a target region, after the vector
// type.
//
// Edges say at which level the largest element of a group lies when a fit begins; spreads {a, b} let the levels cover
// range * kMax / (kMax + a), beginning b steps above the smallest element. docs/LOG.md has the measurements behind
// them.

#include "quantize/panels.inl"

template <class V, GGMLType type, bool kW>
INLINE bool quantize_panel(const PanelArgs& args) {
  if constexpr (type == GGMLType::Q8_0) {
    constexpr float edges[] = {127.0f};
    return quantize_scaled_blocks<V, type, WholeLevels<-127, 127, 0>, kW>(args, edges, 0);
  } else if constexpr (type == GGMLType::Q4_0) {
    if constexpr (kW) {
      constexpr float edges[] = {-8.6f, -8.2f, -7.8f, -7.4f, 7.4f, 7.0f, 6.6f};
      return quantize_scaled_blocks<V, type, WholeLevels<-8, 7>, kW>(args, edges, 2);
    } else {
      constexpr float edges[] = {-8.0f};
      return quantize_scaled_blocks<V, type, WholeLevels<-8, 7>, kW>(args, edges, 0);
    }
  } else if constexpr (type == GGMLType::Q5_0) {
    if constexpr (kW) {
      constexpr float edges[] = {-16.6f, -16.2f, -15.8f, -15.4f, 15.4f, 15.0f, 14.6f};
      return quantize_scaled_blocks<V, type, WholeLevels<-16, 15>, kW>(args, edges, 2);
    } else {
      constexpr float edges[] = {-16.0f};
      return quantize_scaled_blocks<V, type, WholeLevels<-16, 15>, kW>(args, edges, 0);
    }
  } else if constexpr (type == GGMLType::IQ4_NL) {
    constexpr float edges[] = {-127, -121, -115, -133, -140, 113, 107, 101, 120};
    return quantize_scaled_blocks<V, type, Iq4Levels, kW>(args, edges, 2);
  } else if constexpr (type == GGMLType::Q4_1 || type == GGMLType::Q5_1) {
    constexpr int top = type == GGMLType::Q4_1 ? 15 : 31;
    if constexpr (kW) {
      constexpr float spreads[][2] = {{-0.8f, -0.4f}, {-0.4f, -0.2f}, {0, 0},       {0.4f, 0.2f}, {0.8f, 0.4f},
                                      {1.2f, 0.6f},   {1.6f, 0.8f},   {2.0f, 1.0f}, {2.6f, 1.3f}, {0.6f, 0.0f},
                                      {0.6f, 0.6f},   {1.2f, 0.2f},   {1.2f, 1.0f}, {0, -0.3f},   {0, 0.3f}};
      return quantize_affine_blocks<V, type, top, kW>(args, spreads, 3);
    } else {
      constexpr float spreads[][2] = {{0, 0}};
      return quantize_affine_blocks<V, type, top, kW>(args, spreads, 0);
    }
  } else if constexpr (type == GGMLType::Q4_K || type == GGMLType::Q5_K) {
    constexpr int top = type == GGMLType::Q4_K ? 15 : 31;
    constexpr float spreads[][2] = {{0, 0},       {0.4f, 0.2f}, {0.8f, 0.4f},   {1.2f, 0.6f},   {1.6f, 0.8f},
                                    {2.0f, 1.0f}, {2.6f, 1.3f}, {-0.4f, -0.2f}, {-0.8f, -0.4f}, {0.8f, 0.0f},
                                    {0.8f, 0.8f}, {1.6f, 0.4f}, {1.6f, 1.2f},   {0.0f, 0.4f},   {0.0f, -0.4f}};
    return quantize_affine<V, type, 32, top, kW, 63>(args, spreads, 4, 2);
  } else if constexpr (type == GGMLType::Q2_K) {
    constexpr float spreads[][2] = {{0, 0},       {0.3f, 0.15f},   {0.6f, 0.3f}, {0.9f, 0.45f}, {1.2f, 0.6f},
                                    {1.6f, 0.8f}, {-0.3f, -0.15f}, {0.3f, 0.0f}, {0.3f, 0.3f},  {0.6f, 0.0f},
                                    {0.6f, 0.6f}, {0.9f, 0.1f},    {0.9f, 0.8f}, {1.2f, 0.2f},  {1.2f, 1.0f},
                                    {1.6f, 0.4f}, {1.6f, 1.2f},    {0.0f, 0.3f}, {0.0f, -0.3f}};
    return quantize_affine<V, type, 16, 3, kW, 15>(args, spreads, 5, 3);
  } else if constexpr (type == GGMLType::Q6_K) {
    constexpr float edges[] = {-32.0f,  -31.75f, -31.5f, -31.25f, -32.25f, -32.5f, -31.0f,
                               -32.75f, 31.0f,   31.25f, 31.5f,   30.75f,  30.5f};
    return quantize_scaled<V, type, 16, WholeLevels<-32, 31>, kW, -128, 127>(args, edges, 2, 2);
  } else if constexpr (type == GGMLType::Q3_K) {
    constexpr float edges[] = {-4.6f, -4.3f, -4.0f, -3.7f, -3.4f, -3.1f, 3.7f, 3.4f, 3.1f, 2.8f, 2.5f};
    return quantize_scaled<V, type, 16, WholeLevels<-4, 3>, kW, -32, 31>(args, edges, 3, 2);
  } else {
    static_assert(type == GGMLType::IQ4_XS);
    constexpr float edges[] = {-127, -121, -115, -133, -140, 113, 107, 101, 120};
    return quantize_scaled<V, type, 32, Iq4Levels, kW, -32, 31>(args, edges, 2, 1);
  }
}

template <class V, GGMLType type>
bool panel_entry(const PanelArgs& args) noexcept {
  return args.importance ? quantize_panel<V, type, true>(args) : quantize_panel<V, type, false>(args);
}

template <class V>
bool within(const float* x, int64_t n, float limit) noexcept {
  // A NaN compares false, so the largest alone would miss it; times zero it stays one, and infinity becomes one.
  typename V::F largest = V::set1(0.0f), spoilt = V::set1(0.0f);
  int64_t i = 0;
  for (; i + V::lanes <= n; i += V::lanes) {
    const typename V::F v = V::load_unaligned(x + i);
    largest = V::max(V::abs(v), largest);
    spoilt = V::add(spoilt, V::mul(v, V::set1(0.0f)));
  }
  alignas(64) float a[V::lanes], b[V::lanes];
  V::store(a, largest);
  V::store(b, spoilt);
  bool good = true;
  for (int k = 0; k < V::lanes; ++k) good = good && a[k] <= limit && b[k] == 0.0f;
  for (; i < n; ++i) good = good && x[i] <= limit && x[i] >= -limit;
  return good;
}

template <class V>
QuantizeKernels build_kernels() {
  QuantizeKernels k;
  const auto add = [&k](GGMLType type, QuantizeKernels::PanelFn fn) { k.panel[static_cast<int>(type)] = fn; };
  add(GGMLType::Q4_0, panel_entry<V, GGMLType::Q4_0>);
  add(GGMLType::Q4_1, panel_entry<V, GGMLType::Q4_1>);
  add(GGMLType::Q5_0, panel_entry<V, GGMLType::Q5_0>);
  add(GGMLType::Q5_1, panel_entry<V, GGMLType::Q5_1>);
  add(GGMLType::Q8_0, panel_entry<V, GGMLType::Q8_0>);
  add(GGMLType::Q2_K, panel_entry<V, GGMLType::Q2_K>);
  add(GGMLType::Q3_K, panel_entry<V, GGMLType::Q3_K>);
  add(GGMLType::Q4_K, panel_entry<V, GGMLType::Q4_K>);
  add(GGMLType::Q5_K, panel_entry<V, GGMLType::Q5_K>);
  add(GGMLType::Q6_K, panel_entry<V, GGMLType::Q6_K>);
  add(GGMLType::IQ4_NL, panel_entry<V, GGMLType::IQ4_NL>);
  add(GGMLType::IQ4_XS, panel_entry<V, GGMLType::IQ4_XS>);
  k.to_f16 = V::to_f16;
  k.to_bf16 = V::to_bf16;
  k.within = within<V>;
  return k;
}
