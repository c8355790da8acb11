// The mixture of experts of one layer: norm, router, two experts per token, weighted sum, residual.
//
//   h      = norm(x)
//   r      = route(W_router h)                                            (route.h)
//   out[t] = residual[t] + (w1 E_i1(h[t]) + w2 E_i2(h[t]))                E_e(h) = W_down,e (silu(W_gate,e h) * W_up,e
//   h)
//
// Tokens of one expert are one matrix product, and a token's row of a product does not depend on the other rows
// (matmul/kernels.h); the two answers are added in the order of their rank. So the bits depend on the token alone, not
// on its batch neighbours, the chunk or the threads. Only the weights of chosen experts are read.
#pragma once
#include <cstdint>
#include <vector>

#include "matmul/linear.h"
#include "support/thread_pool.h"

namespace phlite::moe {

// The matrices of one layer; they are owned elsewhere and outlive it.
class Experts {
 public:
  // router: [X, E]; gate_up: X of [2F, E] with the swiglu activation; down: X of [E, F]. Throws std::invalid_argument
  // where shapes disagree or X is not 2 to kMaxExperts.
  Experts(const PackedMatrix* router, std::vector<const PackedMatrix*> gate_up, std::vector<const PackedMatrix*> down);

  const PackedMatrix& router() const { return *router_; }
  const PackedMatrix& gate_up(int64_t e) const { return *gate_up_[e]; }
  const PackedMatrix& down(int64_t e) const { return *down_[e]; }
  int64_t size() const { return static_cast<int64_t>(gate_up_.size()); }
  int64_t n_hidden() const { return router_->n_cols(); }

 private:
  const PackedMatrix* router_;
  std::vector<const PackedMatrix*> gate_up_, down_;
};

struct MixArgs {
  const float* x = nullptr;  // float32[n_rows, E]
  int64_t n_rows = 0;
  Norm norm;
  double jitter_eps = 0;
  const float* residual = nullptr;  // float32[n_rows, E]; may be `x` or `out`
  float* out = nullptr;             // float32[n_rows, E]
};

void mix(const MixArgs& args, const Experts& experts, ThreadPool& pool);

}  // namespace phlite::moe
