#include "moe/route.h"

#include <cmath>

namespace phlite::moe {
namespace {

// The best expert but `excluded` (-1: none), and the share of it among those near it.
void choose(const float* scores, int64_t n_experts, float threshold, int32_t excluded, int32_t& best, float& weight) {
  best = excluded == 0 ? 1 : 0;
  for (int32_t k = best + 1; k < n_experts; ++k)
    if (k != excluded && scores[k] > scores[best]) best = k;
  const float peak = scores[best];
  double sum = 0;
  for (int32_t k = 0; k < n_experts; ++k) {
    if (k == excluded) continue;
    const float size = std::fabs(scores[k]);
    const float scale = size < peak ? peak : size;
    // Two zeros give 0 / 0, which is not above the threshold: kept, as in the reference.
    if ((peak - scores[k]) / scale > threshold) continue;
    sum += std::exp(static_cast<double>(scores[k]) - static_cast<double>(peak));
  }
  weight = static_cast<float>(1.0 / sum);
}

}  // namespace

Route route(const float* scores, int64_t n_experts, double jitter_eps) noexcept {
  const float threshold = static_cast<float>(2.0 * jitter_eps);
  Route r;
  choose(scores, n_experts, threshold, -1, r.expert[0], r.weight[0]);
  choose(scores, n_experts, threshold, r.expert[0], r.expert[1], r.weight[1]);
  return r;
}

}  // namespace phlite::moe
