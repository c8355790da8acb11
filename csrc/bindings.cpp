// The module `phlite._native`: instruction sets, the thread pool, and the operations of every area.
#include "bindings.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "cpu/isa.h"
#include "cpu/limits.h"
#include "cpu/tuning.h"
#include "support/launch.h"

namespace nb = nanobind;
using namespace phlite;

namespace phlite {

// How long an interrupt (Ctrl-C) waits at most, beside the operation it meets.
constexpr int64_t kInterruptNs = 100'000'000;

void settle(ThreadPool& pool) {
  const std::vector<std::unique_ptr<Operation>> noted = pool.take_noted();  // let go under the lock
  std::vector<Operation*> in_order;
  in_order.reserve(noted.size());
  for (const auto& operation : noted) in_order.push_back(operation.get());
  for (size_t n_done = 0; n_done < in_order.size();) {
    {
      nb::gil_scoped_release release;
      n_done += pool.run_in_order(in_order.data() + n_done, in_order.size() - n_done, kInterruptNs);
    }
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
  }
}

}  // namespace phlite

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
  m.def("tuning_name", [] { return std::string(tuning().name); }, "The kind of processor that kernels are chosen for.");
  m.def("tuning_names", &tuning_names, "All kinds.");
  m.def("select_tuning", &select_tuning, nb::arg("name"),
        "Choose the kernels of another kind of processor, for tests; ValueError names the possible ones.");
  m.def("physical_core_count", &physical_core_count, "Physical cores this process may run on.");

  nb::class_<ThreadPool>(m, "ThreadPool", "Persistent worker threads shared by the operations of one model.")
      .def(nb::init<int>(), nb::arg("n_threads"))
      .def_prop_ro("n_threads", &ThreadPool::size)
      .def("defer", &ThreadPool::defer, "Note operations of this thread down; RuntimeError when that is so already.")
      .def(
          "add_lasting",
          [](ThreadPool& pool, const nb::ndarray<const float, nb::c_contig, nb::device::cpu>& array) {
            pool.add_lasting(array.data());
          },
          nb::arg("array").noconvert(), "The caller keeps this array until it stops deferring.")
      .def("settle", &settle, "Run what is noted down, in order.")
      .def(
          "stop_deferring",
          [](ThreadPool& pool) {
            pool.stop_deferring();
            pool.take_noted();
          },
          "Run operations at once again; what is noted down and not settled is dropped.");

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
