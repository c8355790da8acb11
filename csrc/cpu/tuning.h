// What depends on how a processor is built rather than on its instructions: choices between ways to compute the same
// bits.
#pragma once
#include <string>
#include <vector>

namespace phlite {

struct Tuning {
  const char* name;
  // AVX-512: some rows at once multiply two tiles of weights. Pays where two 512-bit products start per cycle but only
  // two loads, so that loads would limit one tile; Zen 4 works 512 bits off in two halves and gains nothing.
  bool two_tiles;
  // Weights are asked for some KB before they are used, not left to the processor (one row) or fetched a whole tile
  // ahead (more rows). Q4_K from memory, one row, one thread: 21 GB/s without and 40 GB/s with it on Zen 5, of 41 that
  // the core can read; on Zen 4 0.86 to 0.91 instead of 0.93 of that; on Zen 3 (AVX2) 1.00 to 1.03 times as fast.
  bool fetch_ahead;
  // AVX-512: attention over an f16 cache widens keys and values beside its multiply-adds instead of once for all rows
  // into memory: 1.05 times as fast on Zen 5.
  bool widen_in_tiles;
  // Attention of few rows asks for keys and values ahead into the first-level cache rather than the second.
  bool fetch_near;
};

// One of "zen4" (and what AMD built before), "zen5" (and later), "other"; from the start that of this processor.
const Tuning& tuning();

// Chooses one by its name, for tests. Throws std::invalid_argument naming the possible ones.
void select_tuning(const std::string& name);
std::vector<std::string> tuning_names();

}  // namespace phlite
