// How a binding runs an operation: at once, or, between `defer` and `settle`, noted down to run with others in one
// region.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <memory>
#include <optional>
#include <tuple>
#include <utility>

#include "support/thread_pool.h"

namespace phlite {

// An operation that is noted down, and the Python objects whose memory it points to.
template <class Op, class... Kept>
class Noted final : public Operation {
 public:
  Noted(Op&& op, Kept&&... kept) : op_(std::move(op)), kept_(std::move(kept)...) {}
  size_t scratch_bytes(int n_threads) const noexcept override { return op_.scratch_bytes(n_threads); }
  void prepare(uint8_t* scratch, int n_threads) noexcept override { op_.prepare(scratch, n_threads); }
  void work(ThreadPool& pool, int thread, int n_threads) noexcept override { op_.work(pool, thread, n_threads); }
  void warm_up(int thread, int n_threads) const noexcept override { op_.warm_up(thread, n_threads); }

 private:
  Op op_;
  std::tuple<Kept...> kept_;
};

// What of an argument an operation that is noted down must keep alive: nothing of arrays that outlive the block anyway.
template <class T>
T hold(const ThreadPool&, const T& object) {
  return object;
}
template <class... A>
std::optional<nanobind::ndarray<A...>> hold(const ThreadPool& pool, const nanobind::ndarray<A...>& array) {
  if (pool.outlives_block(array.data())) return {};
  return array;
}
template <class... A>
std::optional<nanobind::ndarray<A...>> hold(const ThreadPool& pool, const std::optional<nanobind::ndarray<A...>>& a) {
  if (!a) return {};
  return hold(pool, *a);
}

// used: handles of the arrays and objects that the operation points to. The GIL is held.
template <class Op, class... Used>
void launch(ThreadPool& pool, Op&& op, const Used&... used) {
  if (pool.deferring())
    return pool.note(std::make_unique<Noted<Op, decltype(hold(pool, used))...>>(std::move(op), hold(pool, used)...));
  nanobind::gil_scoped_release release;
  pool.run_in_order(op);
}

// Runs what is noted down so far. For operations that cannot be, before they run themselves. The GIL is held.
void settle(ThreadPool& pool);

}  // namespace phlite
