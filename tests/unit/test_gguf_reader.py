"""Reading sound files: everything that the gguf package writes comes back equal, without a copy and in time."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

from phlite.errors import ModelFileError, UnsupportedModelError
from phlite.gguf import BLOCK_SIZES, FileType, GGMLType, ValueType, file_type_name, load_gguf, tensor_bytes


@pytest.fixture
def oracle_file(tmp_path: Path) -> Path:
    """A file of the gguf package with one value of each type and three tensors."""
    path = tmp_path / "oracle.gguf"
    writer = gguf.GGUFWriter(path, "phi3")
    writer.add_uint8("u8", 255)
    writer.add_int8("i8", -128)
    writer.add_uint16("u16", 65535)
    writer.add_int16("i16", -32768)
    writer.add_uint32("u32", 2**32 - 1)
    writer.add_int32("i32", -(2**31))
    writer.add_uint64("u64", 2**64 - 1)
    writer.add_int64("i64", -(2**63))
    writer.add_float32("f32", 0.1)
    writer.add_float64("f64", 0.1)
    writer.add_bool("bool", True)
    writer.add_string("string", "zwölf 🏒\n")
    writer.add_array("strings", ["<s>", "", "▁the", "é"])
    writer.add_array("ints", [1, -2, 3])
    writer.add_array("floats", [0.5, -1.5])
    writer.add_array("bools", [True, False])
    writer.add_tensor("matrix", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.add_tensor("vector", np.arange(5, dtype=np.float16))
    writer.add_tensor(
        "experts", np.arange(2 * 3 * 34, dtype=np.uint8).reshape(2, 3, 34), raw_dtype=gguf.GGMLQuantizationType.Q8_0
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_scalar_values_have_the_types_and_values_of_the_file(oracle_file: Path) -> None:
    with load_gguf(oracle_file) as file:
        got = {key: value for key, value in file.metadata.items() if isinstance(value, (str, bool, int, float))}
    assert got == {
        "general.architecture": "phi3",
        "u8": 255,
        "i8": -128,
        "u16": 65535,
        "i16": -32768,
        "u32": 2**32 - 1,
        "i32": -(2**31),
        "u64": 2**64 - 1,
        "i64": -(2**63),
        "f32": float(np.float32(0.1)),
        "f64": 0.1,
        "bool": True,
        "string": "zwölf 🏒\n",
    }
    assert type(got["bool"]) is bool
    assert type(got["u8"]) is int


def test_string_arrays_become_lists(oracle_file: Path) -> None:
    with load_gguf(oracle_file) as file:
        assert file.metadata["strings"] == ["<s>", "", "▁the", "é"]


@pytest.mark.parametrize("lengths", [[255, 256, 257], [0, 65536, 3], [512], [256 * 7, 0, 0]])
def test_array_strings_of_any_length_are_found(tmp_path: Path, lengths: list[int]) -> None:
    strings = ["x" * length for length in lengths]
    writer = gguf.GGUFWriter(tmp_path / "long.gguf", "phi3")
    writer.add_array("strings", strings)
    writer.add_string("after", "the end")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with load_gguf(tmp_path / "long.gguf") as file:
        assert file.metadata["strings"] == strings
        assert file.metadata["after"] == "the end"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("ints", np.array([1, -2, 3], np.int32)),
        ("floats", np.array([0.5, -1.5], np.float32)),
        ("bools", np.array([True, False])),
    ],
)
def test_number_arrays_become_read_only_numpy_arrays(oracle_file: Path, key: str, expected: np.ndarray) -> None:
    with load_gguf(oracle_file) as file:
        got = file.metadata[key]
    assert isinstance(got, np.ndarray)
    assert got.dtype == expected.dtype
    assert got.tolist() == expected.tolist()
    assert not got.flags.writeable


def test_value_types_of_the_file_are_known(oracle_file: Path) -> None:
    with load_gguf(oracle_file) as file:
        assert file.metadata.value_type("u16") is ValueType.UINT16
        assert file.metadata.value_type("strings") is ValueType.STRING
        assert file.metadata.value_type("absent") is None


def test_shapes_are_row_major(oracle_file: Path) -> None:
    with load_gguf(oracle_file) as file:
        shapes = {name: (tensor.shape, tensor.type) for name, tensor in file.tensors.items()}
    assert shapes == {
        "matrix": ((3, 4), GGMLType.F32),
        "vector": ((5,), GGMLType.F16),
        "experts": ((2, 3, 32), GGMLType.Q8_0),
    }


def test_tensor_bytes_equal_those_of_the_gguf_package(oracle_file: Path) -> None:
    with load_gguf(oracle_file) as file:
        for expected in gguf.GGUFReader(oracle_file).tensors:
            got = file.tensors[expected.name]
            assert got.data.tobytes() == expected.data.tobytes()
            assert got.offset_bytes == expected.data_offset
            assert got.n_elements == expected.n_elements


def test_tensor_data_is_a_read_only_view_that_outlives_the_file_object(oracle_file: Path) -> None:
    with load_gguf(oracle_file) as file:
        data = file.tensors["matrix"].data
    del file
    gc.collect()
    assert not data.flags.writeable
    assert not data.flags.owndata
    assert data.view(np.float32).tolist() == list(range(12))


def test_closing_drops_the_tensors_and_keeps_the_metadata(oracle_file: Path) -> None:
    file = load_gguf(oracle_file)
    file.close()
    file.close()
    assert file.tensors == {}
    assert file.metadata.get_str_array("strings")[2] == "▁the"


def test_released_tensors_can_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    values = np.arange(100_000, dtype=np.float32)
    writer = gguf.GGUFWriter(path, "phi3")
    writer.add_tensor("big", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with load_gguf(path) as file:
        tensor = file.tensors["big"]
        assert np.array_equal(tensor.data.view(np.float32), values)
        file.release(tensor)
        assert np.array_equal(tensor.data.view(np.float32), values)


def test_other_alignments_are_followed(tmp_path: Path) -> None:
    path = tmp_path / "aligned.gguf"
    writer = gguf.GGUFWriter(path, "phi3")
    writer.add_custom_alignment(256)
    writer.add_tensor("a", np.arange(3, dtype=np.float32))
    writer.add_tensor("b", np.arange(3, 6, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with load_gguf(path) as file:
        assert file.tensors["b"].offset_bytes % 256 == 0
        assert file.tensors["b"].data.view(np.float32).tolist() == [3, 4, 5]


def test_version_2_is_read_like_version_3(oracle_file: Path) -> None:
    raw = bytearray(oracle_file.read_bytes())
    raw[4] = 2
    oracle_file.write_bytes(raw)
    with load_gguf(oracle_file) as file:
        assert file.metadata["u32"] == 2**32 - 1


def test_a_file_without_tensors_is_read(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
    with load_gguf(path) as file:
        assert len(file.metadata) == 0
        assert file.tensors == {}
        assert file.paths == (path,)
        assert file.n_bytes == 24


def test_block_sizes_equal_those_of_the_gguf_package() -> None:
    assert {int(t): size for t, size in BLOCK_SIZES.items()} == {
        int(t): size for t, size in gguf.GGML_QUANT_SIZES.items() if int(t) in set(GGMLType)
    }


def test_every_tensor_type_of_ggml_is_supported_or_refused_by_name(tmp_path: Path) -> None:
    for known in gguf.GGMLQuantizationType:
        path = tmp_path / f"{known.name}.gguf"
        writer = gguf.GGUFWriter(path, "phi3")
        n_bytes = 256 * gguf.GGML_QUANT_SIZES[known][1] // gguf.GGML_QUANT_SIZES[known][0]
        writer.add_tensor("w", np.zeros(n_bytes, np.uint8), raw_dtype=known)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        if int(known) in set(GGMLType):
            with load_gguf(path) as file:
                assert file.tensors["w"].data.nbytes == tensor_bytes(GGMLType(known), (256,))
        else:
            with pytest.raises(UnsupportedModelError, match=f"type {known.name}, which is not supported"):
                load_gguf(path)


def test_file_types_have_the_names_of_llama_cpp() -> None:
    for known in FileType:
        assert gguf.LlamaFileType(known).name.removeprefix("MOSTLY_").removeprefix("ALL_") == known.name


def test_file_type_names_say_when_guessed_or_unknown() -> None:
    assert file_type_name(15) == "Q4_K_M"
    assert file_type_name(1024 + 15) == "Q4_K_M (guessed)"
    assert file_type_name(4711) == "unknown (4711)"


@pytest.mark.skipif(os.name == "nt", reason="the file is sparse, which NTFS does not do unasked")
@pytest.mark.parametrize(
    ("n_tokens", "n_merges", "limit_ms"), [(32_064, 0, 100), (32_064, 61_000, 100), (200_064, 199_742, 300)]
)
def test_metadata_of_a_full_size_file_is_read_in_time(
    tmp_path: Path, n_tokens: int, n_merges: int, limit_ms: float
) -> None:
    path = _full_size_file(tmp_path, n_tokens, n_merges)
    timings_ms = []
    for _ in range(5):
        start = time.perf_counter()
        with load_gguf(path) as file:
            timings_ms.append((time.perf_counter() - start) * 1e3)
            assert len(file.tensors) == 195
            assert file.n_bytes > 2_000_000_000
    assert min(timings_ms) < limit_ms, timings_ms


def _full_size_file(folder: Path, n_tokens: int, n_merges: int) -> Path:
    """A Phi-3-mini of the real size whose weights are a hole in the file."""
    path = folder / "full-size.gguf"
    writer = gguf.GGUFWriter(path, "phi3")
    writer.add_token_list([f"token{i}" for i in range(n_tokens)])
    writer.add_token_scores([-float(i) for i in range(n_tokens)])
    writer.add_token_types([1] * n_tokens)
    if n_merges:
        writer.add_token_merges([f"to ken{i}" for i in range(n_merges)])
    shapes = {"token_embd.weight": (32_064, 3072), "output.weight": (32_064, 3072), "output_norm.weight": (3072,)}
    for layer in range(32):
        shapes[f"blk.{layer}.attn_norm.weight"] = (3072,)
        shapes[f"blk.{layer}.attn_qkv.weight"] = (9216, 3072)
        shapes[f"blk.{layer}.attn_output.weight"] = (3072, 3072)
        shapes[f"blk.{layer}.ffn_norm.weight"] = (3072,)
        shapes[f"blk.{layer}.ffn_up.weight"] = (16_384, 3072)
        shapes[f"blk.{layer}.ffn_down.weight"] = (3072, 8192)
    total = 0
    for name, shape in shapes.items():
        kind = gguf.GGMLQuantizationType.F32 if len(shape) == 1 else gguf.GGMLQuantizationType.Q4_K
        n_bytes = tensor_bytes(GGMLType(kind), shape)
        byte_shape = gguf.quants.quant_shape_to_byte_shape(shape, kind)
        writer.add_tensor_info(name, byte_shape, np.dtype(np.uint8), n_bytes, raw_dtype=kind)
        total += -(-n_bytes // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, path.stat().st_size + 32 + total)
    return path


@pytest.fixture(scope="module")
def phi3_vocabulary() -> Path:
    folder = os.environ.get("PHLITE_TEST_DATA")
    path = Path(folder or "PHLITE_TEST_DATA") / "tokenizers" / "ggml-vocab-phi-3.gguf"
    if not path.is_file():
        pytest.skip(f"{path} is missing; set PHLITE_TEST_DATA to the folder of test data")
    return path


def test_the_phi3_vocabulary_of_llama_cpp_equals_the_gguf_packages_reading(phi3_vocabulary: Path) -> None:
    expected = {
        name: field.contents()
        for name, field in gguf.GGUFReader(phi3_vocabulary).fields.items()
        if not name.startswith("GGUF.")
    }
    with load_gguf(phi3_vocabulary) as file:
        got = {key: v.tolist() if isinstance(v, np.ndarray) else v for key, v in file.metadata.items()}
    assert got == expected


@pytest.mark.parametrize("name", ["absent.gguf", "", "\0"])
def test_what_is_no_file_is_a_model_file_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelFileError, match=r"cannot be opened|not a regular file"):
        load_gguf(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    other_end = os.open(tmp_path / "pipe.gguf", os.O_RDWR | os.O_NONBLOCK)  # so that a failing test does not hang
    try:
        with pytest.raises(ModelFileError, match="not a regular file"):
            load_gguf(tmp_path / "pipe.gguf")
    finally:
        os.close(other_end)
