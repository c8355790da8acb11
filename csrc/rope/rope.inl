// Rotary position embedding of one head, in plain loops.
//
// Every product and sum is rounded on its own, so the bits do not depend on the instruction set; the functions have
// internal linkage and are included inside the target region of each kernel file, where the compiler widens the loops.
//
//   x        float[D], rotated in place: the first `rot` values turn, the rest pass; then all are multiplied by `scale`
//   cos_sin  float[rot], cosines first, then sines, each with the attention factor folded in
//
// Half-split (NeoX) pairs are (i, i + rot/2); interleaved pairs are (2i, 2i + 1).
// Source: transformers 5.x modeling_phi3.apply_rotary_pos_emb; Su et al. 2021, arXiv 2104.09864, eq. 34.
// No includes: this file is read inside target regions.

static inline void rope_half_split(float* x, const float* cos_sin, int rot) noexcept {
  const int n = rot / 2;
  const float* c = cos_sin;
  const float* s = cos_sin + n;
  for (int i = 0; i < n; ++i) {
    const float a = x[i], b = x[i + n];
    x[i] = a * c[i] - b * s[i];
    x[i + n] = b * c[i] + a * s[i];
  }
}

static inline void rope_interleaved(float* x, const float* cos_sin, int rot) noexcept {
  const int n = rot / 2;
  const float* c = cos_sin;
  const float* s = cos_sin + n;
  for (int i = 0; i < n; ++i) {
    const float a = x[2 * i], b = x[2 * i + 1];
    x[2 * i] = a * c[i] - b * s[i];
    x[2 * i + 1] = b * c[i] + a * s[i];
  }
}

static inline void rope_head(float* x, const float* cos_sin, int head_dim, int rot, bool interleaved,
                             float scale) noexcept {
  if (interleaved) {
    rope_interleaved(x, cos_sin, rot);
  } else {
    rope_half_split(x, cos_sin, rot);
  }
  if (scale == 1.0f) return;
  for (int d = 0; d < head_dim; ++d) x[d] *= scale;
}
