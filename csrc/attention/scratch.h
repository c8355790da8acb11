// How `attend` divides its scratch memory.
#pragma once
#include "attention/attention.h"

namespace phlite::attention {

struct Scratch {
  float* scores;    // [kTileRows][kBlock]
  float* l;         // [kTileRows][kLanes] sums by lane
  float* alpha;     // [kTileRows] factors of the old sums in this tile
  float* q_scale;   // [kTileRows][n_quant]
  int32_t* q_sum;   // [kTileRows][n_quant]
  int8_t* q;        // [kTileRows][Dq]
  float* w_scale;   // [kTileRows][n_quant] q8_0: max p * vscale / kMostWeight
  int16_t* w;       // [kTileRows][n_quant][kBlock] q8_0: p * vscale in steps of w_scale
  float* k_tile;    // [kBlock][Dq] a block widened to float, for many rows
  float* v_tile;    // [kBlock][Dq]; q8_0: int16 in the order of the block
  size_t n_floats;  // of all together

  // With at = nullptr only n_floats is of use.
  Scratch(float* at, int head_dim) noexcept {
    const size_t Dq = o_stride(head_dim), nq = Dq / kQuant;
    size_t used = 0;
    const auto take = [&](size_t n) {
      float* const part = at ? at + used : nullptr;
      used += (n + 15) / 16 * 16;  // keeps every part 64-byte aligned
      return part;
    };
    scores = take(kTileRows * kBlock);
    l = take(kTileRows * kLanes);
    alpha = take(kTileRows);
    q_scale = take(kTileRows * nq);
    q_sum = reinterpret_cast<int32_t*>(take(kTileRows * nq));
    q = reinterpret_cast<int8_t*>(take(kTileRows * Dq / 4));
    w_scale = take(kTileRows * nq);
    w = reinterpret_cast<int16_t*>(take(kTileRows * nq * kBlock / 2));
    k_tile = take(kBlock * Dq);
    v_tile = take(kBlock * Dq);
    n_floats = used;
  }
};

}  // namespace phlite::attention
