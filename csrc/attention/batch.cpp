#include "attention/batch.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "attention/attention.h"

namespace phlite::attention {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument("attention batch: " + message); }

std::string str(int64_t value) { return std::to_string(value); }

}  // namespace

Batch::Batch(const int32_t* positions, int n_tokens, const int32_t* seq_starts, int n_seqs, const int32_t* block_tables,
             int max_blocks, const float* cos_sin, int rot)
    : n_tokens_(n_tokens), n_seqs_(n_seqs), max_blocks_(max_blocks), rot_(rot) {
  if (n_tokens < 1 || n_seqs < 1) refuse("got no tokens or no sequences, expected at least one of each");
  if (rot % 2 != 0) refuse("cos_sin has " + str(rot) + " columns, expected an even number");
  if (seq_starts[0] != 0 || seq_starts[n_seqs] != n_tokens)
    refuse("seq_starts runs from " + str(seq_starts[0]) + " to " + str(seq_starts[n_seqs]) + ", expected 0 to " +
           str(n_tokens) + ", the number of tokens");
  for (int b = 0; b < n_seqs; ++b)
    if (seq_starts[b + 1] <= seq_starts[b])
      refuse("sequence " + str(b) + " has no tokens: seq_starts must rise strictly");

  std::vector<int32_t> written;
  for (int b = 0; b < n_seqs; ++b) {
    const int start = seq_starts[b], n = seq_starts[b + 1] - start;
    const int32_t first = positions[start];
    if (first < 0 || first > std::numeric_limits<int32_t>::max() - kSegment - n)
      refuse("sequence " + str(b) + " starts at position " + str(first) + ", which is out of range");
    for (int i = 1; i < n; ++i)
      if (positions[start + i] != first + i)
        refuse("token " + str(start + i) + " is at position " + str(positions[start + i]) + ", expected " +
               str(int64_t{first} + i) + ": positions are consecutive inside a sequence");
    const int n_blocks = (first + n - 1) / kBlock + 1;
    if (n_blocks > max_blocks)
      refuse("sequence " + str(b) + " reaches position " + str(first + n - 1) + " and needs " + str(n_blocks) +
             " blocks, but block_tables has " + str(max_blocks) + " columns");
    const int32_t* table = block_tables + static_cast<size_t>(b) * max_blocks;
    for (int j = 0; j < n_blocks; ++j) {
      if (table[j] < 0)
        refuse("block " + str(j) + " of sequence " + str(b) + " has id " + str(table[j]) + ", expected an id >= 0");
      max_block_id_ = std::max(max_block_id_, table[j]);
      if (j >= first / kBlock) written.push_back(table[j]);
    }
    first_positions_.push_back(first);
    longest_ = std::max(longest_, first + n);
  }
  std::sort(written.begin(), written.end());
  const auto twice = std::adjacent_find(written.begin(), written.end());
  if (twice != written.end())
    refuse("block id " + str(*twice) +
           " would be written twice in one step; every block that receives tokens must "
           "belong to one place of one sequence");

  seq_starts_.assign(seq_starts, seq_starts + n_seqs + 1);
  block_tables_.assign(block_tables, block_tables + static_cast<size_t>(n_seqs) * max_blocks);
  cos_sin_.assign(cos_sin, cos_sin + static_cast<size_t>(n_tokens) * rot);
}

}  // namespace phlite::attention
