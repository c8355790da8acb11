// A persistent pool of threads for short parallel regions: spin briefly, then sleep.
//
// `run(fn)` executes fn(thread_idx, n_threads) on every thread, the caller being thread 0, and returns when all are
// done. Inside a region `barrier()` separates phases. A decode step of a 4-bit Phi-3-mini opens about 130 regions of
// half a millisecond; waking a sleeping thread costs 5 to 50 us, so workers stay awake for `kSpinNs` before they sleep.
// Whoever waits spins for some microseconds, then yields its core between looks: more threads than cores do not
// collapse.
//
// Work that is split by thread_idx must not change a floating-point sum: every sum is owned by one thread, or its parts
// are fixed by the shape and combined in a fixed order.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

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
    run_region([](void* ctx, int idx, int n) { (*static_cast<Fn*>(ctx))(idx, n); },
               const_cast<void*>(static_cast<const void*>(&fn)));
  }

  // Waits until every thread of the current region has arrived. Memory written before is visible after.
  void barrier();

  // Hands out [0, n) in chunks to whichever thread asks next; reset by `start_chunks` before (or between) phases.
  void start_chunks() { next_chunk_.store(0, std::memory_order_relaxed); }
  int64_t take_chunk(int64_t size) { return next_chunk_.fetch_add(size, std::memory_order_relaxed); }

 private:
  using Region = void (*)(void*, int, int);
  void run_region(Region fn, void* ctx);
  void worker(int idx);

  const int n_threads_;
  const bool crowded_;  // more threads than cores
  std::vector<std::thread> workers_;
  std::mutex caller_mutex_;

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
