// The module `phlite._native`: instruction sets, the thread pool, and the operations of every area.
#include "bindings.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "cpu/isa.h"
#include "cpu/limits.h"
#include "support/thread_pool.h"

namespace nb = nanobind;
using namespace phlite;

NB_MODULE(_native, m) {
  m.doc() = "Native operations of phlite. Private: use phlite.ops, which checks shapes and dtypes.";

  m.def("isa_name", [] { return std::string(isa_name(active_isa())); }, "The instruction set in use.");
  m.def(
      "supported_isas",
      [] {
        std::vector<std::string> names;
        for (Isa isa : supported_isas()) names.emplace_back(isa_name(isa));
        return names;
      },
      "Instruction sets of this machine, best first.");
  m.def("select_isa", &select_isa, nb::arg("name"), "Use another instruction set; ValueError names the possible ones.");
  m.def("physical_core_count", &physical_core_count, "Physical cores this process may run on.");

  nb::class_<ThreadPool>(m, "ThreadPool", "Persistent worker threads shared by the operations of one model.")
      .def(nb::init<int>(), nb::arg("n_threads"))
      .def_prop_ro("n_threads", &ThreadPool::size);

  const auto unlocked = nb::call_guard<nb::gil_scoped_release>();
  m.def("measure_read_bandwidth", &measure_read_bandwidth, nb::arg("pool"), nb::arg("n_bytes") = size_t{256} << 20,
        nb::arg("n_rounds") = 5, unlocked, "Bytes per second that the pool reads from memory.");
  m.def("measure_int8_peak", &measure_int8_peak, nb::arg("pool"), nb::arg("n_rounds") = 5, unlocked,
        "8-bit multiply-adds per second from registers; 0 without a byte dot product.");

  bind_formats(m);
  bind_matmul(m);
  bind_attention(m);
  bind_quantize(m);
  bind_moe(m);
}
