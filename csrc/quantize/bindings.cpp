// phlite._native.quantize. It checks what memory safety needs; phlite.ops.quantize explains errors.
#include "bindings.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <limits>
#include <optional>

#include "quantize/quantize.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace phlite {
namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using OutBytes = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

bool run_quantize(Bytes x, int x_type, int64_t n_cols, const std::optional<Vector>& importance, int type, OutBytes out,
                  ThreadPool& pool) {
  QuantizeArgs args{};
  args.x_type = static_cast<GGMLType>(x_type);
  args.type = static_cast<GGMLType>(type);
  if (args.x_type != GGMLType::F32 && args.x_type != GGMLType::F16 && args.x_type != GGMLType::BF16)
    throw nb::value_error("the source is not F32, F16 or BF16");
  if (!can_quantize(args.type)) throw nb::value_error("the type cannot be written");
  if (n_cols <= 0 || n_cols % block_size(args.type).elements != 0 || n_cols > std::numeric_limits<int32_t>::max())
    throw nb::value_error("the number of columns is not a multiple of the block");
  const int64_t row = row_bytes(args.x_type, n_cols), n_bytes = static_cast<int64_t>(x.size());
  if (n_bytes % row != 0) throw nb::value_error("the source is not a whole number of rows");
  args.n_rows = n_bytes / row;
  args.n_cols = n_cols;
  if (static_cast<int64_t>(out.size()) != args.n_rows * row_bytes(args.type, n_cols))
    throw nb::value_error("out has another size than the quantised rows");
  if (importance) {
    if (static_cast<int64_t>(importance->size()) != n_cols) throw nb::value_error("importance is not float32[n_cols]");
    args.importance = importance->data();
  }
  args.x = x.data();
  args.out = out.data();
  nb::gil_scoped_release release;
  return quantize(args, pool);
}

}  // namespace

void bind_quantize(nb::module_& m) {
  m.def("quantize", &run_quantize, "x"_a.noconvert(), "x_type"_a, "n_cols"_a, "importance"_a.noconvert().none(),
        "type"_a, "out"_a.noconvert(), "pool"_a,
        "Write the rows of x (bytes of F32, F16 or BF16) to out in the blocks of type; False where a value is not "
        "finite or too large for it.");
}

}  // namespace phlite
