// KVCache, AttentionBatch and attention for Python. What can be wrong with a call is checked here, once.
#include "bindings.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <cmath>
#include <optional>
#include <ostream>
#include <sstream>
#include <string>
#include <tuple>

#include "attention/batch.h"
#include "attention/kv_cache.h"
#include "attention/step.h"
#include "support/launch.h"

namespace nb = nanobind;

namespace phlite {
namespace {

using attention::Batch;
using attention::KVCache;
using Floats = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Heads = nb::ndarray<float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using ConstFloats = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using ConstInts = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ConstTables = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// Message parts are joined only when a check fails: these run for every layer of every token.
template <class... Parts>
void require(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream message;
  (message << ... << parts);
  throw nb::value_error(message.str().c_str());
}

struct Shape {
  size_t rows, cols;
};

std::ostream& operator<<(std::ostream& out, const Shape& s) { return out << '[' << s.rows << ", " << s.cols << ']'; }

void build_batch(Batch* at, const ConstInts& positions, const ConstInts& seq_starts, const ConstTables& block_tables,
                 const ConstFloats& cos_sin) {
  const size_t T = positions.shape(0);
  require(seq_starts.shape(0) >= 2, "attention batch: seq_starts has ", seq_starts.shape(0),
          " entries, expected one more than sequences, at least 2");
  const size_t B = seq_starts.shape(0) - 1;
  require(block_tables.shape(0) == B, "attention batch: block_tables has ", block_tables.shape(0),
          " rows, expected one for each of ", B, " sequences");
  require(cos_sin.shape(0) == T, "attention batch: cos_sin has ", cos_sin.shape(0), " rows, expected one for each of ",
          T, " tokens");
  require(T < (size_t{1} << 30) && block_tables.shape(1) < (size_t{1} << 30), "attention batch: too many tokens");
  require(cos_sin.shape(1) <= attention::kMaxHeadDim, "attention batch: cos_sin has too many columns");
  new (at) Batch(positions.data(), static_cast<int>(T), seq_starts.data(), static_cast<int>(B), block_tables.data(),
                 static_cast<int>(block_tables.shape(1)), cos_sin.data(), static_cast<int>(cos_sin.shape(1)));
}

void run_attention(const Floats& qkv, const Floats& out, KVCache& cache, int layer_idx, const Batch& batch, int n_heads,
                   float softmax_scale, int sliding_window, bool rope_interleaved, ThreadPool& pool,
                   const std::optional<std::tuple<int, int, int, bool>>& block_sparse) {
  const int Hkv = cache.n_kv_heads(), D = cache.head_dim();
  require(n_heads >= 1 && n_heads < (1 << 20) && n_heads % Hkv == 0, "attention: n_heads is ", n_heads,
          ", expected a multiple of the cache's ", Hkv, " key/value heads");
  const size_t T = batch.n_tokens(), n_cols = static_cast<size_t>(n_heads + 2 * Hkv) * D;
  require(qkv.shape(0) == T && qkv.shape(1) == n_cols, "attention: qkv is ", Shape{qkv.shape(0), qkv.shape(1)},
          ", expected ", Shape{T, n_cols});
  require(out.shape(0) == T && out.shape(1) == static_cast<size_t>(n_heads) * D, "attention: out is ",
          Shape{out.shape(0), out.shape(1)}, ", expected ", Shape{T, static_cast<size_t>(n_heads) * D});
  require(layer_idx >= 0 && layer_idx < cache.n_layers(), "attention: layer_idx is ", layer_idx, ", the cache has ",
          cache.n_layers(), " layers");
  require(batch.max_block_id() < cache.n_blocks(), "attention: the batch uses block ", batch.max_block_id(),
          ", the cache has ", cache.n_blocks(), " blocks");
  require(batch.rot() <= D, "attention: cos_sin has ", batch.rot(), " columns, expected at most head_dim ", D);
  require(sliding_window >= 0, "attention: sliding_window is ", sliding_window,
          ", expected 0 for none or a number of keys");
  require(std::isfinite(softmax_scale), "attention: softmax_scale is not finite");
  attention::BlockSparse sparse;
  if (block_sparse) {
    std::tie(sparse.block_size, sparse.local_blocks, sparse.vert_stride, sparse.homo_head) = *block_sparse;
    require(sparse.block_size >= attention::kBlock && sparse.block_size % attention::kBlock == 0,
            "attention: the sparse block size is ", sparse.block_size, ", expected a multiple of ", attention::kBlock);
    require(sparse.local_blocks >= 1 && sparse.vert_stride >= 1, "attention: ", sparse.local_blocks,
            " local blocks and a vertical stride of ", sparse.vert_stride, ", expected at least 1 of each");
  }
  const attention::StepArgs args{qkv.data(),     out.data(),       n_heads, softmax_scale,
                                 sliding_window, rope_interleaved, sparse};
  launch(pool, attention::AttentionOperation(args, cache, layer_idx, batch, pool.size()), nb::find(cache),
         nb::find(batch), qkv, out);
}

void read_cache(const KVCache& cache, int layer_idx, const ConstInts& block_table, const Heads& k, const Heads& v) {
  require(layer_idx >= 0 && layer_idx < cache.n_layers(), "KV cache: layer ", layer_idx, " does not exist");
  const size_t n = k.shape(0);
  for (const Heads* x : {&k, &v})
    require(x->shape(0) == n && x->shape(1) == static_cast<size_t>(cache.n_kv_heads()) &&
                x->shape(2) == static_cast<size_t>(cache.head_dim()),
            "KV cache: the arrays to read to have a wrong shape");
  require(n <= block_table.shape(0) * attention::kBlock, "KV cache: the block table is too short for ", n,
          " positions");
  for (size_t i = 0; i < (n + attention::kBlock - 1) / attention::kBlock; ++i)
    require(block_table.data()[i] >= 0 && block_table.data()[i] < cache.n_blocks(), "KV cache: block ",
            block_table.data()[i], " does not exist");
  cache.read(layer_idx, block_table.data(), static_cast<int>(n), k.data(), v.data());
}

}  // namespace

void bind_attention(nb::module_& m) {
  nb::class_<KVCache>(m, "KVCache", "Keys and values of all layers in blocks of 64 positions.")
      .def(nb::init<int, int, int, int, const std::string&>(), nb::arg("n_layers"), nb::arg("n_blocks"),
           nb::arg("n_kv_heads"), nb::arg("head_dim"), nb::arg("dtype"))
      .def_prop_ro("n_layers", &KVCache::n_layers)
      .def_prop_ro("n_blocks", &KVCache::n_blocks)
      .def_prop_ro("n_kv_heads", &KVCache::n_kv_heads)
      .def_prop_ro("head_dim", &KVCache::head_dim)
      .def_prop_ro("dtype", [](const KVCache& c) { return std::string(c.dtype()); })
      .def_prop_ro("block_bytes", &KVCache::block_bytes)
      .def("copy_block", &KVCache::copy_block, nb::arg("src"), nb::arg("dst"))
      .def("read", &read_cache, nb::arg("layer_idx"), nb::arg("block_table").noconvert(), nb::arg("k").noconvert(),
           nb::arg("v").noconvert());

  nb::class_<Batch>(m, "AttentionBatch", "The ragged batch of one step, shared by all layers.")
      .def("__init__", &build_batch, nb::arg("positions").noconvert(), nb::arg("seq_starts").noconvert(),
           nb::arg("block_tables").noconvert(), nb::arg("cos_sin").noconvert())
      .def_prop_ro("n_tokens", &Batch::n_tokens)
      .def_prop_ro("n_seqs", &Batch::n_seqs);

  m.def("attention", &run_attention, nb::arg("qkv").noconvert(), nb::arg("out").noconvert(), nb::arg("cache"),
        nb::arg("layer_idx"), nb::arg("batch"), nb::arg("n_heads"), nb::arg("softmax_scale"), nb::arg("sliding_window"),
        nb::arg("rope_interleaved"), nb::arg("pool"), nb::arg("block_sparse") = nb::none(),
        "Rotate q and k, write k and v to the cache, attend. See phlite.ops.attention.");
}

}  // namespace phlite
