#include "support/large_buffer.h"

#include <algorithm>
#include <mutex>
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
#if defined(_WIN32)
constexpr size_t kRegion = 0;  // memory is taken there as it is reserved
#else
constexpr size_t kRegion = size_t{256} << 20;  // of addresses: pages come when they are touched
#endif
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

struct AdjacentBuffer::Region {
  explicit Region(size_t n_bytes) : memory(n_bytes) {}
  LargeBuffer memory;
  size_t used = 0;
};

AdjacentBuffer::AdjacentBuffer(size_t n_bytes) : n_bytes_(n_bytes) {
  static std::mutex mutex;
  static std::weak_ptr<Region> last;  // gone with its last buffer
  const size_t room = (n_bytes + kCacheLine - 1) / kCacheLine * kCacheLine;
  std::lock_guard<std::mutex> lock(mutex);
  region_ = last.lock();
  if (!region_ || region_->memory.size() - region_->used < room)
    last = region_ = std::make_shared<Region>(std::max(room, kRegion));
  data_ = region_->memory.data() + region_->used;
  region_->used += room;
}

AdjacentBuffer::AdjacentBuffer(AdjacentBuffer&& o) noexcept
    : region_(std::move(o.region_)), data_(std::exchange(o.data_, nullptr)), n_bytes_(std::exchange(o.n_bytes_, 0)) {}

AdjacentBuffer& AdjacentBuffer::operator=(AdjacentBuffer&& o) noexcept {
  std::swap(region_, o.region_);
  std::swap(data_, o.data_);
  std::swap(n_bytes_, o.n_bytes_);
  return *this;
}

AdjacentBuffer::~AdjacentBuffer() {
#if !defined(_WIN32)
  if (!region_ || region_.use_count() == 1) return;
  const auto address = reinterpret_cast<uintptr_t>(data_);
  const auto begin = (address + kHugePage - 1) / kHugePage * kHugePage;
  const auto end = (address + n_bytes_) / kHugePage * kHugePage;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
#endif
}

}  // namespace phlite
