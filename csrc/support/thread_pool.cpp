#include "support/thread_pool.h"

#include <algorithm>
#include <chrono>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

#if defined(__linux__)
#include <sched.h>

#include <fstream>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace phlite {
namespace {

constexpr int64_t kSpinNs = 100'000;  // from one region to the next: longer only burns a core that others may need
constexpr int kSpins = 1024;          // some 10 us
constexpr int kSpinsPerCheck = 64;

inline void cpu_relax() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

int64_t now_ns() {
  using namespace std::chrono;
  return duration_cast<nanoseconds>(steady_clock::now().time_since_epoch()).count();
}

// Waits until `done()`; returns false when `limit_ns` has passed (never with limit_ns < 0). Spins for some
// microseconds, then yields the core between looks: a yield costs nothing when the core has nothing else to do, and
// whoever is waited for may need it, always so when there are more threads than cores (`crowded`).
template <class Done>
bool wait_until(Done done, int64_t limit_ns, bool crowded) {
  for (int i = 0; i < (crowded ? kSpinsPerCheck : kSpins); ++i) {
    if (done()) return true;
    cpu_relax();
  }
  const int64_t start = now_ns();
  for (;;) {
    std::this_thread::yield();
    for (int i = 0; i < kSpinsPerCheck; ++i) {
      if (done()) return true;
      cpu_relax();
    }
    if (limit_ns >= 0 && now_ns() - start > limit_ns) return false;
  }
}

}  // namespace

ThreadPool::ThreadPool(int n_threads)
    : n_threads_(std::max(1, n_threads)), crowded_(n_threads > physical_core_count()) {
  workers_.reserve(n_threads_ - 1);
  for (int i = 1; i < n_threads_; ++i) workers_.emplace_back([this, i] { worker(i); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(sleep_mutex_);
    stop_.store(true, std::memory_order_release);
  }
  wake_.notify_all();
  for (auto& t : workers_) t.join();
}

void ThreadPool::defer() {
  if (deferring_ != std::thread::id()) throw std::logic_error("operations of this thread pool are deferred already");
  deferring_ = std::this_thread::get_id();
}

bool ThreadPool::arrive(uint64_t& generation) {
  generation = barrier_generation_.load(std::memory_order_acquire);
  return n_arrived_.fetch_add(1, std::memory_order_acq_rel) == n_threads_ - 1;
}

void ThreadPool::release() {
  n_arrived_.store(0, std::memory_order_relaxed);
  barrier_generation_.store(barrier_generation_.load(std::memory_order_relaxed) + 1, std::memory_order_release);
}

void ThreadPool::wait_for_release(uint64_t generation) {
  wait_until([&] { return barrier_generation_.load(std::memory_order_acquire) != generation; }, -1, crowded_);
}

size_t ThreadPool::run_in_order(Operation* const* operations, size_t n, int64_t limit_ns) {
  if (n == 0) return 0;
  std::lock_guard<std::mutex> lock(caller_mutex_);
  size_t most = 0;
  for (size_t i = 0; i < n; ++i) most = std::max(most, operations[i]->scratch_bytes(n_threads_));
  scratch_.reserve(most);
  operations[0]->prepare(scratch_.data(), n_threads_);
  const int64_t start = now_ns();
  const auto all = [&](int thread, int n_threads) {
    for (size_t i = 0;;) {
      operations[i]->work(*this, thread, n_threads);
      if (++i == n) return;
      operations[i]->warm_up(thread, n_threads);
      barrier([&] {
        if (limit_ns >= 0 && now_ns() - start >= limit_ns) {
          n = i;
        } else {
          start_chunks();
          operations[i]->prepare(scratch_.data(), n_threads);
        }
      });
      if (i == n) return;
    }
  };
  run_region([](void* ctx, int thread, int n_threads) { (*static_cast<decltype(all)*>(ctx))(thread, n_threads); },
             const_cast<void*>(static_cast<const void*>(&all)));
  return n;
}

void ThreadPool::run_region(Region fn, void* ctx) {
  start_chunks();
  if (n_threads_ == 1) {
    fn(ctx, 0, 1);
    return;
  }
  fn_ = fn;
  ctx_ = ctx;
  // seq_cst on both sides: either the worker sees the new generation before it sleeps, or we see it sleeping.
  generation_.fetch_add(1, std::memory_order_seq_cst);
  if (n_sleeping_.load(std::memory_order_seq_cst) > 0) {
    std::lock_guard<std::mutex> sleep_lock(sleep_mutex_);
    wake_.notify_all();
  }
  fn(ctx, 0, n_threads_);
  barrier();
}

void ThreadPool::worker(int idx) {
  uint64_t seen = 0;
  const auto has_work = [&] {
    return generation_.load(std::memory_order_acquire) != seen || stop_.load(std::memory_order_acquire);
  };
  for (;;) {
    if (!wait_until(has_work, kSpinNs, crowded_)) {
      std::unique_lock<std::mutex> lock(sleep_mutex_);
      n_sleeping_.fetch_add(1, std::memory_order_seq_cst);
      wake_.wait(lock, [&] {
        return generation_.load(std::memory_order_seq_cst) != seen || stop_.load(std::memory_order_acquire);
      });
      n_sleeping_.fetch_sub(1, std::memory_order_seq_cst);
    }
    if (stop_.load(std::memory_order_acquire)) return;
    ++seen;  // one region at a time, and a region ends only when every thread has run it
    fn_(ctx_, idx, n_threads_);
    barrier();
  }
}

int physical_core_count() {
#if defined(__linux__)
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
    std::set<std::pair<int, int>> cores;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (!CPU_ISSET(cpu, &allowed)) continue;
      const std::string dir = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
      int package = 0, core = cpu;
      std::ifstream(dir + "physical_package_id") >> package;
      std::ifstream(dir + "core_id") >> core;
      cores.insert({package, core});
    }
    if (!cores.empty()) return static_cast<int>(cores.size());
  }
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace phlite
