// Part of tile_kernels.inl: the scales of the K formats.

// `expand` writes scale(g) of every group as int32 lanes; `pair<i>` gives int16 pairs (2i, 2i + 1) of what the block
// sums are multiplied with: the mins, or the scales where codes carry an offset; `scale_pair<i>` those of the scales.

template <class V>
struct ScalesQ4K {  // Q4_K, Q5_K: eight 6-bit scales and mins in twelve bytes
  using I = typename V::I;
  static constexpr int kGroups = 8;
  I sc[2], mn[2];
  INLINE ScalesQ4K(typename V::Bytes body, int lane) {
    const I a0 = V::load(body + kPlaneBytes + 4 * lane), a1 = V::load(body + 2 * kPlaneBytes + 4 * lane),
            a2 = V::load(body + 3 * kPlaneBytes + 4 * lane);
    const I low6 = V::set1(0x3F3F3F3F), low4 = V::set1(0x0F0F0F0F), two = V::set1(0x30303030);
    sc[0] = V::and_(a0, low6);
    mn[0] = V::and_(a1, low6);
    sc[1] = V::or_(V::and_(a2, low4), V::and_(V::template srl<2>(a0), two));
    mn[1] = V::or_(V::and_(V::template srl<4>(a2), low4), V::and_(V::template srl<2>(a1), two));
  }
  template <int G>
  INLINE I scale() const {
    return V::template byte<G % 4>(sc[G / 4]);
  }
  template <int P>
  INLINE I scale_pair() const {
    return V::template byte_pair<P % 2>(sc[P / 2]);
  }
  template <int P>
  INLINE I pair() const {
    return V::template byte_pair<P % 2>(mn[P / 2]);
  }
};

template <class V>
struct ScalesQ2K {  // sixteen bytes: scale in the low, min in the high nibble
  using I = typename V::I;
  static constexpr int kGroups = 16;
  I s[4];
  INLINE ScalesQ2K(typename V::Bytes body, int lane) {
    UNROLL for (int i = 0; i < 4; ++i) s[i] = V::load(body + (1 + i) * kPlaneBytes + 4 * lane);
  }
  template <int G>
  INLINE I scale() const {
    return V::and_(V::template byte<G % 4>(s[G / 4]), V::set1(15));
  }
  template <int P>
  INLINE I scale_pair() const {
    return V::and_(V::template byte_pair<P % 2>(s[P / 2]), V::set1(0x000F000F));
  }
  template <int P>
  INLINE I pair() const {
    return V::template byte_pair<P % 2>(V::and_(V::template srl<4>(s[P / 2]), V::set1(0x0F0F0F0F)));
  }
};

template <class V>
struct ScalesQ6K {  // sixteen signed bytes
  using I = typename V::I;
  static constexpr int kGroups = 16;
  I s[4];
  INLINE ScalesQ6K(typename V::Bytes body, int lane) {
    UNROLL for (int i = 0; i < 4; ++i) s[i] = V::load(body + i * kPlaneBytes + 4 * lane);
  }
  template <int G>
  INLINE I scale() const {
    return V::template sra<24>(V::template shift<24 - 8 * (G % 4)>(s[G / 4]));
  }
  template <int P>
  INLINE I pair() const {
    return V::template signed_byte_pair<P % 2>(s[P / 2]);
  }
  template <int P>
  INLINE I scale_pair() const {
    return pair<P>();
  }
};

template <class V>
struct ScalesQ3K {  // sixteen 6-bit scales with 32 added, in twelve bytes
  using I = typename V::I;
  static constexpr int kGroups = 16;
  I s[4];
  INLINE ScalesQ3K(typename V::Bytes body, int lane) {
    const I a0 = V::load(body + 4 * lane), a1 = V::load(body + kPlaneBytes + 4 * lane),
            a2 = V::load(body + 2 * kPlaneBytes + 4 * lane);
    const I low4 = V::set1(0x0F0F0F0F), two = V::set1(0x30303030);
    s[0] = V::or_(V::and_(a0, low4), V::and_(V::template shift<4>(a2), two));
    s[1] = V::or_(V::and_(a1, low4), V::and_(V::template shift<2>(a2), two));
    s[2] = V::or_(V::and_(V::template srl<4>(a0), low4), V::and_(a2, two));
    s[3] = V::or_(V::and_(V::template srl<4>(a1), low4), V::and_(V::template srl<2>(a2), two));
  }
  template <int G>
  INLINE I scale() const {
    return V::sub(V::template byte<G % 4>(s[G / 4]), V::set1(32));
  }
  template <int P>
  INLINE I pair() const {
    return V::sub16(V::template byte_pair<P % 2>(s[P / 2]), V::set1(0x00200020));
  }
};

template <class V>
struct ScalesIQ4XS {  // eight 6-bit scales with 32 added: four bits in a plane, two in the halves beside d
  using I = typename V::I;
  static constexpr int kGroups = 8;
  I lo, hi;
  INLINE ScalesIQ4XS(typename V::Bytes body, int lane)
      : lo(V::load(body + kPlaneBytes + 4 * lane)), hi(V::load_u16(body + 32 + 2 * lane)) {}
  template <int G>
  INLINE I scale() const {
    const I l = V::and_(V::template srl<4 * G>(lo), V::set1(0x0F)),
            h = V::and_(V::template shift<4 - 2 * G>(hi), V::set1(0x30));
    return V::sub(V::or_(l, h), V::set1(32));
  }
  template <int P>
  INLINE I pair() const {
    return V::or_(V::and_(scale<2 * P>(), V::set1(0xFFFF)), V::template shift<16>(scale<2 * P + 1>()));
  }
};

template <class V, class Scales, int G = 0>
INLINE void expand_scales(const Scales& s, typename V::I* out) {
  if constexpr (G < Scales::kGroups) {
    out[G] = V::fold_scale(s.template scale<G>());
    expand_scales<V, Scales, G + 1>(s, out);
  }
}

// The even group's scale in the high half, where its sum lies.
template <class V, class Scales, int P = 0>
INLINE void expand_scale_pairs(const Scales& s, typename V::I* out) {
  if constexpr (P < Scales::kGroups / 2) {
    out[P] = V::swap16(s.template scale_pair<P>());
    expand_scale_pairs<V, Scales, P + 1>(s, out);
  }
}

template <class V, class Scales, int M, int P = 0>
INLINE void add_block_sums(const Scales& s, const int16_t* bsum, typename V::I (&msum)[M]) {
  if constexpr (P < Scales::kGroups / 2) {
    const typename V::I pair = s.template pair<P>();
    UNROLL for (int m = 0; m < M; ++m) msum[m] = V::madd16(msum[m], pair, bsum + m * Scales::kGroups + 2 * P);
    add_block_sums<V, Scales, M, P + 1>(s, bsum, msum);
  }
}
