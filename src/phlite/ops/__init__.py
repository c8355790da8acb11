"""One function per native operation: check shapes and dtypes, call the native module.

`ops.reference` defines the same operations in NumPy.
"""

from __future__ import annotations

from phlite._native import (
    isa_name,
    measure_int8_peak,
    measure_read_bandwidth,
    physical_core_count,
    supported_isas,
)
from phlite.ops.attention import AttentionBatch, BlockSparse, KVCache, attention
from phlite.ops.deferred import Deferred
from phlite.ops.dequantize import dequantize, embedding
from phlite.ops.isa import select_forced_isa, select_isa
from phlite.ops.linear import PACKED_LAYOUT, Activation, PackedMatrix, ThreadPool, linear, norm, pack_matrix
from phlite.ops.moe import Experts, mix, route
from phlite.ops.quantize import QUANTIZABLE, quantize, quantize_bytes

__all__ = [
    "PACKED_LAYOUT",
    "QUANTIZABLE",
    "Activation",
    "AttentionBatch",
    "BlockSparse",
    "Deferred",
    "Experts",
    "KVCache",
    "PackedMatrix",
    "ThreadPool",
    "attention",
    "dequantize",
    "embedding",
    "isa_name",
    "linear",
    "measure_int8_peak",
    "measure_read_bandwidth",
    "mix",
    "norm",
    "pack_matrix",
    "physical_core_count",
    "quantize",
    "quantize_bytes",
    "route",
    "select_isa",
    "supported_isas",
]

select_forced_isa()
