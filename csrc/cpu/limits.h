// The machine's two limits for inference, measured: how fast weights can be read, how fast bytes can be multiplied.
#pragma once
#include <cstddef>

#include "support/thread_pool.h"

namespace phlite {

// Bytes per second that the threads of the pool read together from a buffer larger than the caches; the best of
// `n_rounds` that only read and as many that ask the memory ahead.
double measure_read_bandwidth(ThreadPool& pool, size_t n_bytes, int n_rounds);

// 8-bit multiply-adds per second that the threads reach together from registers with the instruction set in use; 0
// without vectors. With AVX2 the products alone, which leave their sums to be added.
double measure_int8_peak(ThreadPool& pool, int n_rounds);

}  // namespace phlite
