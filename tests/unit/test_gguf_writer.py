"""Writing files: the gguf package and our reader read them alike, and misuse is refused before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from phlite.errors import RequestError, ShapeError
from phlite.gguf import GGMLType, GGUFWriter, ValueType, load_gguf, tensor_bytes

VALUES: dict[str, tuple[object, ValueType | None]] = {
    "general.architecture": ("phi3", None),
    "text": ("zwölf 🏒\n", None),
    "empty": ("", None),
    "yes": (True, None),
    "u8": (255, ValueType.UINT8),
    "i8": (-128, ValueType.INT8),
    "u16": (65535, ValueType.UINT16),
    "i16": (-32768, ValueType.INT16),
    "u32": (2**32 - 1, ValueType.UINT32),
    "i32": (-(2**31), ValueType.INT32),
    "u64": (2**64 - 1, ValueType.UINT64),
    "i64": (-(2**63), ValueType.INT64),
    "f32": (0.5, ValueType.FLOAT32),
    "f64": (0.1, ValueType.FLOAT64),
    "numpy scalar": (np.int16(-7), None),
    "strings": (["<s>", "", "▁the"], None),
    "bools": ([True, False], None),
    "ints": ([1, -2, 3], ValueType.INT32),
    "no ints": ([], ValueType.INT32),
    "floats": (np.array([0.5, -1.5], np.float32), None),
    "numpy bools": (np.array([False, True]), None),
    "narrowed": (np.array([1, 2, 3]), ValueType.UINT8),
}


def plain(value: object) -> object:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def test_all_value_types_are_read_back_by_the_gguf_package_and_by_us(tmp_path: Path) -> None:
    path = tmp_path / "values.gguf"
    with GGUFWriter(path) as writer:
        for key, (value, value_type) in VALUES.items():
            writer.add(key, value, value_type)  # type: ignore[arg-type]
    expected = {key: plain(value) for key, (value, _) in VALUES.items()}
    oracle = {name: f.contents() for name, f in gguf.GGUFReader(path).fields.items() if not name.startswith("GGUF.")}
    with load_gguf(path) as file:
        assert {key: plain(value) for key, value in file.metadata.items()} == expected
    assert oracle == expected


def test_every_tensor_type_is_read_back_by_the_gguf_package_and_by_us(tmp_path: Path) -> None:
    path = tmp_path / "tensors.gguf"
    rng = np.random.default_rng(1)
    blocks = {t: rng.integers(0, 256, tensor_bytes(t, (3, 256)), dtype=np.uint8) for t in GGMLType}
    with GGUFWriter(path) as writer:
        for ggml_type, data in blocks.items():
            writer.add_tensor(ggml_type.name, (3, 256), ggml_type, data)
    oracle = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    with load_gguf(path) as file:
        for ggml_type, data in blocks.items():
            assert oracle[ggml_type.name].tensor_type == int(ggml_type)
            assert oracle[ggml_type.name].shape.tolist() == [256, 3]
            assert oracle[ggml_type.name].data.tobytes() == data.tobytes()
            assert file.tensors[ggml_type.name].data.tobytes() == data.tobytes()


def test_natural_dtypes_are_accepted_for_plain_formats(tmp_path: Path) -> None:
    path = tmp_path / "plain.gguf"
    with GGUFWriter(path) as writer:
        writer.add_tensor("f32", (2, 3), GGMLType.F32, np.arange(6, dtype=np.float32).reshape(2, 3))
        writer.add_tensor("f16", (6,), GGMLType.F16, np.arange(6, dtype=np.float16))
        writer.add_tensor("bf16", (6,), GGMLType.BF16, np.arange(6, dtype=np.uint16))
    with load_gguf(path) as file:
        assert file.tensors["f32"].data.view("<f4").tolist() == [0, 1, 2, 3, 4, 5]
        assert file.tensors["f16"].data.view("<f2").tolist() == [0, 1, 2, 3, 4, 5]
        assert file.tensors["bf16"].data.view("<u2").tolist() == [0, 1, 2, 3, 4, 5]


def test_tensors_given_as_functions_are_made_one_at_a_time_in_order(tmp_path: Path) -> None:
    events: list[str] = []

    def make(name: str) -> Callable[[], np.ndarray]:
        def build() -> np.ndarray:
            events.append(name)
            return np.full(4, len(events), np.float32)

        return build

    with GGUFWriter(tmp_path / "stream.gguf") as writer:
        writer.add_tensor("a", (4,), GGMLType.F32, make("a"))
        writer.add_tensor("b", (4,), GGMLType.F32, make("b"))
        assert events == []
    assert events == ["a", "b"]
    with load_gguf(tmp_path / "stream.gguf") as file:
        assert file.tensors["b"].data.view("<f4").tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize("alignment", [8, 32, 4096])
def test_tensors_lie_at_multiples_of_the_alignment(tmp_path: Path, alignment: int) -> None:
    path = tmp_path / "aligned.gguf"
    with GGUFWriter(path, alignment=alignment) as writer:
        writer.add_tensor("a", (3,), GGMLType.F32, np.ones(3, np.float32))
        writer.add_tensor("b", (3,), GGMLType.F32, np.zeros(3, np.float32))
    with load_gguf(path) as file:
        assert [tensor.offset_bytes % alignment for tensor in file.tensors.values()] == [0, 0]
    assert [tensor.data.tolist() for tensor in gguf.GGUFReader(path).tensors] == [[1, 1, 1], [0, 0, 0]]


def test_an_exception_in_the_block_leaves_no_file(tmp_path: Path) -> None:
    def misuse() -> None:
        with GGUFWriter(tmp_path / "never.gguf") as writer:
            writer.add("twice", "x")
            writer.add("twice", "x")

    with pytest.raises(RequestError, match="twice"):
        misuse()
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_writing_keeps_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "old.gguf"
    path.write_bytes(b"old")
    writer = GGUFWriter(path)
    writer.add_tensor("w", (4,), GGMLType.F32, lambda: np.zeros(5, np.float32))
    with pytest.raises(ShapeError, match="expected 16 contiguous bytes"):
        writer.close()
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("old.gguf", b"old")]


def test_nothing_is_added_after_closing(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "closed.gguf")
    writer.close()
    with pytest.raises(RequestError, match="closed"):
        writer.add("late", "x")


@pytest.mark.parametrize(
    ("value", "value_type", "message"),
    [
        (1, None, "an? int has no type"),
        (1.5, None, "a float has no type"),
        ([1, 2], None, "a int has no type"),
        ([], None, "an empty list needs"),
        (256, ValueType.UINT8, "not a value of type UINT8"),
        (-1, ValueType.UINT64, "not a value of type UINT64"),
        (1.5, ValueType.INT32, "not a value of type INT32"),
        (1e300, ValueType.FLOAT32, "not a value of type FLOAT32"),
        (True, ValueType.UINT8, "not a value of type UINT8"),
        ("x", ValueType.UINT8, "not a value of type UINT8"),
        (["x", 1], None, "not a value of type STRING"),
        ("\ud800", None, "cannot be written as UTF-8"),
        (np.zeros((2, 2), np.float32), None, "expected one dimension"),
        (np.zeros(2, np.complex64), None, "has no type"),
        ({"a": 1}, None, "expected a list"),
    ],
)
def test_values_that_do_not_fit_their_type_are_refused(
    tmp_path: Path, value: object, value_type: ValueType | None, message: str
) -> None:
    writer = GGUFWriter(tmp_path / "never.gguf")
    with pytest.raises(RequestError, match=message):
        writer.add("key", value, value_type)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["", "general.alignment", "twice", "x" * 1025])
def test_bad_keys_are_refused(tmp_path: Path, key: str) -> None:
    writer = GGUFWriter(tmp_path / "never.gguf")
    writer.add("twice", "x")
    with pytest.raises(RequestError, match="metadata key"):
        writer.add(key, "x")


@pytest.mark.parametrize("name", ["", "twice", "x" * 65])
def test_bad_tensor_names_are_refused(tmp_path: Path, name: str) -> None:
    writer = GGUFWriter(tmp_path / "never.gguf")
    writer.add_tensor("twice", (1,), GGMLType.F32, np.zeros(1, np.float32))
    with pytest.raises(RequestError, match="tensor"):
        writer.add_tensor(name, (1,), GGMLType.F32, np.zeros(1, np.float32))


@pytest.mark.parametrize(
    ("shape", "ggml_type", "data"),
    [
        ((), GGMLType.F32, np.zeros(1, np.float32)),
        ((0,), GGMLType.F32, np.zeros(0, np.float32)),
        ((1, 1, 1, 1, 1), GGMLType.F32, np.zeros(1, np.float32)),
        ((2, 31), GGMLType.Q8_0, np.zeros(68, np.uint8)),
        ((2, 32), GGMLType.Q8_0, np.zeros(67, np.uint8)),
        ((2, 32), GGMLType.Q8_0, np.zeros(17, np.float32)),
        ((4,), GGMLType.F32, np.zeros(4, np.float64)),
        ((4,), GGMLType.F32, np.zeros(8, np.float32)[::2]),
    ],
)
def test_tensors_whose_data_does_not_fit_are_refused(
    tmp_path: Path, shape: tuple[int, ...], ggml_type: GGMLType, data: np.ndarray
) -> None:
    writer = GGUFWriter(tmp_path / "never.gguf")
    with pytest.raises(ShapeError):
        writer.add_tensor("w", shape, ggml_type, data)


@pytest.mark.parametrize("alignment", [0, 4, 24, -8])
def test_bad_alignments_are_refused(tmp_path: Path, alignment: int) -> None:
    with pytest.raises(RequestError, match="power of two"):
        GGUFWriter(tmp_path / "never.gguf", alignment=alignment)
