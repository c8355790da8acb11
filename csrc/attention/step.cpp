// How the work of one layer is cut into tasks. A task is up to 64 rows of one sequence over all of its visible
// positions: queries of all heads of a key/value head; with one new token, of several key/value heads, so that longer
// stretches of memory are read in order; where a block-sparse mask shows each head other blocks and the queries are
// many, of one head, so that a block is read for many rows or for none. Threads take tasks as they become free. When
// there are fewer tasks than would keep the threads busy, each segment of 512 positions is a task of its own and the
// partial results are merged afterwards, in the same order: how the work is cut never changes a bit.
#include "attention/step.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "attention/scratch.h"
#include "cpu/isa.h"
#include "cpu/tuning.h"
#include "support/prefetch.h"

namespace phlite::attention {
namespace {

constexpr int kTasksPerThread = 4;                      // fewer than this, and segments become tasks
constexpr int kRowsAhead = 8;                           // heads of qkv that are fetched ahead
constexpr int kHeadAlone = 16;                          // new tokens from which on a sparse head has its own tasks
constexpr size_t kMostPartialFloats = size_t{1} << 24;  // 64 MiB of partial results, beyond it segments stay together

struct Task {
  int seq, first_head, n_heads;  // query heads that share their key/value head
  int first_row, n_rows;         // rows of the sequence and these heads: token * n_heads + head - first_head

  int token(int row) const { return (first_row + row) / n_heads; }
  int head(int row) const { return first_head + (first_row + row) % n_heads; }
};

}  // namespace

// Everything about one call that tasks share.
class AttentionOperation::Step {
 public:
  Step(const StepArgs& args, KVCache& cache, int layer, const Batch& batch, int n_threads)
      : args_(args),
        cache_(cache),
        batch_(batch),
        kernels_(kernels(active_isa())),
        layer_(layer),
        D_(cache.head_dim()),
        Hkv_(cache.n_kv_heads()),
        G_(args.n_heads / cache.n_kv_heads()),
        row_stride_(static_cast<size_t>(args.n_heads + 2 * Hkv_) * D_),
        partial_floats_(static_cast<size_t>(kTileRows) * (o_stride(D_) + 2)) {
    plan(n_threads);
  }

  size_t scratch_bytes(int n_threads) const {
    const size_t n_partials = split_ ? static_cast<size_t>(segment_starts_[n_tasks_]) : 0;
    return (n_threads * thread_floats_ + n_partials * partial_floats_) * sizeof(float);
  }

  void place_scratch(uint8_t* scratch, int n_threads) {
    thread_scratch_ = reinterpret_cast<float*>(scratch);
    partials_ = thread_scratch_ + n_threads * thread_floats_;
  }

  void work(ThreadPool& pool, int thread, int n_threads) const {
    rotate_and_write(thread, n_threads);
    pool.barrier();
    if (split_) {
      attend_split(pool, thread);
      pool.barrier();
      merge_split(thread, n_threads);
    } else {
      attend_whole(pool, thread);
    }
  }

 private:
  int heads_per_task(int seq) const {
    if (batch_.n_new(seq) == 1) return G_ * kv_heads_together_;
    return args_.sparse.block_size > 0 && batch_.n_new(seq) >= kHeadAlone ? 1 : G_;
  }
  int n_tiles(int seq) const { return (batch_.n_new(seq) * heads_per_task(seq) + kTileRows - 1) / kTileRows; }
  int64_t count_tasks(int seq) const {
    return static_cast<int64_t>(n_tiles(seq)) * (args_.n_heads / heads_per_task(seq));
  }

  // First and last segment that the rows of a task see.
  int32_t first_position(const Task& t) const {
    const int32_t p = batch_.first_position(t.seq) + t.token(0);
    return args_.sliding_window > 0 ? std::max(0, p - args_.sliding_window + 1) : 0;
  }
  int32_t last_position(const Task& t) const { return batch_.first_position(t.seq) + t.token(t.n_rows - 1); }
  int first_segment(const Task& t) const { return first_position(t) / kSegment; }
  int n_segments(const Task& t) const { return last_position(t) / kSegment - first_segment(t) + 1; }

  // Long tiles of a sequence first, so that the last tasks of a step are short ones; a head's tiles follow each other,
  // so that its keys and values are still in the cache.
  Task task(int64_t idx) const {
    const auto after = std::upper_bound(task_starts_.begin(), task_starts_.end(), idx);
    const int seq = static_cast<int>(after - task_starts_.begin()) - 1;
    const int64_t local = idx - task_starts_[seq];
    const int tiles = n_tiles(seq), tile = tiles - 1 - static_cast<int>(local % tiles);
    const int first_row = tile * kTileRows, n_heads = heads_per_task(seq);
    const int n_rows = std::min(kTileRows, batch_.n_new(seq) * n_heads - first_row);
    return {seq, static_cast<int>(local / tiles) * n_heads, n_heads, first_row, n_rows};
  }

  // Counts the tasks, and their segments where these become tasks of their own.
  void plan(int n_threads) {
    // With one new token a task takes several key/value heads, whose shares of a block lie together.
    const auto enough = [&](int together) {
      return Hkv_ % together == 0 && G_ * together <= kTileRows &&
             Hkv_ / together * batch_.n_seqs() >= kTasksPerThread * n_threads;
    };
    for (int together = 1; together <= Hkv_; ++together)
      if (args_.sparse.block_size == 0 && enough(together)) kv_heads_together_ = together;
    task_starts_.assign(1, 0);
    for (int b = 0; b < batch_.n_seqs(); ++b) task_starts_.push_back(task_starts_.back() + count_tasks(b));
    n_tasks_ = task_starts_.back();
    thread_floats_ = (kernel_floats() + 2 * partial_floats_ + 15) / 16 * 16;
    if (n_tasks_ >= static_cast<int64_t>(kTasksPerThread) * n_threads || batch_.longest() <= kSegment) return;
    segment_starts_.assign(1, 0);
    for (int64_t i = 0; i < n_tasks_; ++i) segment_starts_.push_back(segment_starts_.back() + n_segments(task(i)));
    const int64_t n_partials = segment_starts_.back();
    split_ = n_partials > n_tasks_ && n_partials * partial_floats_ <= kMostPartialFloats;
  }

  // Of a thread's scratch: what the kernels take, then the rotated queries of a task.
  size_t kernel_floats() const { return Scratch(nullptr, D_).n_floats + static_cast<size_t>(kTileRows) * o_stride(D_); }
  Partial partial_at(float* at) const { return {at, at + kTileRows, at + 2 * kTileRows}; }
  Partial stored_partial(int64_t idx) const { return partial_at(partials_ + idx * partial_floats_); }

  // The head of a token in qkv: 0 .. Hq - 1 queries, then keys, then values.
  const float* head(int token, int idx) const {
    return args_.qkv + token * row_stride_ + static_cast<size_t>(idx) * D_;
  }

  // The heads of one token lie together, those of one head far apart: the hardware does not see what comes next.
  void prefetch_head(int token, int idx) const { prefetch_floats(head(token, idx)); }
  void prefetch_floats(const float* at) const {
    for (int d = 0; d < D_; d += kLanes) prefetch(at + d);
  }

  // One head of up to 16 tokens after the other: their rows of qkv are read as so many streams, their keys lie side by
  // side in the cache.
  void rotate_and_write(int thread, int n_threads) const {
    const int T = batch_.n_tokens(), rot = batch_.rot();
    const int64_t n = static_cast<int64_t>(T) * Hkv_;
    int64_t unit = n * thread / n_threads;
    const int64_t end = n * (thread + 1) / n_threads;
    const auto place = [&](int64_t unit) {
      const int first = static_cast<int>(unit / (kLanes * Hkv_)) * kLanes, n_tokens = std::min(kLanes, T - first);
      const int left = static_cast<int>(unit - int64_t{first} * Hkv_);
      return std::pair<int, int>(first + left % n_tokens, left / n_tokens);
    };
    int seq = 0;
    for (; unit < end; ++unit) {
      const auto [token, kv_head] = place(unit);
      if (unit + kRowsAhead < end) {
        const auto [later, its_head] = place(unit + kRowsAhead);
        prefetch_head(later, args_.n_heads + its_head);
        prefetch_head(later, args_.n_heads + Hkv_ + its_head);
      }
      while (batch_.start(seq) > token) --seq;
      while (batch_.start(seq + 1) <= token) ++seq;
      const float* cos_sin = batch_.cos_sin(token);
      float k[kMaxHeadDim];
      kernels_.rope(head(token, args_.n_heads + kv_head), cos_sin, D_, rot, args_.rope_interleaved, 1.0f, k);
      const int32_t position = batch_.first_position(seq) + token - batch_.start(seq);
      const size_t block = static_cast<size_t>(batch_.block_table(seq)[position / kBlock]);
      kernels_.write(cache_.layout(), cache_.head(layer_, kv_head) + block * cache_.block_stride(), position % kBlock,
                     k, head(token, args_.n_heads + Hkv_ + kv_head));
    }
  }

  // The stripe b % vert_stride of the blocks b that a head sees beyond its local ones.
  int32_t stripe_of_head(int head) const {
    const BlockSparse& sparse = args_.sparse;
    const int step = sparse.homo_head ? 0 : std::max(1, sparse.vert_stride / args_.n_heads);
    const int64_t before = (int64_t{head} * step + 1) % sparse.vert_stride;
    return static_cast<int32_t>((sparse.vert_stride - before) % sparse.vert_stride);
  }

  // Partial results of `n` segments of a task from segment `first` on: into `out` each, or merged into one.
  void attend(const Task& t, int first, int n, float* scratch, const Partial& out, const Partial* spare) const {
    const float* q[kTileRows];
    int32_t lo[kTileRows], hi[kTileRows], local[kTileRows], stripe[kTileRows];
    const int start = batch_.start(t.seq), first_pos = batch_.first_position(t.seq);
    const BlockSparse& sparse = args_.sparse;
    // 2^x is cheaper than e^x: the queries carry log2(e).
    const float q_scale = static_cast<float>(args_.softmax_scale * 1.4426950408889634);
    float* const queries = scratch + Scratch(nullptr, D_).n_floats;
    for (int r = 0; r < std::min(kRowsAhead, t.n_rows); ++r) prefetch_head(start + t.token(r), t.head(r));
    for (int r = 0; r < t.n_rows; ++r) {
      if (r + kRowsAhead < t.n_rows) prefetch_head(start + t.token(r + kRowsAhead), t.head(r + kRowsAhead));
      const int token = start + t.token(r);
      float* const rotated = queries + r * o_stride(D_);
      kernels_.rope(head(token, t.head(r)), batch_.cos_sin(token), D_, batch_.rot(), args_.rope_interleaved, q_scale,
                    rotated);
      q[r] = rotated;
      hi[r] = first_pos + t.token(r) + 1;
      lo[r] = args_.sliding_window > 0 ? std::max(0, hi[r] - args_.sliding_window) : 0;
      if (sparse.block_size == 0) continue;
      const int64_t first_local = (hi[r] - 1) / sparse.block_size - int64_t{sparse.local_blocks} + 1;
      local[r] = static_cast<int32_t>(std::max<int64_t>(0, first_local) * sparse.block_size);
      stripe[r] = stripe_of_head(t.head(r));
    }
    AttendArgs a;
    if (sparse.block_size > 0) a.sparse = {sparse.block_size, sparse.vert_stride, local, stripe};
    a.layout = &cache_.layout();
    a.head_base = cache_.head(layer_, t.first_head / G_);
    a.n_kv_heads = std::max(1, t.n_heads / G_);
    a.block_stride = cache_.block_stride();
    a.block_table = batch_.block_table(t.seq);
    a.n_rows = t.n_rows;
    a.q = q;
    a.lo = lo;
    a.hi = hi;
    a.fetch_near = tuning().fetch_near;
    a.scratch = scratch;
    for (int s = first; s < first + n; ++s) {
      a.first = std::max(s * kSegment, lo[0] / kBlock * kBlock);
      a.last = std::min((s + 1) * kSegment, hi[t.n_rows - 1]);
      a.out = s == first ? out : *spare;
      a.same_rows = s > first;
      a.continues = s + 1 < first + n;
      kernels_.attend(a);
      if (s > first) kernels_.merge(out, *spare, t.n_rows, o_stride(D_));
    }
  }

  void finish(const Task& t, const Partial& total) const {
    const int start = batch_.start(t.seq), stride = o_stride(D_);
    const auto row = [&](int r) {
      return args_.out + (static_cast<size_t>(start + t.token(r)) * args_.n_heads + t.head(r)) * D_;
    };
    for (int r = 0; r < t.n_rows; ++r) {
      if (r + kRowsAhead < t.n_rows) prefetch_floats(row(r + kRowsAhead));
      float* out = row(r);
      const float inverse = 1.0f / total.l[r];
      const float* o = total.o + static_cast<size_t>(r) * stride;
      for (int d = 0; d < D_; ++d) out[d] = o[d] * inverse;
    }
  }

  float* scratch_of(int thread) const { return thread_scratch_ + thread * thread_floats_; }

  void attend_whole(ThreadPool& pool, int thread) const {
    float* scratch = scratch_of(thread);
    float* after = scratch + kernel_floats();
    const Partial total = partial_at(after), spare = partial_at(after + partial_floats_);
    for (int64_t i; (i = pool.take_chunk(1)) < n_tasks_;) {
      const Task t = task(i);
      attend(t, first_segment(t), n_segments(t), scratch, total, &spare);
      finish(t, total);
    }
  }

  void attend_split(ThreadPool& pool, int thread) const {
    for (int64_t i; (i = pool.take_chunk(1)) < segment_starts_[n_tasks_];) {
      const auto after = std::upper_bound(segment_starts_.begin(), segment_starts_.end(), i);
      const int64_t idx = after - segment_starts_.begin() - 1;
      const Task t = task(idx);
      const int segment = first_segment(t) + static_cast<int>(i - segment_starts_[idx]);
      attend(t, segment, 1, scratch_of(thread), stored_partial(i), nullptr);
    }
  }

  void merge_split(int thread, int n_threads) const {
    for (int64_t i = n_tasks_ * thread / n_threads; i < n_tasks_ * (thread + 1) / n_threads; ++i) {
      const Task t = task(i);
      const Partial total = stored_partial(segment_starts_[i]);
      for (int64_t s = segment_starts_[i] + 1; s < segment_starts_[i + 1]; ++s)
        kernels_.merge(total, stored_partial(s), t.n_rows, o_stride(D_));
      finish(t, total);
    }
  }

  const StepArgs args_;
  KVCache& cache_;
  const Batch& batch_;
  const Kernels& kernels_;
  const int layer_, D_, Hkv_, G_;
  const size_t row_stride_, partial_floats_;
  size_t thread_floats_ = 0;
  int64_t n_tasks_ = 0;
  int kv_heads_together_ = 1;  // of a task of one new token
  bool split_ = false;
  std::vector<int64_t> task_starts_;     // of each sequence, and the end
  std::vector<int64_t> segment_starts_;  // of each task where segments may be tasks, and the end
  float* thread_scratch_ = nullptr;
  float* partials_ = nullptr;
};

const Kernels& kernels(Isa isa) {
#if defined(__x86_64__) || defined(_M_X64)
  switch (isa) {
    case Isa::avx512vnni:
      return kAvx512VnniKernels;
    case Isa::avxvnni:
    case Isa::avx2:
      return kAvx2Kernels;
    case Isa::scalar:
      break;
  }
#else
  (void)isa;
#endif
  return kScalarKernels;
}

AttentionOperation::AttentionOperation(const StepArgs& args, KVCache& cache, int layer, const Batch& batch,
                                       int n_threads)
    : step_(std::make_unique<Step>(args, cache, layer, batch, n_threads)) {}

AttentionOperation::AttentionOperation(AttentionOperation&&) noexcept = default;
AttentionOperation::~AttentionOperation() = default;

size_t AttentionOperation::scratch_bytes(int n_threads) const noexcept { return step_->scratch_bytes(n_threads); }
void AttentionOperation::prepare(uint8_t* scratch, int n_threads) noexcept { step_->place_scratch(scratch, n_threads); }
void AttentionOperation::work(ThreadPool& pool, int thread, int n_threads) noexcept {
  step_->work(pool, thread, n_threads);
}

}  // namespace phlite::attention
