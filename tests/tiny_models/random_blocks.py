"""Random matrices drawn directly in any ggml block format, with the float values that they mean."""

from __future__ import annotations

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize
from numpy.typing import NDArray

# Byte offset of the float16 scale d, of the float16 offset (None where the format has none), and the offset that
# centres the values, in units of d.
_SCALES: dict[str, tuple[int, int | None, float]] = {
    "Q4_0": (0, None, 0.0),
    "Q4_1": (0, 2, -7.5),
    "Q5_0": (0, None, 0.0),
    "Q5_1": (0, 2, -15.5),
    "Q8_0": (0, None, 0.0),
    "Q2_K": (80, 82, 1.5),
    "Q3_K": (108, None, 0.0),
    "Q4_K": (0, 2, 7.5),
    "Q5_K": (0, 2, 15.5),
    "Q6_K": (208, None, 0.0),
    "IQ4_NL": (0, None, 0.0),
    "IQ4_XS": (0, None, 0.0),
}

BLOCK_FORMATS = ("F32", "F16", "BF16", *_SCALES)
"""Every format that a weight of a running model may have."""


def random_matrix(
    kind: str, n_rows: int, n_cols: int, std: float, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return the bytes of a matrix of this format, uint8[n_rows, row bytes], and its values, float32[n_rows, n_cols].

    The values have a mean near 0 and about the given standard deviation; each block has its own scale.
    """
    if kind in ("F32", "F16", "BF16"):
        values = rng.normal(0.0, std, (n_rows, n_cols)).astype(np.float32)
        if kind == "F32":
            return values.view(np.uint8), values
        data = gguf.quants.quantize(values, Type[kind])
        return data.view(np.uint8), dequantize(data, Type[kind])
    d_offset, offset_offset, centre = _SCALES[kind]
    block_elements, block_bytes = gguf.GGML_QUANT_SIZES[Type[kind]]
    n_blocks = n_rows * n_cols // block_elements
    blocks = rng.integers(0, 256, (n_blocks, block_bytes), dtype=np.uint8)

    def set_scales(d: NDArray[np.float64]) -> NDArray[np.float32]:
        blocks[:, d_offset : d_offset + 2] = d.astype("<f2").view(np.uint8).reshape(-1, 2)
        if offset_offset is not None:
            blocks[:, offset_offset : offset_offset + 2] = (d * centre).astype("<f2").view(np.uint8).reshape(-1, 2)
        return dequantize(blocks.reshape(n_rows, -1), Type[kind]).reshape(n_rows, n_cols)

    unit = set_scales(np.full(n_blocks, 2.0**-6))
    # Codes such as -8..7 have a mean of their own; scales of both signs keep it out of the matrix.
    signs = rng.choice([-1.0, 1.0], n_blocks) if offset_offset is None else 1.0
    jitter = rng.uniform(0.7, 1.3, n_blocks) * signs
    values = set_scales(jitter * 2.0**-6 * std / unit.std())
    return blocks.reshape(n_rows, -1), values
