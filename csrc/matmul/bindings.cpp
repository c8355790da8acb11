// Packed matrices and the linear operation for Python. Shapes are checked here once, and again nowhere.
#include "bindings.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <tuple>

#include "matmul/linear.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace phlite {
namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using In2 = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Out2 = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using In1 = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

std::string shape_text(size_t a, size_t b) { return "[" + std::to_string(a) + ", " + std::to_string(b) + "]"; }

void check_shape(const char* what, size_t a, size_t b, int64_t want_a, int64_t want_b) {
  if (static_cast<int64_t>(a) != want_a || static_cast<int64_t>(b) != want_b)
    throw std::invalid_argument(std::string(what) + " has shape " + shape_text(a, b) + ", expected " +
                                shape_text(size_t(want_a), size_t(want_b)));
}

void run_linear(const PackedMatrix& w, const In2& x, const Out2& out, ThreadPool& pool,
                const std::optional<In1>& norm_weight, float eps, const std::optional<In2>& residual,
                const std::optional<Rows>& rows) {
  LinearArgs a;
  a.x = x.data();
  a.n_x_rows = static_cast<int64_t>(x.shape(0));
  check_shape("x", x.shape(0), x.shape(1), a.n_x_rows, w.n_cols());
  a.n_rows = a.n_x_rows;
  if (rows) {
    a.rows = rows->data();
    a.n_rows = static_cast<int64_t>(rows->shape(0));
    for (int64_t i = 0; i < a.n_rows; ++i)
      if (a.rows[i] < 0 || a.rows[i] >= a.n_x_rows)
        throw std::invalid_argument("rows[" + std::to_string(i) + "] = " + std::to_string(a.rows[i]) + " of " +
                                    std::to_string(a.n_x_rows) + " rows");
  }
  check_shape("out", out.shape(0), out.shape(1), a.n_rows, w.n_outputs());
  a.out = out.data();
  if (norm_weight) {
    check_shape("norm_weight", 1, norm_weight->shape(0), 1, w.n_cols());
    a.norm_weight = norm_weight->data();
    a.eps = eps;
  }
  if (residual) {
    check_shape("residual", residual->shape(0), residual->shape(1), a.n_rows, w.n_outputs());
    a.residual = residual->data();
  }
  if (a.n_rows == 0) return;
  nb::gil_scoped_release release;
  linear(a, w, pool);
}

}  // namespace

void bind_matmul(nb::module_& m) {
  nb::class_<PackedMatrix>(m, "PackedMatrix", "A weight matrix repacked into tiles of sixteen rows.")
      .def(
          "__init__",
          [](PackedMatrix* self, const std::vector<std::tuple<Bytes, int, int64_t>>& parts, int64_t n_cols, bool swiglu,
             bool release_source, ThreadPool& pool) {
            std::vector<MatrixPart> list;
            for (const auto& [data, type, n_rows] : parts)
              list.push_back({data.data(), static_cast<int64_t>(data.size()), type, n_rows});
            nb::gil_scoped_release release;
            new (self) PackedMatrix(list, n_cols, swiglu, release_source, pool);
          },
          "parts"_a, "n_cols"_a, "swiglu"_a, "release_source"_a, "pool"_a)
      .def_prop_ro("n_rows", &PackedMatrix::n_rows)
      .def_prop_ro("n_cols", &PackedMatrix::n_cols)
      .def_prop_ro("n_outputs", &PackedMatrix::n_outputs)
      .def_prop_ro("n_bytes", &PackedMatrix::n_bytes);
  m.def("linear", &run_linear, "w"_a, "x"_a.noconvert(), "out"_a.noconvert(), "pool"_a,
        "norm_weight"_a.noconvert() = nb::none(), "eps"_a = 0.0f, "residual"_a.noconvert() = nb::none(),
        "rows"_a.noconvert() = nb::none());
}

}  // namespace phlite
