"""Files of importance matrices: llama.cpp's two formats, and damaged ones."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from phlite.convert.importance import Importance, ImportanceMatrix, load_importance, save_importance
from phlite.errors import ModelFileError


def matrix() -> ImportanceMatrix:
    rng = np.random.default_rng(0)
    entries = {
        "blk.1.attn_qkv.weight": Importance(rng.uniform(0, 9, (1, 8)).astype(np.float32), np.full(1, 4, np.float32)),
        "blk.0.ffn_up_exps.weight": Importance(
            rng.uniform(0, 9, (3, 6)).astype(np.float32), np.array([2, 0, 5], np.float32)
        ),
    }
    return ImportanceMatrix(entries, source="memory", datasets=("wiki.txt",), n_chunks=7, chunk_size=512)


def legacy_bytes(entries: dict[str, tuple[int, list[float]]], tail: bytes = b"") -> bytes:
    parts = [struct.pack("<i", len(entries))]
    for name, (n_calls, values) in entries.items():
        raw = name.encode()
        parts.append(struct.pack("<i", len(raw)) + raw + struct.pack("<ii", n_calls, len(values)))
        parts.append(np.array(values, "<f4").tobytes())
    return b"".join(parts) + tail


def test_a_written_file_reads_back(tmp_path: Path) -> None:
    save_importance(tmp_path / "i.gguf", matrix())
    got = load_importance(tmp_path / "i.gguf")
    assert (got.datasets, got.n_chunks, got.chunk_size) == (("wiki.txt",), 7, 512)
    assert list(got.entries) == sorted(matrix().entries)
    for name, entry in matrix().entries.items():
        assert np.array_equal(got.entries[name].sums, entry.sums)
        assert np.array_equal(got.entries[name].counts, entry.counts)


def test_the_file_has_the_names_and_shapes_of_llama_cpps(tmp_path: Path) -> None:
    save_importance(tmp_path / "i.gguf", matrix())
    reader = gguf.GGUFReader(tmp_path / "i.gguf")
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["wiki.txt"]
    assert (reader.fields["imatrix.chunk_count"].contents(), reader.fields["imatrix.chunk_size"].contents()) == (7, 512)
    assert {tensor.name: tensor.shape.tolist() for tensor in reader.tensors} == {
        "blk.0.ffn_up_exps.weight.in_sum2": [6, 3],
        "blk.0.ffn_up_exps.weight.counts": [1, 3],
        "blk.1.attn_qkv.weight.in_sum2": [8, 1],
        "blk.1.attn_qkv.weight.counts": [1, 1],
    }


def test_weights_are_means_and_experts_without_inputs_get_ones() -> None:
    sums = matrix().entries["blk.0.ffn_up_exps.weight"].sums
    weights = matrix().weights("blk.0.ffn_up_exps.weight", (3, 4, 6))
    assert weights is not None
    np.testing.assert_allclose(weights, [sums[0] / 2, np.ones(6), sums[2] / 5], rtol=1e-6)
    assert matrix().weights("output.weight", (4, 6)) is None


def test_the_older_format_is_read(tmp_path: Path) -> None:
    entries = {"blk.0.attn_qkv.weight": (3, [3.0, 6.0, 0.0]), "blk.0.ffn_up_exps.weight": (2, [2.0, 4.0, 6.0, 8.0])}
    path = tmp_path / "imatrix.dat"
    path.write_bytes(legacy_bytes(entries, struct.pack("<ii", 11, 8) + b"wiki.txt"))
    got = load_importance(path)
    assert (got.n_chunks, got.datasets) == (11, ("wiki.txt",))
    assert got.weights("blk.0.attn_qkv.weight", (5, 3)).tolist() == [[1, 2, 0]]  # type: ignore[union-attr]
    assert got.weights("blk.0.ffn_up_exps.weight", (2, 9, 2)).tolist() == [[1, 2], [3, 4]]  # type: ignore[union-attr]
    path.write_bytes(legacy_bytes(entries))
    assert (load_importance(path).n_chunks, load_importance(path).datasets) == (0, ())


def test_every_cut_of_the_older_format_is_refused(tmp_path: Path) -> None:
    whole = legacy_bytes({"blk.0.attn_qkv.weight": (3, [3.0, 6.0])}, struct.pack("<ii", 11, 4) + b"text")
    path = tmp_path / "imatrix.dat"
    n_entries = len(whole) - 12
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        if n == n_entries:
            load_importance(path)
            continue
        with pytest.raises(ModelFileError, match=r"imatrix\.dat"):
            load_importance(path)


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<i", -1),
        struct.pack("<i", 2**31 - 1),
        struct.pack("<ii", 1, -5) + bytes(40),
        struct.pack("<ii", 1, 2) + b"\xff\xfe" + struct.pack("<iif", 1, 1, 1.0),
        legacy_bytes({"a": (1, [])}),
        legacy_bytes({"a": (1, [float("nan")])}),
        legacy_bytes({"a": (1, [-1.0])}),
        legacy_bytes({}),
        b"",
    ],
)
def test_what_is_no_importance_matrix_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "imatrix.dat").write_bytes(data)
    with pytest.raises(ModelFileError, match=r"imatrix\.dat"):
        load_importance(tmp_path / "imatrix.dat")


@pytest.mark.parametrize(
    ("kind", "tensors"),
    [
        ("model", {"a.in_sum2": np.ones((1, 4), np.float32), "a.counts": np.ones((1, 1), np.float32)}),
        ("imatrix", {"a.in_sum2": np.ones((1, 4), np.float32)}),
        ("imatrix", {"a.in_sum2": np.ones((1, 4), np.float32), "a.counts": np.ones((3, 1), np.float32)}),
        ("imatrix", {"a.in_sum2": np.ones((1, 4), np.float16), "a.counts": np.ones((1, 1), np.float32)}),
        ("imatrix", {"a.weight": np.ones((1, 4), np.float32)}),
        ("imatrix", {"a.in_sum2": np.full((1, 4), -1, np.float32), "a.counts": np.ones((1, 1), np.float32)}),
    ],
)
def test_gguf_files_that_are_none_are_refused(tmp_path: Path, kind: str, tensors: dict[str, np.ndarray]) -> None:
    writer = gguf.GGUFWriter(tmp_path / "i.gguf", "phi3")
    writer.add_type(kind)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelFileError, match=r"i\.gguf"):
        load_importance(tmp_path / "i.gguf")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"none\.gguf: cannot be opened"):
        load_importance(tmp_path / "none.gguf")
