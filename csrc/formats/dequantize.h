// Rows of quantised blocks to float: the definition that every kernel and repacked layout is tested against.
#pragma once

#include <cstdint>

#include "formats/blocks.h"

namespace phlite {

// Writes n floats to dst from the blocks at src.
//
// src: row_bytes(type, n) bytes, any alignment; not overlapping dst
// n:   a multiple of block_size(type).elements
// Every product and sum is rounded to float in the order of gguf-py 0.19's quants.py (scale by sub-scale, then by
// quant, then minus the minimum), so results are equal bit for bit except for the payload of NaNs.
// Returns false, and writes nothing, for an id that is not a GGMLType.
bool dequantize_row(GGMLType type, const uint8_t* src, float* dst, int64_t n) noexcept;

}  // namespace phlite
