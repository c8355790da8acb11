// Codes and scales into the bytes of a block.
#pragma once
#include <cstdint>

#include "formats/blocks.h"

namespace phlite {

// A superblock as the search leaves it: codes from 0 on in the order of the file, scales and minima of its groups.
struct SuperblockCodes {
  uint8_t q[kSuperBlock];
  int8_t scales[16];
  uint8_t minima[16];
  uint16_t d, dmin;  // halves
};

// Writes one block of a K format or IQ4_XS.
void pack_superblock(GGMLType type, const SuperblockCodes& codes, uint8_t* out) noexcept;

// Writes n blocks of 32 elements. q[j][b] is the code of element j of block b; d and m are halves, m is not looked at
// by the formats without it. Q8_0 takes its codes as int8.
void pack_blocks(GGMLType type, const uint8_t q[32][16], const uint16_t d[16], const uint16_t m[16], int n,
                 uint8_t* out) noexcept;

}  // namespace phlite
