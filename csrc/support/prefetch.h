// Asks the memory for a line that will be read soon, without waiting for it.
#pragma once
#if defined(_M_X64)
#include <immintrin.h>
#endif

namespace phlite {

// Into the second-level cache, where the machine can say so.
inline void prefetch(const void* p) {
#if defined(__GNUC__)
  __builtin_prefetch(p, 0, 2);
#elif defined(_M_X64)
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
#else
  (void)p;
#endif
}

}  // namespace phlite
