// Rotary position embedding of one head, in plain loops.
//
// Every product and sum is rounded on its own, so the bits do not depend on the instruction set; the functions have
// internal linkage and are included inside the target region of each kernel file, where the compiler widens the loops.
//
//   x        float[D]: the first `rot` values turn, the rest pass; then all are multiplied by `scale`
//   cos_sin  float[rot], cosines first, then sines, each with the attention factor folded in
//   out      float[D], apart from x
//
// Half-split (NeoX) pairs are (i, i + rot/2); interleaved pairs are (2i, 2i + 1).
// Source: transformers 5.x modeling_phi3.apply_rotary_pos_emb; Su et al. 2021, arXiv 2104.09864, eq. 34.
// No includes: this file is read inside target regions.

static inline void rope_half_split(const float* __restrict x, const float* __restrict cos_sin, int rot, float scale,
                                   float* __restrict out) noexcept {
  const int n = rot / 2;
  for (int i = 0; i < n; ++i) {
    const float a = x[i], b = x[i + n], c = cos_sin[i], s = cos_sin[i + n];
    out[i] = (a * c - b * s) * scale;
    out[i + n] = (b * c + a * s) * scale;
  }
}

static inline void rope_interleaved(const float* __restrict x, const float* __restrict cos_sin, int rot, float scale,
                                    float* __restrict out) noexcept {
  const int n = rot / 2;
  for (int i = 0; i < n; ++i) {
    const float a = x[2 * i], b = x[2 * i + 1], c = cos_sin[i], s = cos_sin[i + n];
    out[2 * i] = (a * c - b * s) * scale;
    out[2 * i + 1] = (b * c + a * s) * scale;
  }
}

static inline void rope_head(const float* x, const float* cos_sin, int head_dim, int rot, bool interleaved, float scale,
                             float* out) noexcept {
  if (interleaved) {
    rope_interleaved(x, cos_sin, rot, scale, out);
  } else {
    rope_half_split(x, cos_sin, rot, scale, out);
  }
  for (int d = rot; d < head_dim; ++d) out[d] = x[d] * scale;
}
