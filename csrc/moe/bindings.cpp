// The router and the experts for Python. What can be wrong with a call is checked here, once.
#include "bindings.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>

#include "moe/experts.h"
#include "moe/route.h"
#include "support/launch.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace phlite {
namespace {

using In2 = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Out2 = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using In1 = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using OutIds = nb::ndarray<int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void run_route(const In2& scores, double jitter_eps, const OutIds& experts, const Out2& weights) {
  const int64_t n_rows = static_cast<int64_t>(scores.shape(0)), n_experts = static_cast<int64_t>(scores.shape(1));
  if (n_experts < moe::kExpertsPerToken || n_experts > moe::kMaxExperts)
    throw std::invalid_argument(std::to_string(n_experts) + " experts, expected 2 to " +
                                std::to_string(moe::kMaxExperts));
  for (int64_t t = 0; t < n_rows; ++t) {
    const moe::Route r = moe::route(scores.data() + t * n_experts, n_experts, jitter_eps);
    for (int slot = 0; slot < moe::kExpertsPerToken; ++slot) {
      experts.data()[t * moe::kExpertsPerToken + slot] = r.expert[slot];
      weights.data()[t * moe::kExpertsPerToken + slot] = r.weight[slot];
    }
  }
}

void check_rows(const char* what, size_t n_rows, size_t n_cols, size_t want_rows, size_t want_cols) {
  if (n_rows != want_rows || n_cols != want_cols)
    throw std::invalid_argument(std::string(what) + " has shape [" + std::to_string(n_rows) + ", " +
                                std::to_string(n_cols) + "], expected [" + std::to_string(want_rows) + ", " +
                                std::to_string(want_cols) + "]");
}

void run_mix(const moe::Experts& experts, const In2& x, const In1& norm_weight, const In1& norm_bias, float eps,
             double jitter_eps, const In2& residual, const Out2& out, ThreadPool& pool) {
  const size_t n_rows = x.shape(0), n_hidden = static_cast<size_t>(experts.n_hidden());
  if (n_rows >= (size_t{1} << 30)) throw std::invalid_argument("too many rows");
  check_rows("x", n_rows, x.shape(1), n_rows, n_hidden);
  check_rows("norm_weight", 1, norm_weight.shape(0), 1, n_hidden);
  check_rows("norm_bias", 1, norm_bias.shape(0), 1, n_hidden);
  check_rows("residual", residual.shape(0), residual.shape(1), n_rows, n_hidden);
  check_rows("out", out.shape(0), out.shape(1), n_rows, n_hidden);
  if (n_rows == 0) return;
  if (pool.deferring()) settle(pool);
  nb::gil_scoped_release released;
  moe::mix({x.data(),
            static_cast<int64_t>(n_rows),
            {norm_weight.data(), norm_bias.data(), eps},
            jitter_eps,
            residual.data(),
            out.data()},
           experts, pool);
}

}  // namespace

void bind_moe(nb::module_& m) {
  nb::class_<moe::Experts>(m, "Experts", "The router and the experts of one layer.")
      .def(nb::init<const PackedMatrix*, std::vector<const PackedMatrix*>, std::vector<const PackedMatrix*>>(),
           "router"_a, "gate_up"_a, "down"_a, nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(), nb::keep_alive<1, 4>())
      .def_prop_ro("n_experts", &moe::Experts::size)
      .def_prop_ro("n_hidden", &moe::Experts::n_hidden);
  m.def("mix", &run_mix, "experts"_a, "x"_a.noconvert(), "norm_weight"_a.noconvert(), "norm_bias"_a.noconvert(),
        "eps"_a, "jitter_eps"_a, "residual"_a.noconvert(), "out"_a.noconvert(), "pool"_a);
  m.def("route", &run_route, "scores"_a.noconvert(), "jitter_eps"_a, "experts"_a.noconvert(), "weights"_a.noconvert());
}

}  // namespace phlite
