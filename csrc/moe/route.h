// The router of Phi-3.5-MoE: which two experts see a token, and how much each of their answers counts.
//
// For scores s[0 .. X) of one token and a jitter eps, with t = float(2 eps):
//   first   i1 = argmax s; expert k is kept unless (s[i1] - s[k]) / max(|s[k]|, s[i1]) > t;
//           w1 = exp(s[i1]) / sum over kept k of exp(s[k])
//   second  i2 = argmax of s without i1; k is kept unless k = i1 or (s[i2] - s[k]) / max(|s[k]|, s[i2]) > t;
//           w2 = exp(s[i2]) / sum over kept k of exp(s[k])
// Ties go to the lowest index. Each weight is a softmax over the few experts within about 2 eps of the best, most often
// exactly 1; the two do not add up to 1 and are not meant to. Differences, quotients and comparisons are float32 as in
// the reference, so an expert on the edge falls on the same side; the sums are double in ascending order and round
// once. A NaN among the scores gives NaN weights and indices in range.
//
// Source: transformers 5.x modeling_phimoe.sparsemixer in evaluation; arXiv 2409.12136.
#pragma once
#include <cstdint>

namespace phlite::moe {

constexpr int kExpertsPerToken = 2;
constexpr int64_t kMaxExperts = 256;

struct Route {
  int32_t expert[kExpertsPerToken];
  float weight[kExpertsPerToken];
};

// 2 <= n_experts <= kMaxExperts.
Route route(const float* scores, int64_t n_experts, double jitter_eps) noexcept;

}  // namespace phlite::moe
