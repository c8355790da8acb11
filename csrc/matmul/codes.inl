// Part of tile_kernels.inl: codes, from the planes of a packed tile to the bytes of one step.

template <class V>
struct NibbleCodes {
  using I = typename V::I;
  static constexpr int kSteps = 8, kPlanes = 4, kMaxCode = 15, kOffset = 0;
  template <int S>
  static INLINE I code(const uint8_t* p) {
    const I w = V::load(p + (S & 3) * kPlaneBytes);
    if constexpr (S < 4)
      return V::and_(w, V::set1(0x0F0F0F0F));
    else
      return V::and_(V::template srl<4>(w), V::set1(0x0F0F0F0F));
  }
};

template <class V>
struct FiveBitCodes {
  using I = typename V::I;
  static constexpr int kSteps = 8, kPlanes = 5, kMaxCode = 31;
  template <int S>
  static INLINE I code(const uint8_t* p) {
    const I h = V::load(p + 4 * kPlaneBytes);
    const I bit = V::and_(V::template shift<4 - S>(h), V::set1(0x10101010));
    return V::or_(NibbleCodes<V>::template code<S>(p), bit);
  }
};

template <class V>
struct SixBitCodes {
  using I = typename V::I;
  static constexpr int kSteps = 4, kPlanes = 3, kMaxCode = 63;
  template <int S>
  static INLINE I code(const uint8_t* p) {
    const I w = V::load(p + (S & 1) * kPlaneBytes), h = V::load(p + 2 * kPlaneBytes);
    const I low = V::and_(V::template shift < S<2 ? 0 : -4>(w), V::set1(0x0F0F0F0F));
    return V::or_(low, V::and_(V::template shift<4 - 2 * S>(h), V::set1(0x30303030)));
  }
};

template <class V>
struct TwoBitCodes {
  using I = typename V::I;
  static constexpr int kSteps = 4, kPlanes = 1, kMaxCode = 3;
  template <int S>
  static INLINE I code(const uint8_t* p) {
    return V::and_(V::template shift<-2 * S>(V::load(p)), V::set1(0x03030303));
  }
};

// Two groups of Q3_K: a 2-bit plane each and one plane of third bits. `Odd` chooses the group of the pair.
template <class V, int Odd>
struct ThreeBitCodes {
  using I = typename V::I;
  static constexpr int kSteps = 4, kMaxCode = 7;
  template <int S>
  static INLINE I code(const uint8_t* pair) {
    const I bit = V::and_(V::template shift<2 - S - 4 * Odd>(V::load(pair + 2 * kPlaneBytes)), V::set1(0x04040404));
    return V::or_(TwoBitCodes<V>::template code<S>(pair + Odd * kPlaneBytes), bit);
  }
};

template <class V>
struct ByteCodes {
  using I = typename V::I;
  static constexpr int kSteps = 8, kPlanes = 8, kMaxCode = 255;
  template <int S>
  static INLINE I code(const uint8_t* p) {
    return V::from_signed(V::load(p + S * kPlaneBytes));
  }
};

template <class V>
struct TableCodes {
  using I = typename V::I;
  static constexpr int kSteps = 8, kPlanes = 4, kMaxCode = 255;
  template <int S>
  static INLINE I code(const uint8_t* p) {
    return V::lookup_iq4(NibbleCodes<V>::template code<S>(p));
  }
};

constexpr int log2_of(int n) { return n <= 1 ? 0 : 1 + log2_of(n / 2); }

// total[m] += scale * sum over the group's steps of codes * activations, from step S on; acc starts at zero.
template <class V, class Codes, int M, int S = 0>
INLINE void add_steps(const uint8_t* planes, const int8_t* q, typename V::I scale, typename V::I (&acc)[M],
                      typename V::I (&total)[M]) {
  if constexpr (S < Codes::kSteps) {
    constexpr int kMax = Codes::kMaxCode, kEvery = V::template flush_every<kMax>();
    const typename V::I w = Codes::template code<S>(planes);
    UNROLL for (int m = 0; m < M; ++m) acc[m] = V::template dot<kMax>(acc[m], w, q + (S * M + m) * 4);
    if constexpr ((S + 1) % kEvery == 0 || S + 1 == Codes::kSteps) {
      UNROLL for (int m = 0; m < M; ++m) {
        total[m] = V::template fold<kMax>(total[m], acc[m], scale);
        acc[m] = V::zero();
      }
    }
    add_steps<V, Codes, M, S + 1>(planes, q, scale, acc, total);
  }
}

// The same for a whole group. Codes that carry an offset start from -offset times the sum of the group's activations,
// which `minus_sum` holds for row m at [m * stride]; where sums are not 32-bit the caller has taken it back already.
template <class V, class Codes, int M, int Offset>
INLINE void add_group(const uint8_t* planes, const int8_t* q, typename V::I scale, const int32_t* minus_sum, int stride,
                      typename V::I (&total)[M]) {
  typename V::I acc[M];
  if constexpr (Offset != 0 && V::kSums32) {
    UNROLL for (int m = 0; m < M; ++m) acc[m] = V::template shift<log2_of(Offset)>(V::set1(minus_sum[m * stride]));
  } else {
    UNROLL for (int m = 0; m < M; ++m) acc[m] = V::zero();
  }
  add_steps<V, Codes, M>(planes, q, scale, acc, total);
}
