// One function per area adds its operations to the module; bindings.cpp calls them all.
#pragma once
#include <nanobind/nanobind.h>

namespace phlite {
void bind_formats(nanobind::module_& m);
void bind_matmul(nanobind::module_& m);
void bind_attention(nanobind::module_& m);
void bind_quantize(nanobind::module_& m);
void bind_moe(nanobind::module_& m);
}  // namespace phlite
