// Part of tile_kernels.inl: codes, from the planes of a packed tile to the bytes of one step.

// The planes of a group, plane i by [i]. For many rows they are read again for every step, which leaves the registers
// to the sums; for few rows the loads are what limits the kernel, and every plane is read once.
template <class V>
struct PlanesInMemory {
  typename V::Bytes at;
  INLINE explicit PlanesInMemory(typename V::Bytes planes) : at(planes) {}
  INLINE typename V::I operator[](int i) const { return V::load(at + i * kPlaneBytes); }
};

template <class V, int N>
struct PlanesInRegisters {
  typename V::I planes[N];
  INLINE explicit PlanesInRegisters(typename V::Bytes at) {
    UNROLL for (int i = 0; i < N; ++i) planes[i] = V::keep(V::load(at + i * kPlaneBytes));
  }
  INLINE typename V::I operator[](int i) const { return planes[i]; }
};

template <class V>
struct NibbleCodes {
  using I = typename V::I;
  static constexpr int kSteps = 8, kPlanes = 4, kMaxCode = 15, kOffset = 0;
  template <int S, class Planes>
  static INLINE I code(const Planes& p) {
    const I w = p[S & 3];
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
  template <int S, class Planes>
  static INLINE I code(const Planes& p) {
    const I h = p[4];
    const I bit = V::and_(V::template shift<4 - S>(h), V::set1(0x10101010));
    return V::or_(NibbleCodes<V>::template code<S>(p), bit);
  }
};

constexpr int kSixBitOffset = 32;
constexpr int kPairRows = 4;  // the fewest rows for which groups are multiplied in pairs

template <class V>
struct SixBitCodes {
  using I = typename V::I;
  static constexpr int kSteps = 4, kPlanes = 3, kMaxCode = 63;
  template <int S, class Planes>
  static INLINE I code(const Planes& p) {
    const I w = p[S & 1], h = p[2];
    const I low = V::and_(V::template shift < S<2 ? 0 : -4>(w), V::set1(0x0F0F0F0F));
    return V::or_(low, V::and_(V::template shift<4 - 2 * S>(h), V::set1(0x30303030)));
  }
};

template <class V, int Plane = 0>
struct TwoBitCodes {
  using I = typename V::I;
  static constexpr int kSteps = 4, kPlanes = 1, kMaxCode = 3;
  template <int S, class Planes>
  static INLINE I code(const Planes& p) {
    return V::and_(V::template shift<-2 * S>(p[Plane]), V::set1(0x03030303));
  }
};

// Two groups of Q3_K: a 2-bit plane each and one plane of third bits. `Odd` chooses the group of the pair.
template <class V, int Odd>
struct ThreeBitCodes {
  using I = typename V::I;
  static constexpr int kSteps = 4, kPlanes = 3, kMaxCode = 7;
  template <int S, class Planes>
  static INLINE I code(const Planes& pair) {
    const I bit = V::and_(V::template shift<2 - S - 4 * Odd>(pair[2]), V::set1(0x04040404));
    return V::or_(TwoBitCodes<V, Odd>::template code<S>(pair), bit);
  }
};

template <class V>
struct ByteCodes {
  using I = typename V::I;
  static constexpr int kSteps = 8, kPlanes = 8, kMaxCode = 255;
  template <int S, class Planes>
  static INLINE I code(const Planes& p) {
    return V::from_signed(p[S]);
  }
};

template <class V>
struct TableCodes {
  using I = typename V::I;
  static constexpr int kSteps = 8, kPlanes = 4, kMaxCode = 255;
  template <int S, class Planes>
  static INLINE I code(const Planes& p) {
    return V::lookup_iq4(NibbleCodes<V>::template code<S>(p));
  }
};

constexpr int log2_of(int n) { return n <= 1 ? 0 : 1 + log2_of(n / 2); }

// total[m] += scale * sum over the group's steps of codes * activations, from step S on; acc starts at zero. Fits: the
// sum of the whole group fits the accumulator.
template <class V, class Codes, int M, int G, bool Fits, int S = 0, class Planes>
INLINE void add_steps(const Planes& planes, const int8_t* q, typename V::I scale, typename V::I (&acc)[M],
                      typename V::I (&total)[M]) {
  if constexpr (S < Codes::kSteps) {
    constexpr int kMax = Codes::kMaxCode, kEvery = Fits ? Codes::kSteps : V::template flush_every<kMax>();
    const typename V::I w = Codes::template code<S>(planes);
    UNROLL for (int m = 0; m < M; ++m) acc[m] = V::template dot<kMax>(acc[m], w, q + (S * G + m) * 4);
    if constexpr ((S + 1) % kEvery == 0 || S + 1 == Codes::kSteps) {
      UNROLL for (int m = 0; m < M; ++m) {
        total[m] = V::template fold<kMax>(total[m], acc[m], scale);
        acc[m] = V::zero();
      }
    }
    add_steps<V, Codes, M, G, Fits, S + 1>(planes, q, scale, acc, total);
  }
}

// add_steps for four-bit codes and few rows, where undoing the packing is what costs: the high nibbles stay where they
// are, so their sum is sixteen times what it should be until it is shifted down.
template <class V, int M, bool StartsAtAcc, class Planes>
INLINE void add_nibbles(const Planes& planes, const int8_t* q, typename V::I scale, typename V::I (&acc)[M],
                        typename V::I (&total)[M]) {
  using I = typename V::I;
  I high[M];
  UNROLL for (int m = 0; m < M; ++m) high[m] = V::zero();
  UNROLL for (int p = 0; p < 4; ++p) {
    const I w = V::and_(planes[p], V::set1(static_cast<int>(0xF0F0F0F0)));
    UNROLL for (int m = 0; m < M; ++m) high[m] = V::template dot<240>(high[m], w, q + ((p + 4) * M + m) * 4);
  }
  UNROLL for (int m = 0; m < M; ++m) {
    high[m] = V::template sra<4>(high[m]);
    acc[m] = StartsAtAcc ? V::add(acc[m], high[m]) : high[m];
  }
  UNROLL for (int p = 0; p < 4; ++p) {
    const I w = V::and_(planes[p], V::set1(0x0F0F0F0F));
    UNROLL for (int m = 0; m < M; ++m) acc[m] = V::template dot<15>(acc[m], w, q + (p * M + m) * 4);
  }
  UNROLL for (int m = 0; m < M; ++m) total[m] = V::template fold<15>(total[m], acc[m], scale);
}

// The same for a whole group. Codes that carry an offset start from -offset times the sum of the group's activations,
// which `minus_sum` holds for row m at [m * stride]; where sums are not 32-bit the caller has taken it back already.
template <class V, class Codes, int M, int G, int Offset, bool Fits = false>
INLINE void add_group(typename V::Bytes planes, const int8_t* q, typename V::I scale, const int32_t* minus_sum,
                      int stride, typename V::I (&total)[M]) {
  typename V::I acc[M];
  if constexpr (Offset != 0 && V::kSums32) {
    UNROLL for (int m = 0; m < M; ++m) acc[m] = V::template shift<log2_of(Offset)>(V::set1(minus_sum[m * stride]));
  } else {
    UNROLL for (int m = 0; m < M; ++m) acc[m] = V::zero();
  }
  if constexpr (M <= V::kFewRows && std::is_same_v<Codes, NibbleCodes<V>>)
    add_nibbles<V, M, Offset != 0>(PlanesInRegisters<V, Codes::kPlanes>(planes), q, scale, acc, total);
  else if constexpr (M <= V::kFewRows)
    add_steps<V, Codes, M, G, Fits>(PlanesInRegisters<V, Codes::kPlanes>(planes), q, scale, acc, total);
  else
    add_steps<V, Codes, M, G, Fits>(PlanesInMemory<V>(planes), q, scale, acc, total);
}

// acc[m] += the sum over the group's steps, from step S on, of codes * activations.
template <class V, class Codes, int M, int G, int S = 0>
INLINE void add_products(PlanesInMemory<V> planes, const int8_t* q, typename V::I (&acc)[M]) {
  if constexpr (S < Codes::kSteps) {
    const typename V::I w = Codes::template code<S>(planes);
    UNROLL for (int m = 0; m < M; ++m) acc[m] = V::template dot<Codes::kMaxCode>(acc[m], w, q + (S * G + m) * 4);
    add_products<V, Codes, M, G, S + 1>(planes, q, acc);
  }
}

// Two groups whose sums fit 16 bits, `scales` holding the even one's in the high half: the even group's sum is moved up
// and the odd one's added below it, 2^15 too large so that it never borrows; then one multiplication scales both.
// `start` holds that 2^15, and the offset of codes that have one taken back, for row m at [m * stride].
template <class V, class Codes, int M, int G, int Offset>
INLINE void add_group_pair(typename V::Bytes planes, const int8_t* q, typename V::I scales, const int32_t* start,
                           int stride, typename V::I (&total)[M]) {
  const typename V::I top = V::set1(0x8000);
  typename V::I acc[M];
  UNROLL for (int m = 0; m < M; ++m) acc[m] = V::zero();
  add_products<V, Codes, M, G>(PlanesInMemory<V>(planes), q, acc);
  UNROLL for (int m = 0; m < M; ++m) acc[m] =
      V::add(V::template shift<16>(acc[m]), Offset != 0 ? V::set1(start[m * stride]) : top);
  const PlanesInMemory<V> odd(planes + Codes::kPlanes * kPlaneBytes);
  add_products<V, Codes, M, G>(odd, q + Codes::kSteps * 4 * G, acc);
  UNROLL for (int m = 0; m < M; ++m) total[m] = V::madd16(total[m], V::xor_(acc[m], top), scales);
}
