#include "moe/experts.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "moe/route.h"
#include "support/aligned.h"

namespace phlite::moe {
namespace {

std::string shape_text(const PackedMatrix& m) {
  return "[" + std::to_string(m.n_rows()) + ", " + std::to_string(m.n_cols()) + "]";
}

}  // namespace

Experts::Experts(const PackedMatrix* router, std::vector<const PackedMatrix*> gate_up,
                 std::vector<const PackedMatrix*> down)
    : router_(router), gate_up_(std::move(gate_up)), down_(std::move(down)) {
  const int64_t n = size(), n_hidden = router_->n_cols();
  if (n < kExpertsPerToken || n > kMaxExperts || static_cast<int64_t>(down_.size()) != n || router_->n_outputs() != n)
    throw std::invalid_argument(std::to_string(n) + " experts with " + std::to_string(down_.size()) +
                                " down matrices and a router of " + std::to_string(router_->n_outputs()) +
                                " outputs, expected the same number of each, 2 to " + std::to_string(kMaxExperts));
  const int64_t n_inner = gate_up_[0]->n_outputs();
  for (int64_t e = 0; e < n; ++e) {
    const PackedMatrix &up = *gate_up_[e], &dn = *down_[e];
    if (up.activation() != Activation::swiglu || up.n_cols() != n_hidden || up.n_outputs() != n_inner)
      throw std::invalid_argument("gate and up matrix of expert " + std::to_string(e) + " is " + shape_text(up) +
                                  ", expected [" + std::to_string(2 * n_inner) + ", " + std::to_string(n_hidden) +
                                  "] with swiglu");
    if (dn.activation() != Activation::none || dn.n_rows() != n_hidden || dn.n_cols() != n_inner)
      throw std::invalid_argument("down matrix of expert " + std::to_string(e) + " is " + shape_text(dn) +
                                  ", expected [" + std::to_string(n_hidden) + ", " + std::to_string(n_inner) + "]");
  }
}

namespace {

// Arrays of one call in one block of memory that a thread keeps.
struct Scratch {
  float *h, *scores, *inner, *answers;
  Route* routes;
  int32_t* tokens;  // [2 T] rows of h by expert, ascending within one
  int64_t* answer;  // [T][2] row of `answers` that holds a token's first and second
  int64_t* first;   // [X + 1] where an expert's rows begin in `tokens` and `answers`

  Scratch(AlignedBuffer& buffer, int64_t n_rows, int64_t n_hidden, int64_t n_inner, int64_t n_experts) {
    const int64_t n_pairs = n_rows * kExpertsPerToken;
    int64_t used = 0;
    uint8_t* base = nullptr;
    const auto take = [&](auto*& p, int64_t count) {
      using T = std::remove_reference_t<decltype(*p)>;
      p = base ? reinterpret_cast<T*>(base + used) : nullptr;
      used += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    };
    const auto lay_out = [&] {
      used = 0;
      take(h, n_rows * n_hidden);
      take(scores, n_rows * n_experts);
      take(inner, n_rows * n_inner);  // of one expert, which sees a token once at most
      take(answers, n_pairs * n_hidden);
      take(routes, n_rows);
      take(tokens, n_pairs);
      take(answer, n_pairs);
      take(first, n_experts + 1);
    };
    lay_out();
    buffer.reserve(static_cast<size_t>(used));
    base = buffer.data();
    lay_out();
  }
};

// Sorts the pairs of token and expert by expert, tokens in ascending order.
void group_by_expert(const Scratch& s, int64_t n_rows, int64_t n_experts) {
  std::fill(s.first, s.first + n_experts + 1, 0);
  for (int64_t t = 0; t < n_rows; ++t)
    for (int32_t e : s.routes[t].expert) ++s.first[e + 1];
  for (int64_t e = 0; e < n_experts; ++e) s.first[e + 1] += s.first[e];
  int64_t next[kMaxExperts];
  for (int64_t e = 0; e < n_experts; ++e) next[e] = s.first[e];
  for (int64_t t = 0; t < n_rows; ++t)
    for (int slot = 0; slot < kExpertsPerToken; ++slot) {
      const int64_t at = next[s.routes[t].expert[slot]]++;
      s.tokens[at] = static_cast<int32_t>(t);
      s.answer[t * kExpertsPerToken + slot] = at;
    }
}

}  // namespace

void mix(const MixArgs& args, const Experts& experts, ThreadPool& pool) {
  const int64_t n_rows = args.n_rows, n_hidden = experts.n_hidden(), n_experts = experts.size();
  const int64_t n_inner = experts.gate_up(0).n_outputs();
  thread_local AlignedBuffer buffer;
  const Scratch s(buffer, n_rows, n_hidden, n_inner, n_experts);

  norm(args.norm, args.x, n_rows, n_hidden, s.h, n_rows > 1 ? &pool : nullptr);
  LinearArgs a;
  a.x = s.h;
  a.n_x_rows = a.n_rows = n_rows;
  a.out = s.scores;
  linear(a, experts.router(), pool);
  for (int64_t t = 0; t < n_rows; ++t) s.routes[t] = route(s.scores + t * n_experts, n_experts, args.jitter_eps);
  group_by_expert(s, n_rows, n_experts);

  for (int64_t e = 0; e < n_experts; ++e) {
    const int64_t first = s.first[e], count = s.first[e + 1] - first;
    if (count == 0) continue;
    LinearArgs up;
    up.x = s.h;
    up.n_x_rows = n_rows;
    up.rows = s.tokens + first;
    up.n_rows = count;
    up.out = s.inner;
    linear(up, experts.gate_up(e), pool);
    LinearArgs down;
    down.x = s.inner;
    down.n_x_rows = down.n_rows = count;
    down.out = s.answers + first * n_hidden;
    linear(down, experts.down(e), pool);
  }

  const auto sum_rows = [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float w1 = s.routes[t].weight[0], w2 = s.routes[t].weight[1];
      const float* y1 = s.answers + s.answer[t * kExpertsPerToken] * n_hidden;
      const float* y2 = s.answers + s.answer[t * kExpertsPerToken + 1] * n_hidden;
      const float* residual = args.residual + t * n_hidden;
      float* out = args.out + t * n_hidden;
      for (int64_t i = 0; i < n_hidden; ++i) out[i] = residual[i] + (w1 * y1[i] + w2 * y2[i]);
    }
  };
  if (n_rows == 1) return sum_rows(0, 1);
  pool.run([&](int idx, int n) { sum_rows(n_rows * idx / n, n_rows * (idx + 1) / n); });
}

}  // namespace phlite::moe
