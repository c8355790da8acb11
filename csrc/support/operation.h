// A native operation whose arguments have been checked, cut so that many can share one parallel region.
#pragma once
#include <cstddef>
#include <cstdint>

namespace phlite {

class ThreadPool;

// Holds pointers to its inputs and outputs; they must stay until it has run. Nothing here may throw but the
// constructor.
class Operation {
 public:
  virtual ~Operation() = default;

  // Bytes of scratch memory that `prepare` gets.
  virtual size_t scratch_bytes(int n_threads) const noexcept = 0;
  // Called once, by one thread, when everything before is done. scratch: aligned to 64 bytes, not initialised.
  virtual void prepare(uint8_t* scratch, int n_threads) noexcept = 0;
  // Called on every thread afterwards. Takes chunks from the pool and meets the others at its barrier.
  virtual void work(ThreadPool& pool, int thread, int n_threads) noexcept = 0;
  // Called on a thread that is done with the operation before: asks the memory for what it will read first. The inputs
  // may not be there yet.
  virtual void warm_up(int thread, int n_threads) const noexcept = 0;
};

}  // namespace phlite
