"""Random matrices in every block format, and memory that ends at a page's end."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

from phlite import _native, ops
from phlite.gguf import BLOCK_SIZES, GGMLType
from phlite.ops.reference import formats as reference_formats

OWN_TUNING = _native.tuning_name()
_BEST, *_OTHERS = ops.supported_isas()
# Every instruction set of this machine: the best one with the kernels of every kind of processor, further ones with the
# two kinds that ask for weights ahead in different ways, the definition last.
KERNELS = [
    *(f"{_BEST}/{tuning}" for tuning in _native.tuning_names()),
    *(f"{isa}/{tuning}" for isa in _OTHERS[:-1] for tuning in ("zen3", "zen5")),
    "scalar",
]


def select_kernels(name: str) -> None:
    """Use an instruction set, with the kernels of a kind of processor where one is named behind a slash."""
    isa, _, tuning = name.partition("/")
    ops.select_isa(isa)
    _native.select_tuning(tuning or OWN_TUNING)


def random_matrix(ggml_type: GGMLType, n_rows: int, n_cols: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Bytes uint8[n] and values float32[n_rows, n_cols]: any codes and packed scales, float16 scales around 0.01."""
    rng = np.random.default_rng(seed)
    elements, n_bytes = BLOCK_SIZES[ggml_type]
    n_blocks = n_rows * n_cols // elements
    if ggml_type is GGMLType.F32:
        data = rng.standard_normal(n_blocks, np.float32).view(np.uint8)
    elif ggml_type is GGMLType.F16:
        data = rng.standard_normal(n_blocks, np.float32).astype(np.float16).view(np.uint8)
    elif ggml_type is GGMLType.BF16:
        data = (rng.standard_normal(n_blocks, np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    else:
        data = rng.integers(0, 256, n_blocks * n_bytes, dtype=np.uint8)
        blocks = data.view(reference_formats.BLOCK_DTYPES[ggml_type])
        for name in ("d", "dmin", "m"):
            if name in (blocks.dtype.names or ()):
                blocks[name] = rng.uniform(-0.02, 0.02, n_blocks).astype(np.float16)
    return data, reference_formats.dequantize(data, ggml_type, (n_rows, n_cols))


def at_page_end(data: np.ndarray) -> np.ndarray:
    """A copy of uint8[n] whose last byte is the last of a page followed by a page without access."""
    page = mmap.PAGESIZE
    n_pages = -(-data.nbytes // page)
    area = mmap.mmap(-1, (n_pages + 1) * page)
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    assert libc.mprotect(ctypes.c_void_p(address + n_pages * page), page, 0) == 0
    view = np.frombuffer(area, np.uint8)[n_pages * page - data.nbytes : n_pages * page]
    view[:] = data
    return view


def floats_at_page_end(values: np.ndarray) -> np.ndarray:
    """A copy of a C-contiguous float32 array before a page without access."""
    return at_page_end(values.view(np.uint8).reshape(-1)).view(np.float32).reshape(values.shape)
