// The ragged batch of one step: which tokens belong to which sequence, where they stand, and where their keys live.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace phlite::attention {

class Batch {
 public:
  // positions int32[n_tokens], seq_starts int32[n_seqs + 1], block_tables int32[n_seqs][max_blocks],
  // cos_sin float[n_tokens][rot]. All are copied. Throws std::invalid_argument unless
  //   seq_starts rises strictly from 0 to n_tokens; positions are >= 0 and consecutive inside a sequence;
  //   every block up to a sequence's last position has an id >= 0; no block is written by two sequences.
  Batch(const int32_t* positions, int n_tokens, const int32_t* seq_starts, int n_seqs, const int32_t* block_tables,
        int max_blocks, const float* cos_sin, int rot);

  int n_tokens() const { return n_tokens_; }
  int n_seqs() const { return n_seqs_; }
  int rot() const { return rot_; }
  int max_block_id() const { return max_block_id_; }
  int start(int seq) const { return seq_starts_[seq]; }
  int n_new(int seq) const { return seq_starts_[seq + 1] - seq_starts_[seq]; }
  int32_t first_position(int seq) const { return first_positions_[seq]; }
  int32_t longest() const { return longest_; }  // positions of the longest sequence
  const int32_t* block_table(int seq) const { return block_tables_.data() + static_cast<size_t>(seq) * max_blocks_; }
  const float* cos_sin(int token) const { return cos_sin_.data() + static_cast<size_t>(token) * rot_; }

 private:
  int n_tokens_, n_seqs_, max_blocks_, rot_;
  int max_block_id_ = -1;
  int32_t longest_ = 0;
  std::vector<int32_t> seq_starts_, first_positions_, block_tables_;
  std::vector<float> cos_sin_;
};

}  // namespace phlite::attention
