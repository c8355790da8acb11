// How a binding runs an operation: at once, or, between `defer` and `settle`, noted down to run with others in one
// region.
#pragma once
#include <nanobind/nanobind.h>

#include <memory>
#include <tuple>
#include <utility>

#include "support/thread_pool.h"

namespace phlite {

// An operation that is noted down, and the Python objects whose memory it points to.
template <class Op, class... Kept>
class Noted final : public Operation {
 public:
  Noted(Op&& op, const Kept&... kept) : op_(std::move(op)), kept_(kept...) {}
  size_t scratch_bytes(int n_threads) const noexcept override { return op_.scratch_bytes(n_threads); }
  void prepare(uint8_t* scratch, int n_threads) noexcept override { op_.prepare(scratch, n_threads); }
  void work(ThreadPool& pool, int thread, int n_threads) noexcept override { op_.work(pool, thread, n_threads); }
  void warm_up(int thread, int n_threads) const noexcept override { op_.warm_up(thread, n_threads); }

 private:
  Op op_;
  std::tuple<Kept...> kept_;
};

// kept: handles of the arrays and objects that the operation points to. The GIL is held.
template <class Op, class... Kept>
void launch(ThreadPool& pool, Op&& op, const Kept&... kept) {
  if (pool.deferring()) return pool.note(std::make_unique<Noted<Op, Kept...>>(std::move(op), kept...));
  nanobind::gil_scoped_release release;
  pool.run_in_order(op);
}

// Runs what is noted down so far. For operations that cannot be, before they run themselves. The GIL is held.
void settle(ThreadPool& pool);

}  // namespace phlite
