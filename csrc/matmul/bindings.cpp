// Packed matrices and the linear operation for Python. Shapes are checked here once, and again nowhere.
#include "bindings.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <limits>
#include <stdexcept>
#include <string>
#include <tuple>

#include "matmul/linear.h"
#include "support/launch.h"

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

Activation activation_of(const std::string& name, std::optional<float> gegelu_limit) {
  Activation activation;
  if (name == "none")
    activation = Activation::none;
  else if (name == "swiglu")
    activation = Activation::swiglu;
  else if (name == "gelu_tanh")
    activation = Activation::gelu_tanh;
  else if (name == "gegelu")
    activation = Activation::gegelu;
  else
    throw std::invalid_argument("activation '" + name.substr(0, 40) +
                                "', expected 'none', 'swiglu', 'gelu_tanh' or 'gegelu'");
  if (gegelu_limit && activation != Activation::gegelu)
    throw std::invalid_argument("gegelu_limit is given with activation '" + name + "', which has no limit");
  if (gegelu_limit && !(*gegelu_limit > 0)) throw std::invalid_argument("gegelu_limit must be above 0");
  return activation;
}

Norm norm_of(const In1& weight, const std::optional<In1>& bias, float eps, int64_t n_cols) {
  check_shape("norm_weight", 1, weight.shape(0), 1, n_cols);
  if (bias) check_shape("norm_bias", 1, bias->shape(0), 1, n_cols);
  return {weight.data(), bias ? bias->data() : nullptr, eps};
}

void run_norm(const In2& x, const In1& weight, float eps, const std::optional<In1>& bias, const Out2& out,
              ThreadPool* pool) {
  const int64_t n_rows = static_cast<int64_t>(x.shape(0)), n_cols = static_cast<int64_t>(x.shape(1));
  if (n_cols == 0) throw std::invalid_argument("x has no columns");
  check_shape("out", out.shape(0), out.shape(1), n_rows, n_cols);
  const Norm n = norm_of(weight, bias, eps, n_cols);
  if (n_rows == 0) return;
  if (pool && pool->deferring()) settle(*pool);
  nb::gil_scoped_release release;
  norm(n, x.data(), n_rows, n_cols, out.data(), pool);
}

void run_linear(const PackedMatrix& w, const In2& x, const Out2& out, ThreadPool& pool,
                const std::optional<In1>& norm_weight, float eps, const std::optional<In2>& residual,
                const std::optional<Rows>& rows, const std::optional<In1>& norm_bias, const std::optional<In1>& bias,
                const std::optional<In2>& addend) {
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
  if (norm_weight) a.norm = norm_of(*norm_weight, norm_bias, eps, w.n_cols());
  if (norm_bias && !norm_weight) throw std::invalid_argument("norm_bias is given without norm_weight");
  if (bias) {
    check_shape("bias", 1, bias->shape(0), 1, w.n_rows());
    a.bias = bias->data();
  }
  if (addend) {
    check_shape("addend", addend->shape(0), addend->shape(1), a.n_rows, w.n_rows());
    a.addend = addend->data();
  }
  if (residual) {
    check_shape("residual", residual->shape(0), residual->shape(1), a.n_x_rows, w.n_outputs());
    a.residual = residual->data();
  }
  if (a.n_rows == 0) return;
  launch(pool, LinearOperation(a, w, pool.size()), nb::find(w), x, out, norm_weight, residual, rows, norm_bias, bias,
         addend);
}

}  // namespace

void bind_matmul(nb::module_& m) {
  nb::class_<PackedMatrix>(m, "PackedMatrix", "A weight matrix repacked into tiles of sixteen rows.")
      .def(
          "__init__",
          [](PackedMatrix* self, const std::vector<std::tuple<Bytes, int, int64_t>>& parts, int64_t n_cols,
             const std::string& activation, std::optional<float> gegelu_limit,
             const std::vector<std::tuple<uintptr_t, int64_t, int, std::string>>& files,
             const std::optional<Bytes>& stored, ThreadPool& pool) {
            const Activation kind = activation_of(activation, gegelu_limit);
            const float limit = gegelu_limit.value_or(std::numeric_limits<float>::infinity());
            std::vector<MatrixPart> list;
            for (const auto& [data, type, n_rows] : parts)
              list.push_back({data.data(), static_cast<int64_t>(data.size()), type, n_rows});
            PackedMatrix::StoredTiles tiles;
            if (stored) tiles = {stored->data(), static_cast<int64_t>(stored->size())};
            std::vector<SourceFile> opened;
            for (const auto& [address, n_bytes, descriptor, name] : files)
              opened.push_back({reinterpret_cast<const uint8_t*>(address), n_bytes, descriptor, name});
            try {
              nb::gil_scoped_release release;
              new (self) PackedMatrix(list, n_cols, kind, limit, opened, tiles, pool);
            } catch (const SourceError& error) {
              PyErr_SetString(PyExc_OSError, error.what());
              throw nb::python_error();
            }
          },
          "parts"_a, "n_cols"_a, "activation"_a, "gegelu_limit"_a.none(), "files"_a, "stored"_a.none(), "pool"_a,
          nb::keep_alive<1, 7>())
      .def_prop_ro(
          "tiles",
          [](const PackedMatrix& self) {
            return nb::ndarray<const uint8_t, nb::numpy, nb::ndim<1>>(self.storage(), {size_t(self.n_bytes())});
          },
          nb::rv_policy::reference_internal, "uint8[n_bytes], the packed tiles, read-only")
      .def_prop_ro("n_rows", &PackedMatrix::n_rows)
      .def_prop_ro("n_cols", &PackedMatrix::n_cols)
      .def_prop_ro("n_outputs", &PackedMatrix::n_outputs)
      .def_prop_ro("n_bytes", &PackedMatrix::n_bytes);
  m.attr("PACKED_LAYOUT") = kPackedLayout;
  m.def("linear", &run_linear, "w"_a, "x"_a.noconvert(), "out"_a.noconvert(), "pool"_a,
        "norm_weight"_a.noconvert() = nb::none(), "eps"_a = 0.0f, "residual"_a.noconvert() = nb::none(),
        "rows"_a.noconvert() = nb::none(), "norm_bias"_a.noconvert() = nb::none(), "bias"_a.noconvert() = nb::none(),
        "addend"_a.noconvert() = nb::none());
  m.def("norm", &run_norm, "x"_a.noconvert(), "weight"_a.noconvert(), "eps"_a, "bias"_a.noconvert().none(),
        "out"_a.noconvert(), "pool"_a.none());
}

}  // namespace phlite
