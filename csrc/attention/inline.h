// What the compiler must and must not put into one function, for the kernel files.
//
// Each loop over a tile is a function of its own (PHLITE_LOOP), so that it has all registers to itself, and everything
// it calls is part of it (PHLITE_INLINE): left to itself GCC 12 calls functions from the loops of one row, which keep
// no vector register. Prefetching must be inline in any case: GCC 12 drops calls of functions that do nothing else.
#pragma once

#if defined(__GNUC__)
#define PHLITE_LOOP __attribute__((noinline))
#define PHLITE_INLINE __attribute__((always_inline)) inline
#else
#define PHLITE_LOOP
#define PHLITE_INLINE inline
#endif
