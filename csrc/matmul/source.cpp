#include "matmul/source.h"

#include <cerrno>
#include <system_error>

#if !defined(_WIN32)
#include <unistd.h>
#endif

namespace phlite {

const SourceFile* SourceFiles::find(const uint8_t* begin, const uint8_t* end) const noexcept {
#if !defined(_WIN32)  // no read at an offset there that leaves the descriptor alone
  for (const SourceFile& file : files_)
    if (begin >= file.data && end <= file.data + file.n_bytes) return &file;
#endif
  (void)begin, (void)end;
  return nullptr;
}

bool SourceFiles::read(const SourceFile& file, const uint8_t* begin, const uint8_t* end, uint8_t* to) noexcept {
#if !defined(_WIN32)
  while (begin < end && !failed()) {
    const ssize_t n = pread(file.descriptor, to, static_cast<size_t>(end - begin), begin - file.data);
    if (n > 0)
      begin += n, to += n;
    else if (n == 0 || errno != EINTR)
      fail(file, begin - file.data, n == 0 ? 0 : errno);
  }
#else
  (void)file, (void)begin, (void)end, (void)to;
#endif
  return !failed();
}

void SourceFiles::fail(const SourceFile& file, int64_t offset, int error) noexcept {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!failed_file_) failed_file_ = &file, failed_offset_ = offset, error_ = error;
  failed_.store(true, std::memory_order_relaxed);
}

void SourceFiles::throw_if_failed() const {
  if (!failed_file_) return;
  const std::string where = failed_file_->name + ": byte " + std::to_string(failed_offset_) + ": ";
  if (error_) throw SourceError(where + "cannot be read: " + std::generic_category().message(error_));
  throw SourceError(where + "the file ends here, expected " + std::to_string(failed_file_->n_bytes) +
                    " bytes as when it was opened; it was cut while it was loaded");
}

bool SourceWindow::move_to(const uint8_t* begin, const uint8_t* end) noexcept {
  begin_ = begin;
  end_ = end;
  const SourceFile* file = files_.find(begin, end);
  first_ = file ? buffer_ : begin;
  return !file || files_.read(*file, begin, end, buffer_);
}

}  // namespace phlite
