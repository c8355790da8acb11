// The bytes of model files on their way to the packing: read through descriptors, not through the pages they are mapped
// to.
//
// A mapped page costs its first reader a fault, the thread that drops it a message to all others, and the program its
// life if the file has been cut meanwhile. A read copies a stretch of the file into a buffer that stays in the second-
// level cache, and says what went wrong.
#pragma once
#include <atomic>
#include <cstdint>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

namespace phlite {

// An open file and where it is mapped.
struct SourceFile {
  const uint8_t* data;
  int64_t n_bytes;
  int descriptor;
  std::string name;  // for messages
};

// A file that could not be read, or has become shorter than its mapping.
struct SourceError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Files that threads read at the same time, and the first thing that went wrong.
class SourceFiles {
 public:
  explicit SourceFiles(const std::vector<SourceFile>& files) : files_(files) {}

  // The file in which all the bytes from `begin` to `end` are mapped; null: none, they lie in memory.
  const SourceFile* find(const uint8_t* begin, const uint8_t* end) const noexcept;
  // Reads what is mapped from `begin` to `end` into `to`. After a failure, and in all later calls: false.
  bool read(const SourceFile& file, const uint8_t* begin, const uint8_t* end, uint8_t* to) noexcept;
  bool failed() const noexcept { return failed_.load(std::memory_order_relaxed); }
  void throw_if_failed() const;  // SourceError; when no thread reads any more

 private:
  void fail(const SourceFile& file, int64_t offset, int error) noexcept;

  const std::vector<SourceFile>& files_;
  std::atomic<bool> failed_{false};
  std::mutex mutex_;  // of what follows
  const SourceFile* failed_file_ = nullptr;
  int64_t failed_offset_ = 0;
  int error_ = 0;  // errno, or 0: the file ends there
};

// A stretch of memory or of a file that one thread works on.
class SourceWindow {
 public:
  SourceWindow(SourceFiles& files, uint8_t* buffer) : files_(files), buffer_(buffer) {}

  bool holds(const uint8_t* begin, const uint8_t* end) const { return begin >= begin_ && end <= end_; }
  // Moves to the bytes from `begin` to `end`, no more than the buffer has room for. False after a failure.
  bool move_to(const uint8_t* begin, const uint8_t* end) noexcept;
  // Where a byte that the window holds can be read.
  const uint8_t* at(const uint8_t* mapped) const { return first_ + (mapped - begin_); }

 private:
  SourceFiles& files_;
  uint8_t* buffer_;
  const uint8_t* begin_ = nullptr;
  const uint8_t* end_ = nullptr;
  const uint8_t* first_ = nullptr;  // where the byte at begin_ is
};

}  // namespace phlite
