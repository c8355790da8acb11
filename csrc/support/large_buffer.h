// Memory for weights and caches: zero pages from the operating system, touched first by whoever fills them, on huge
// pages where the system grants them (fewer faults while loading, fewer TLB misses while streaming).
#pragma once
#include <cstddef>
#include <cstdint>

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

}  // namespace phlite
