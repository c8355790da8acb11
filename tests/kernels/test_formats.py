"""Every block format: native code, NumPy definition and the gguf package agree to the bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from phlite import _native
from phlite.errors import ShapeError
from phlite.gguf import BLOCK_SIZES, GGMLType, tensor_bytes
from phlite.ops.dequantize import dequantize, embedding
from phlite.ops.reference import formats as reference

FORMATS = list(GGMLType)
HALF_FIELDS = {
    t: [n for n in ("d", "dmin", "m") if n in (dtype.names or ())] for t, dtype in reference.BLOCK_DTYPES.items()
}

# Halves that a scale can be: ordinary, zero of both signs, the smallest subnormal, the smallest normal, the largest.
EDGE_HALVES = np.array([0x3C00, 0xB800, 0x0000, 0x8000, 0x0001, 0x8001, 0x0400, 0x7BFF, 0xFBFF, 0x2E66], np.uint16)


def random_blocks(ggml_type: GGMLType, n_blocks: int, rng: np.random.Generator) -> np.ndarray:
    """uint8[n_blocks * block bytes]: any bits, but finite halves and floats."""
    data = rng.integers(0, 256, n_blocks * BLOCK_SIZES[ggml_type][1], dtype=np.uint8)
    if ggml_type is GGMLType.F32:
        data[3::4] &= 0xBF
    elif ggml_type in (GGMLType.F16, GGMLType.BF16):
        data[1::2] &= 0xBF
    else:
        blocks = data.view(reference.BLOCK_DTYPES[ggml_type])
        for name in HALF_FIELDS[ggml_type]:
            halves = (
                rng.integers(0, 0x7C00, n_blocks, dtype=np.uint16) | rng.integers(0, 2, n_blocks, dtype=np.uint16) << 15
            )
            halves[::2] = rng.choice(EDGE_HALVES, len(halves[::2]))
            blocks[name] = halves.view(np.float16)
    return data


def gguf_package(ggml_type: GGMLType, data: np.ndarray, n: int) -> np.ndarray:
    return gguf.quants.dequantize(data.reshape(1, -1), gguf.GGMLQuantizationType(ggml_type)).reshape(n)


def assert_same_bits(got: np.ndarray, expected: np.ndarray) -> None:
    assert got.dtype == expected.dtype == np.float32
    assert np.array_equal(got.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("ggml_type", FORMATS, ids=lambda t: t.name)
def test_native_values_equal_the_gguf_packages_bit_for_bit(ggml_type: GGMLType) -> None:
    n = 400 * BLOCK_SIZES[ggml_type][0]
    data = random_blocks(ggml_type, 400, np.random.default_rng(1))
    assert_same_bits(dequantize(data, ggml_type, (n,)), gguf_package(ggml_type, data, n))


@pytest.mark.parametrize("ggml_type", FORMATS, ids=lambda t: t.name)
def test_reference_values_equal_the_gguf_packages_bit_for_bit(ggml_type: GGMLType) -> None:
    n = 400 * BLOCK_SIZES[ggml_type][0]
    data = random_blocks(ggml_type, 400, np.random.default_rng(2))
    assert_same_bits(reference.dequantize(data, ggml_type, (n,)), gguf_package(ggml_type, data, n))


@pytest.mark.parametrize("ggml_type", list(reference.BLOCK_DTYPES), ids=lambda t: t.name)
def test_infinite_and_nan_scales_spoil_the_same_values_everywhere(ggml_type: GGMLType) -> None:
    data = random_blocks(ggml_type, 6, np.random.default_rng(3))
    blocks = data.view(reference.BLOCK_DTYPES[ggml_type])
    for name in HALF_FIELDS[ggml_type]:
        blocks[name] = np.array([0x7C00, 0xFC00, 0x7E00, 0xFE01, 0x7C01, 0x3C00], np.uint16).view(np.float16)
    shape = (6 * BLOCK_SIZES[ggml_type][0],)
    got, expected = dequantize(data, ggml_type, shape), reference.dequantize(data, ggml_type, shape)
    assert np.array_equal(np.isnan(got), np.isnan(expected))
    assert np.array_equal(got[~np.isnan(got)], expected[~np.isnan(expected)])


# A block of each format whose byte i is (37 i + 11) mod 256, then d = 0.5, dmin = 0.25, m = -0.25: some of its values,
# their sum and the sum of their squares, computed with gguf-py once and kept, so that not all rests on one oracle.
SELF_CHECK: dict[GGMLType, tuple[dict[int, float], float, float]] = {
    GGMLType.Q4_0: ({0: -1.5, 1: 1, 15: -4, 16: -1.5, 31: 0}, -10.5, 161.25),
    GGMLType.Q4_1: ({0: 7.25, 1: 1.75, 15: 4.75, 16: 4.25, 31: 5.75}, 114.5, 572.5),
    GGMLType.Q5_0: ({0: 4.5, 1: -1, 15: -6, 16: 7, 31: 0.5}, 7.5, 656.75),
    GGMLType.Q5_1: ({0: 9.25, 1: 11.75, 15: 14.75, 16: 9.25, 31: 2.25}, 244.5, 2572),
    GGMLType.Q8_0: ({0: 42.5, 1: 61, 15: -64, 16: -45.5, 31: -24}, -88, 47564),
    GGMLType.IQ4_NL: ({0: -17.5, 1: 12.5, 15: -63.5, 16: -17.5, 31: 0.5}, -128.5, 33573.25),
    GGMLType.Q2_K: (
        {0: 16.5, 1: 0, 16: -0.75, 32: 3.75, 64: 5.25, 127: 21, 128: 3.75, 200: 4, 255: 2.25},
        1029.5,
        13619,
    ),
    GGMLType.Q3_K: ({0: 40.5, 1: -54, 16: -48, 32: -11, 64: 17, 127: 36, 128: 1, 200: 12.5, 255: 21}, 479, 142176.5),
    GGMLType.Q4_K: (
        {0: 157.75, 1: -12.75, 16: 157.75, 32: 4, 64: 210.25, 127: 40.5, 128: 211.5, 200: 69.25, 255: 24.25},
        27220,
        6041305,
    ),
    GGMLType.Q5_K: (
        {0: 405.75, 1: -12.75, 16: 405.75, 32: 56, 64: 210.25, 127: -1.5, 128: 523.5, 200: 69.25, 255: 54.25},
        58108,
        25707205,
    ),
    GGMLType.Q6_K: (
        {0: -715.5, 1: 848, 16: -216, 32: 115.5, 64: -1520, 127: 750, 128: -175.5, 200: 544.5, 255: -30},
        2306,
        118475065,
    ),
    GGMLType.IQ4_XS: (
        {0: 32.5, 1: -0.5, 16: 32.5, 32: 227.5, 64: 390, 127: 98, 128: -292.5, 200: 570, 255: -8},
        -5502.5,
        60747839.25,
    ),
}


@pytest.mark.parametrize("ggml_type", list(SELF_CHECK), ids=lambda t: t.name)
def test_known_blocks_have_their_known_values(ggml_type: GGMLType) -> None:
    n, n_bytes = BLOCK_SIZES[ggml_type]
    data = ((37 * np.arange(n_bytes) + 11) % 256).astype(np.uint8)
    block = data.view(reference.BLOCK_DTYPES[ggml_type])
    for name, value in {"d": 0.5, "dmin": 0.25, "m": -0.25}.items():
        if name in HALF_FIELDS[ggml_type]:
            block[name] = value
    samples, total, squares = SELF_CHECK[ggml_type]
    values = dequantize(data, ggml_type, (n,))
    assert {i: values[i].item() for i in samples} == samples
    assert values.sum(dtype=np.float64) == total
    assert np.square(values, dtype=np.float64).sum() == squares


@pytest.mark.parametrize("ggml_type", FORMATS, ids=lambda t: t.name)
@pytest.mark.parametrize("misalignment", [1, 2, 3, 7])
def test_data_at_any_address_is_read(ggml_type: GGMLType, misalignment: int) -> None:
    n = 5 * BLOCK_SIZES[ggml_type][0]
    data = random_blocks(ggml_type, 5, np.random.default_rng(4))
    shifted = np.zeros(data.size + 64, np.uint8)
    start = -shifted.ctypes.data % 64 + misalignment
    shifted[start : start + data.size] = data
    assert_same_bits(dequantize(shifted[start : start + data.size], ggml_type, (n,)), dequantize(data, ggml_type, (n,)))


@pytest.mark.parametrize("ggml_type", FORMATS, ids=lambda t: t.name)
def test_embedding_rows_equal_the_rows_of_the_dequantised_table(ggml_type: GGMLType) -> None:
    n_cols = 3 * BLOCK_SIZES[ggml_type][0]
    data = random_blocks(ggml_type, 7 * 3, np.random.default_rng(5))
    ids = np.array([6, 0, 3, 3, 1], np.int32)
    expected = dequantize(data, ggml_type, (7, n_cols))[ids]
    assert_same_bits(embedding(data, ggml_type, n_cols, ids), expected)
    assert_same_bits(reference.embedding(data, ggml_type, n_cols, ids), expected)


def test_no_ids_give_no_rows() -> None:
    out = embedding(np.zeros(4 * 34, np.uint8), GGMLType.Q8_0, 32, np.zeros(0, np.int32))
    assert out.shape == (0, 32)


@pytest.mark.parametrize("bad", [-1, 4, 2**31 - 1, -(2**31)])
def test_ids_outside_the_table_are_refused(bad: int) -> None:
    with pytest.raises(ShapeError, match=r"expected 0 to 3"):
        embedding(np.zeros(4 * 34, np.uint8), GGMLType.Q8_0, 32, np.array([0, bad], np.int32))


@pytest.mark.parametrize(
    ("n_bytes", "n_cols", "ids"),
    [
        (4 * 34, 31, np.zeros(1, np.int32)),
        (4 * 34 - 1, 32, np.zeros(1, np.int32)),
        (4 * 34, 0, np.zeros(1, np.int32)),
        (4 * 34, -32, np.zeros(1, np.int32)),
        (4 * 34, 32, np.zeros(1, np.int64)),
        (4 * 34, 32, np.zeros((1, 1), np.int32)),
        (4 * 34, 32, np.zeros(4, np.int32)[::2]),
    ],
)
def test_wrong_embedding_arguments_are_refused(n_bytes: int, n_cols: int, ids: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="embedding"):
        embedding(np.zeros(n_bytes, np.uint8), GGMLType.Q8_0, n_cols, ids)


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        (np.zeros(34, np.uint8), ()),
        (np.zeros(34, np.uint8), (16,)),
        (np.zeros(34, np.uint8), (64,)),
        (np.zeros(34, np.uint8), (-1, -32)),
        (np.zeros(68, np.uint8)[::2], (32,)),
        (np.zeros(34, np.int8), (32,)),
    ],
)
def test_wrong_dequantise_arguments_are_refused(data: np.ndarray, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="dequantize"):
        dequantize(data, GGMLType.Q8_0, shape)


@pytest.mark.parametrize(
    ("type_id", "n", "n_bytes"), [(9, 32, 36), (-1, 32, 34), (8, 32, 33), (8, -32, 34), (8, 2**62, 34)]
)
def test_native_code_refuses_sizes_that_do_not_fit_by_itself(type_id: int, n: int, n_bytes: int) -> None:
    with pytest.raises(ValueError, match=r"type|elements"):
        _native.dequantize(np.zeros(n_bytes, np.uint8), type_id, n)


def test_read_only_data_is_accepted() -> None:
    data = np.zeros(tensor_bytes(GGMLType.Q4_K, (256,)), np.uint8)
    data.flags.writeable = False
    assert dequantize(data, GGMLType.Q4_K, (1, 256)).tolist() == [[0.0] * 256]


def test_all_halves_convert_to_the_float_of_numpy() -> None:
    halves = np.arange(65536, dtype=np.uint16)
    expected = halves.view(np.float16).astype(np.float32)
    got = np.array([_native.fp16_to_fp32(int(bits)) for bits in halves], np.float32)
    nan = np.isnan(expected)
    assert np.array_equal(np.isnan(got), nan)
    assert np.array_equal(got[~nan].view(np.uint32), expected[~nan].view(np.uint32))


def test_floats_round_to_the_half_of_numpy() -> None:
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = (halves[:-1] + halves[1:]) / 2
    values = np.concatenate(
        [halves, between, np.nextafter(between, np.float32(0)), np.nextafter(between, np.float32(np.inf))]
    )
    edges = np.array([65519.99, 65520, 65536, 1e30, np.inf, 2**-24, 2**-25, 1.5 * 2**-25, 1e-45, 0], np.float32)
    values = np.concatenate([values, edges, -values, -edges])
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16).view(np.uint16)
    got = np.array([_native.fp32_to_fp16(float(value)) for value in values], np.uint16)
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("sign", [0.0, -0.0])
def test_nan_stays_nan_as_a_half(sign: float) -> None:
    half = np.array([_native.fp32_to_fp16(float(np.copysign(np.nan, sign)))], np.uint16)
    assert np.isnan(half.view(np.float16)).all()
