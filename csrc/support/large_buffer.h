// Memory for weights and caches: zero pages from the operating system, touched first by whoever fills them, on huge
// pages where the system grants them (fewer faults while loading, fewer TLB misses while streaming).
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

namespace phlite {

class LargeBuffer {
 public:
  LargeBuffer() = default;
  explicit LargeBuffer(size_t n_bytes);  // throws std::bad_alloc
  LargeBuffer(LargeBuffer&& o) noexcept;
  LargeBuffer& operator=(LargeBuffer&& o) noexcept;
  ~LargeBuffer();
  LargeBuffer(const LargeBuffer&) = delete;
  LargeBuffer& operator=(const LargeBuffer&) = delete;

  uint8_t* data() { return data_; }
  const uint8_t* data() const { return data_; }
  size_t size() const { return n_bytes_; }

 private:
  uint8_t* data_ = nullptr;
  size_t n_bytes_ = 0;
  void* base_ = nullptr;  // what was mapped, before alignment
  size_t mapped_ = 0;
};

// Memory that begins where that of the last one ended, as long as the two can lie in one region: what is filled one
// after the other shares huge pages, and no end of a buffer is left to small ones. The 129 matrices of Phi-3-mini had
// 34,500 small pages at their ends, a seventh of the time of packing them.
class AdjacentBuffer {
 public:
  AdjacentBuffer() = default;
  explicit AdjacentBuffer(size_t n_bytes);  // aligned to 64 bytes; throws std::bad_alloc
  AdjacentBuffer(AdjacentBuffer&& o) noexcept;
  AdjacentBuffer& operator=(AdjacentBuffer&& o) noexcept;
  ~AdjacentBuffer();  // gives back the huge pages that are its own; the rest goes when its neighbours go
  AdjacentBuffer(const AdjacentBuffer&) = delete;
  AdjacentBuffer& operator=(const AdjacentBuffer&) = delete;

  uint8_t* data() { return data_; }
  const uint8_t* data() const { return data_; }

 private:
  struct Region;
  std::shared_ptr<Region> region_;
  uint8_t* data_ = nullptr;
  size_t n_bytes_ = 0;
};

}  // namespace phlite
