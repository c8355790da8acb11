// What row_ops.inl needs, on the 16-lane vectors of the kernel file; see there. No includes.

static inline float largest(const float* x) noexcept {
  const V::F zero = V::zero(), a = V::load(x), b = V::load(x + kLanes);
  return V::max_of(V::max(V::max(V::sub(zero, a), a), V::max(V::sub(zero, b), b)));
}

static inline int quantize(const float* x, float scale, int8_t* q) noexcept {
  const V::F inverse = V::set1(scale > 0.0f ? 1.0f / scale : 0.0f);
  const V::F least = V::set1(-127.0f), most = V::set1(127.0f);
  int sum = 0;
#pragma GCC unroll 2
  for (int i = 0; i < kQuant; i += kLanes) {
    const V::F v = V::mul(V::load(x + i), inverse);
    sum += V::store_i8(q + i, V::min(V::max(v, least), most));  // max gives `least` for NaN
  }
  return sum;
}
