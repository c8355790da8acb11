// Byte dot products in two registers. DPBUSD and DPWSSD name the intrinsics of the encoding; included inside a target
// region, followed by the kernels. Register tile: sixteen rows of weights times four rows of activations.

#include "matmul/vector256.inl"

struct VVnni256 : V256 {
  static constexpr int kFewRows = 0, kMaxRows = 4, kSignedOffset = 128;
  static constexpr bool kSums32 = true;  // `dot` adds into 32 bits
  static constexpr bool kPairs = false, kLongSums = false;
  // Four-bit codes are as fast in registers; 145 against 132 G products per second for Q6_K.
  static constexpr int64_t unpack_rows(int max_code, bool superblocks) {
    return superblocks && max_code != 15 ? 48 : kNeverUnpack;
  }

  static INLINE I from_signed(I a) {
    const __m256i top = _mm256_set1_epi8(-128);
    return {_mm256_xor_si256(a.lo, top), _mm256_xor_si256(a.hi, top)};
  }
  static INLINE I lookup_iq4(I a) {  // the IQ4 values with 128 added
    return table(_mm_setr_epi8(1, 24, 45, 63, 79, 93, 106, 118, -127, -115, -103, -90, -75, -59, -39, -15), a);
  }

  template <int>
  static constexpr int flush_every() {
    return 64;
  }
  template <int>
  static INLINE I dot(I acc, I codes, const int8_t* act) {
    const __m256i a = broadcast(act);
    return {DPBUSD(acc.lo, codes.lo, a), DPBUSD(acc.hi, codes.hi, a)};
  }
  static INLINE I unit_scale() { return set1(1); }
  static INLINE I fold_scale(I scale) { return scale; }
  template <int>
  static INLINE I fold(I total, I acc, I scale) {
    return add(total, mul(acc, scale));
  }
  static INLINE I madd16(I acc, I pair, const int16_t* sums) {
    const __m256i s = broadcast(sums);
    return {DPWSSD(acc.lo, pair.lo, s), DPWSSD(acc.hi, pair.hi, s)};
  }
};

#include "matmul/tile_kernels.inl"
