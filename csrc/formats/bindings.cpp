// phlite._native.dequantize and .embedding. They check what memory safety needs; phlite.ops.dequantize explains errors.
#include "bindings.h"

#include <nanobind/ndarray.h>

#include <limits>
#include <vector>

#include "formats/dequantize.h"
#include "support/fp16.h"

namespace nb = nanobind;

namespace phlite {
namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ids = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using NumpyVector = nb::ndarray<nb::numpy, float, nb::ndim<1>>;

// Bytes of n elements, or nothing sensible: raises ValueError for an unknown type or a part of a block.
int64_t checked_row_bytes(int type_id, int64_t n) {
  const BlockSize size = block_size(static_cast<GGMLType>(type_id));
  if (size.elements == 0) throw nb::value_error("unknown ggml type");
  if (n < 0 || n % size.elements != 0) throw nb::value_error("the number of elements is not a multiple of the block");
  if (n > std::numeric_limits<int64_t>::max() / 4) throw nb::value_error("too many elements");
  return row_bytes(static_cast<GGMLType>(type_id), n);
}

NumpyVector dequantize(Bytes data, int type_id, int64_t n) {
  if (checked_row_bytes(type_id, n) != static_cast<int64_t>(data.size())) {
    throw nb::value_error("the number of bytes does not fit the number of elements");
  }
  float* values = new float[static_cast<size_t>(n)];
  nb::capsule owner(values, [](void* memory) noexcept { delete[] static_cast<float*>(memory); });
  {
    nb::gil_scoped_release release;
    dequantize_row(static_cast<GGMLType>(type_id), data.data(), values, n);
  }
  return NumpyVector(values, {static_cast<size_t>(n)}, owner);
}

void embedding(Bytes data, int type_id, int64_t n_cols, Ids ids, Matrix out) {
  const int64_t n_row_bytes = checked_row_bytes(type_id, n_cols);
  const int64_t n_bytes = static_cast<int64_t>(data.size());
  if (n_row_bytes == 0 || n_bytes % n_row_bytes != 0) throw nb::value_error("the bytes are not a whole number of rows");
  if (out.shape(0) != ids.shape(0) || static_cast<int64_t>(out.shape(1)) != n_cols) {
    throw nb::value_error("out is not float32[len(ids), n_cols]");
  }
  const int64_t n_rows = n_bytes / n_row_bytes;
  std::vector<const uint8_t*> rows;  // a copy of the checked ids: another thread may write to them meanwhile
  rows.reserve(ids.size());
  for (size_t t = 0; t < ids.size(); ++t) {
    const int64_t id = ids.data()[t];
    if (id < 0 || id >= n_rows) throw nb::index_error("an id lies outside the table");
    rows.push_back(data.data() + id * n_row_bytes);
  }
  nb::gil_scoped_release release;
  for (size_t t = 0; t < rows.size(); ++t) {
    dequantize_row(static_cast<GGMLType>(type_id), rows[t], out.data() + static_cast<int64_t>(t) * n_cols, n_cols);
  }
}

}  // namespace

void bind_formats(nb::module_& m) {
  m.def("dequantize", &dequantize, nb::arg("data").noconvert(), nb::arg("type"), nb::arg("n"),
        "float32[n] of the blocks in data, uint8[n / block elements * block bytes].");
  m.def("embedding", &embedding, nb::arg("data").noconvert(), nb::arg("type"), nb::arg("n_cols"),
        nb::arg("ids").noconvert(), nb::arg("out").noconvert(),
        "Write rows ids (int32[T]) of the quantised table data (uint8[rows * row bytes]) to out (float32[T, n_cols]).");
  m.def("fp16_to_fp32", &fp16_to_fp32, nb::arg("bits"), "Value of the half with these 16 bits.");
  m.def("fp32_to_fp16", &fp32_to_fp16, nb::arg("value"), "Bits of the half nearest to value, ties to even.");
}

}  // namespace phlite
