#include "support/large_buffer.h"

#include <new>
#include <utility>

#if defined(_WIN32)
#include <malloc.h>

#include <cstring>
#else
#include <sys/mman.h>
#endif

namespace phlite {
namespace {
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kCacheLine = 64;
}  // namespace

LargeBuffer::LargeBuffer(size_t n_bytes) : n_bytes_(n_bytes) {
  if (n_bytes == 0) return;
#if defined(_WIN32)
  base_ = _aligned_malloc(n_bytes, kCacheLine);
  if (!base_) throw std::bad_alloc();
  std::memset(base_, 0, n_bytes);
  data_ = static_cast<uint8_t*>(base_);
#else
  // Small buffers share no huge page with anything, so they get none: it would only waste memory.
  const bool huge = n_bytes >= kHugePage;
  const size_t alignment = huge ? kHugePage : kCacheLine;
  mapped_ = n_bytes + (huge ? kHugePage : 0);
  base_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base_ == MAP_FAILED) {
    base_ = nullptr;
    throw std::bad_alloc();
  }
  const auto address = reinterpret_cast<uintptr_t>(base_);
  data_ = reinterpret_cast<uint8_t*>((address + alignment - 1) / alignment * alignment);
#if defined(MADV_HUGEPAGE)
  if (huge) madvise(data_, n_bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
#endif
}

LargeBuffer::LargeBuffer(LargeBuffer&& o) noexcept
    : data_(std::exchange(o.data_, nullptr)),
      n_bytes_(std::exchange(o.n_bytes_, 0)),
      base_(std::exchange(o.base_, nullptr)),
      mapped_(std::exchange(o.mapped_, 0)) {}

LargeBuffer& LargeBuffer::operator=(LargeBuffer&& o) noexcept {
  std::swap(data_, o.data_);
  std::swap(n_bytes_, o.n_bytes_);
  std::swap(base_, o.base_);
  std::swap(mapped_, o.mapped_);
  return *this;
}

LargeBuffer::~LargeBuffer() {
  if (!base_) return;
#if defined(_WIN32)
  _aligned_free(base_);
#else
  munmap(base_, mapped_);
#endif
}

}  // namespace phlite
