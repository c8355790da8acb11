// A persistent pool of threads for short parallel regions: spin briefly, then sleep.
//
// `run(fn)` executes fn(thread_idx, n_threads) on every thread, the caller being thread 0, and returns when all are
// done. Inside a region `barrier()` separates phases. A decode step is one region, a large step some; waking a sleeping
// thread costs 5 to 50 us, in a virtual machine up to 300, so workers stay awake for `kSpinNs` before they sleep.
// Whoever waits spins for some microseconds, then yields its core between looks: more threads than cores do not
// collapse.
//
// `run_in_order` runs several operations in one region. A thread that is done with one asks the memory for the first
// weights of the next before it waits for the others, so that little of the memory's time is lost between them.
//
// Work that is split by thread_idx must not change a floating-point sum: every sum is owned by one thread, or its parts
// are fixed by the shape and combined in a fixed order.
#pragma once
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "support/aligned.h"
#include "support/operation.h"

namespace phlite {

class ThreadPool {
 public:
  // n_threads >= 1; starts n_threads - 1 workers.
  explicit ThreadPool(int n_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return n_threads_; }

  // fn is called as fn(int thread_idx, int n_threads) and must not throw. One region at a time: concurrent callers
  // wait.
  template <class F>
  void run(F&& fn) {
    using Fn = std::remove_reference_t<F>;
    std::lock_guard<std::mutex> lock(caller_mutex_);
    run_region([](void* ctx, int idx, int n) { (*static_cast<Fn*>(ctx))(idx, n); },
               const_cast<void*>(static_cast<const void*>(&fn)));
  }

  // Runs the operations one after the other in one region; each sees the results of those before it. Begins none when
  // `limit_ns` nanoseconds have passed, if that is not negative; returns how many have run, at least one. Throws
  // std::bad_alloc, before anything has run, when there is no memory for their scratch.
  size_t run_in_order(Operation* const* operations, size_t n, int64_t limit_ns = -1);
  void run_in_order(Operation& operation) {
    Operation* const one = &operation;
    run_in_order(&one, 1);
  }

  // From `defer` to `stop_deferring`, operations of this thread are noted down instead of run; `take_noted` hands over
  // those that wait. Bindings use these, under the interpreter's lock.
  void defer();  // throws std::logic_error when a thread defers already
  void stop_deferring() {
    deferring_ = {};
    lasting_.clear();
  }
  // Arrays that live until `stop_deferring`, whatever operations are noted down with them.
  void add_lasting(const void* data) { lasting_.push_back(data); }
  bool outlives_block(const void* data) const {
    return std::find(lasting_.begin(), lasting_.end(), data) != lasting_.end();
  }
  bool deferring() const { return deferring_ == std::this_thread::get_id(); }
  void note(std::unique_ptr<Operation> operation) { noted_.push_back(std::move(operation)); }
  std::vector<std::unique_ptr<Operation>> take_noted() { return std::exchange(noted_, {}); }

  // Waits until every thread of the current region has arrived. Memory written before is visible after.
  void barrier() {
    barrier([] {});
  }
  // The last thread to arrive calls `finish` before any goes on.
  template <class F>
  void barrier(F&& finish) {
    uint64_t generation;
    if (arrive(generation)) {
      finish();
      release();
    } else {
      wait_for_release(generation);
    }
  }

  // Hands out [0, n) in chunks to whichever thread asks next; reset by `start_chunks` before (or between) phases.
  void start_chunks() { next_chunk_.store(0, std::memory_order_relaxed); }
  int64_t take_chunk(int64_t size) { return next_chunk_.fetch_add(size, std::memory_order_relaxed); }

 private:
  using Region = void (*)(void*, int, int);
  void run_region(Region fn, void* ctx);  // with caller_mutex_ held
  bool arrive(uint64_t& generation);      // true for the last thread
  void release();
  void wait_for_release(uint64_t generation);
  void worker(int idx);

  const int n_threads_;
  const bool crowded_;  // more threads than cores
  std::vector<std::thread> workers_;
  std::mutex caller_mutex_;
  AlignedBuffer scratch_;  // of the operations of one region
  std::thread::id deferring_;
  std::vector<std::unique_ptr<Operation>> noted_;
  std::vector<const void*> lasting_;

  Region fn_ = nullptr;
  void* ctx_ = nullptr;
  std::mutex sleep_mutex_;
  std::condition_variable wake_;
  // Each counter on its own cache line: spinning readers must not slow the writer of another one.
  alignas(128) std::atomic<uint64_t> generation_{0};
  alignas(128) std::atomic<int> n_sleeping_{0};
  alignas(128) std::atomic<int> n_arrived_{0};
  alignas(128) std::atomic<uint64_t> barrier_generation_{0};
  alignas(128) std::atomic<int64_t> next_chunk_{0};
  alignas(128) std::atomic<bool> stop_{false};
};

// Physical cores this process may run on, at least 1: the default number of threads.
int physical_core_count();

}  // namespace phlite
