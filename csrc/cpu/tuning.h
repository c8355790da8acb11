// What depends on how a processor is built rather than on its instructions: choices between ways to compute the same
// bits.
#pragma once
#include <string>
#include <vector>

namespace phlite {

// How weights are asked for some KB before they are used.
enum class FetchAhead {
  none,    // left to the processor (one row), or fetched a whole tile ahead (more rows)
  slices,  // all lines of a slice of 256 columns, then the products of an earlier one
  lines,   // line by line between the products, in two streams (csrc/matmul/formats.inl)
};

struct Tuning {
  const char* name;
  // AVX-512: some rows at once multiply two tiles of weights. Pays where two 512-bit products start per cycle but only
  // two loads, so that loads would limit one tile; Zen 4 works 512 bits off in two halves and gains nothing.
  bool two_tiles;
  // Q4_K from memory, one row, one thread, of what plain reads take: on Zen 3 0.67 without, 0.70 by slices, 0.9 by
  // lines in one stream, 1.0 in two; on Zen 4 0.93 without, 0.86 to 0.91 by slices; on Zen 5 0.5 without, 0.97 by
  // slices, 0.9 by lines in one stream.
  FetchAhead fetch_ahead;
  // AVX-512: attention over an f16 cache widens keys and values beside its multiply-adds instead of once for all rows
  // into memory: 1.05 times as fast on Zen 5.
  bool widen_in_tiles;
  // Attention of few rows asks for keys and values ahead into the first-level cache rather than the second.
  bool fetch_near;
};

// One of "zen3" (and what AMD built before, not measured), "zen4", "zen5" (and later), "other"; from the start that of
// this processor.
const Tuning& tuning();

// Chooses one by its name, for tests. Throws std::invalid_argument naming the possible ones.
void select_tuning(const std::string& name);
std::vector<std::string> tuning_names();

}  // namespace phlite
