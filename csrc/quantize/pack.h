// Codes and scales into the bytes of a block.
#pragma once
#include <cstdint>

#include "formats/blocks.h"

namespace phlite {

// Codes of sixteen groups from lanes, codes[j][g] being element j of group g, to the order of the file, out[g][j].
// n: elements of a group, 16 or 32
void order_codes(const uint8_t* codes, int n, uint8_t* out) noexcept;

// A superblock as the search leaves it.
struct SuperblockCodes {
  const uint8_t* q;      // codes from 0 on, [256] in the order of the file
  const int8_t* scales;  // of its groups
  const uint8_t* minima;
  uint16_t d, dmin;  // halves
};

// Writes one block of a K format or IQ4_XS.
void pack_superblock(GGMLType type, const SuperblockCodes& codes, uint8_t* out) noexcept;

// Writes n blocks of 32 elements. q[b][j] is the code of element j of block b, for Q8_0 as int8; d and m are halves, m
// is not looked at by the formats without it.
void pack_blocks(GGMLType type, const uint8_t q[][32], const uint16_t* d, const uint16_t* m, int n,
                 uint8_t* out) noexcept;

}  // namespace phlite
