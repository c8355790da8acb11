// A block of 64-byte aligned memory that is not initialised: pages are touched first by whoever fills them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

namespace phlite {

class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(size_t n_bytes, size_t alignment = 64) : n_bytes_(n_bytes) {
    if (n_bytes == 0) return;
    data_ = static_cast<uint8_t*>(::operator new(n_bytes, std::align_val_t(alignment)));
    alignment_ = alignment;
  }
  AlignedBuffer(AlignedBuffer&& o) noexcept { swap(o); }
  AlignedBuffer& operator=(AlignedBuffer&& o) noexcept {
    AlignedBuffer(std::move(o)).swap(*this);
    return *this;
  }
  ~AlignedBuffer() {
    if (data_) ::operator delete(data_, std::align_val_t(alignment_));
  }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;

  // Makes room for at least n_bytes; the contents are lost when it grows.
  void reserve(size_t n_bytes) {
    if (n_bytes > n_bytes_) *this = AlignedBuffer(n_bytes + n_bytes / 4, 64);
  }
  uint8_t* data() { return data_; }
  const uint8_t* data() const { return data_; }
  template <class T>
  T* as() {
    return reinterpret_cast<T*>(data_);
  }
  template <class T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_);
  }
  size_t size() const { return n_bytes_; }

 private:
  void swap(AlignedBuffer& o) {
    std::swap(data_, o.data_);
    std::swap(n_bytes_, o.n_bytes_);
    std::swap(alignment_, o.alignment_);
  }
  uint8_t* data_ = nullptr;
  size_t n_bytes_ = 0;
  size_t alignment_ = 64;
};

}  // namespace phlite
