"""A model file written again in other formats: what is kept, what changes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from tiny_models import random_checkpoint, tiny_config, write_gguf

from phlite import ops
from phlite.convert.importance import Importance, ImportanceMatrix
from phlite.convert.mixture import BASE_TYPES, parse_file_type
from phlite.convert.quantize import quantize_file
from phlite.errors import ModelFileError, RequestError, UnsupportedModelError
from phlite.gguf import FileType, GGMLType, GGUFWriter, ValueType, load_gguf

# Error of a matrix of Gaussian weights in units of their standard deviation, rounded up.
ERRORS = {"F16": 3e-4, "BF16": 2e-3, "Q8_0": 0.007, "Q6_K": 0.02, "Q5_K": 0.04, "Q4_K": 0.08, "Q3_K": 0.16, "Q2_K": 0.3}
ERRORS |= {"Q5_0": 0.05, "Q5_1": 0.05, "Q4_0": 0.1, "Q4_1": 0.1, "IQ4_NL": 0.08, "IQ4_XS": 0.08}


@pytest.fixture(scope="module")
def pool() -> ops.ThreadPool:
    return ops.ThreadPool(2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    return write_gguf(path, random_checkpoint(tiny_config(intermediate_size=320)), extra={"note": True, "text": "ü"})


def quantized(source: Path, target: Path, name: str, pool: ops.ThreadPool, **options: object) -> Path:
    with load_gguf(source) as file:
        return quantize_file(file, target, FileType[name], pool=pool, **options)  # type: ignore[arg-type]


def values_of(path: Path) -> dict[str, tuple[GGMLType, np.ndarray]]:
    with load_gguf(path) as file:
        return {n: (t.type, ops.dequantize(t.data, t.type, t.shape)) for n, t in file.tensors.items()}


@pytest.mark.parametrize("name", [kind.name for kind in BASE_TYPES])
def test_matrices_keep_their_values_within_the_formats_error(
    model: Path, tmp_path: Path, pool: ops.ThreadPool, name: str
) -> None:
    got = values_of(quantized(model, tmp_path / "out.gguf", name, pool))
    for tensor, (_, expected) in values_of(model).items():
        kind, values = got[tensor]
        if expected.ndim == 1:
            assert kind is GGMLType.F32
            assert np.array_equal(values, expected)
        else:
            assert np.sqrt(np.mean((values - expected) ** 2)) < ERRORS[kind.name] * expected.std()


def test_metadata_is_kept_but_for_the_file_type(model: Path, tmp_path: Path, pool: ops.ThreadPool) -> None:
    out = quantized(model, tmp_path / "out.gguf", "Q4_K_M", pool)
    with load_gguf(model) as before, load_gguf(out) as after:
        for key in before.metadata:
            assert np.array_equal(np.asarray(after.metadata[key]), np.asarray(before.metadata[key]))
            assert after.metadata.value_type(key) is before.metadata.value_type(key)
        added = {key: after.metadata[key] for key in after.metadata if key not in before.metadata}
        assert added == {"general.quantization_version": 2, "general.file_type": FileType.Q4_K_M}
        assert list(after.tensors) == list(before.tensors)


def test_the_gguf_package_reads_the_file(model: Path, tmp_path: Path, pool: ops.ThreadPool) -> None:
    reader = gguf.GGUFReader(quantized(model, tmp_path / "out.gguf", "Q6_K", pool))
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.0.attn_qkv.weight"] == "Q6_K"
    assert kinds["blk.0.ffn_down.weight"] == "Q8_0"
    assert kinds["blk.1.ffn_norm.weight"] == "F32"


def test_halves_are_a_source_and_rows_are_read_in_slices(
    model: Path, tmp_path: Path, pool: ops.ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = quantized(model, tmp_path / "half.gguf", "F16", pool)
    whole = values_of(quantized(half, tmp_path / "whole.gguf", "Q4_K_S", pool))
    monkeypatch.setattr("phlite.convert.quantize.SLICE_ELEMENTS", 3000)
    sliced = values_of(quantized(half, tmp_path / "sliced.gguf", "Q4_K_S", pool))
    assert all(np.array_equal(sliced[name][1], values) for name, (_, values) in whole.items())


def test_quantised_weights_are_taken_only_on_request(model: Path, tmp_path: Path, pool: ops.ThreadPool) -> None:
    eight = quantized(model, tmp_path / "eight.gguf", "Q8_0", pool)
    with pytest.raises(RequestError, match=r"10 matrices are quantised already.*--allow-requantize"):
        quantized(eight, tmp_path / "out.gguf", "Q4_0", pool)
    assert not (tmp_path / "out.gguf").exists()
    got = values_of(quantized(eight, tmp_path / "out.gguf", "Q4_0", pool, allow_requantize=True))
    expected = values_of(model)["blk.0.attn_qkv.weight"][1]
    assert np.sqrt(np.mean((got["blk.0.attn_qkv.weight"][1] - expected) ** 2)) < 0.1 * expected.std()


def test_the_same_type_again_is_a_copy(model: Path, tmp_path: Path, pool: ops.ThreadPool) -> None:
    eight = quantized(model, tmp_path / "eight.gguf", "Q8_0", pool)
    again = quantized(eight, tmp_path / "again.gguf", "Q8_0", pool)
    assert again.read_bytes() == eight.read_bytes()


def test_an_existing_file_is_replaced_only_on_request(model: Path, tmp_path: Path, pool: ops.ThreadPool) -> None:
    target = tmp_path / "out.gguf"
    target.write_bytes(b"mine")
    with pytest.raises(RequestError, match="is there already"):
        quantized(model, target, "Q8_0", pool)
    assert target.read_bytes() == b"mine"
    quantized(model, target, "Q8_0", pool, force=True)
    assert values_of(target)["output.weight"][0] is GGMLType.Q8_0


def test_the_source_is_never_the_target(tmp_path: Path, pool: ops.ThreadPool) -> None:
    path = write_gguf(tmp_path / "model.gguf", random_checkpoint(tiny_config()))
    (tmp_path / "link.gguf").symlink_to(path)
    for target in (path, tmp_path / "link.gguf"):
        with pytest.raises(RequestError, match="is the file that is read"):
            quantized(path, target, "Q8_0", pool, force=True)


def test_a_missing_folder_is_refused(model: Path, tmp_path: Path, pool: ops.ThreadPool) -> None:
    with pytest.raises(RequestError, match="is no folder"):
        quantized(model, tmp_path / "none" / "out.gguf", "Q8_0", pool)


def test_a_disk_that_is_too_full_is_noticed_before(
    model: Path, tmp_path: Path, pool: ops.ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(RequestError, match="free some space"):
        quantized(model, tmp_path / "out.gguf", "Q8_0", pool)


def test_a_value_that_is_not_finite_is_named_and_nothing_stays(tmp_path: Path, pool: ops.ThreadPool) -> None:
    checkpoint = random_checkpoint(tiny_config())
    checkpoint.tensors["model.layers.1.mlp.down_proj.weight"].values[3, 5] = np.nan
    path = write_gguf(tmp_path / "model.gguf", checkpoint)
    with pytest.raises(ModelFileError, match=r"'blk\.1\.ffn_down\.weight'.*NaN"):
        quantized(path, tmp_path / "out.gguf", "Q4_K_M", pool)
    assert [file.name for file in tmp_path.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize(("key", "value"), [("general.architecture", "llava"), ("general.type", "adapter")])
def test_what_is_no_model_of_the_family_is_refused(tmp_path: Path, pool: ops.ThreadPool, key: str, value: str) -> None:
    with GGUFWriter(tmp_path / "other.gguf") as writer:
        for name, text in {"general.architecture": "phi3", "general.type": "model", key: value}.items():
            writer.add(name, text)
        writer.add_tensor("w.weight", (2, 32), GGMLType.F32, np.ones((2, 32), np.float32))
    with pytest.raises(UnsupportedModelError, match=value):
        quantized(tmp_path / "other.gguf", tmp_path / "out.gguf", "Q8_0", pool)


def test_a_split_file_becomes_one(model: Path, tmp_path: Path, pool: ops.ThreadPool) -> None:
    with load_gguf(model) as file:
        names = list(file.tensors)
        parts = [tmp_path / f"m-{i:05d}-of-00002.gguf" for i in (1, 2)]
        for i, (path, part) in enumerate(zip(parts, (names[:5], names[5:]), strict=True)):
            with GGUFWriter(path) as writer:
                for key in file.metadata if i == 0 else ():
                    writer.add(key, file.metadata[key], file.metadata.value_type(key))
                writer.add("split.no", i, ValueType.UINT16)
                writer.add("split.count", 2, ValueType.UINT16)
                writer.add("split.tensors.count", len(names), ValueType.INT32)
                for name in part:
                    tensor = file.tensors[name]
                    writer.add_tensor(name, tensor.shape, tensor.type, tensor.data)
    out = quantized(parts[0], tmp_path / "out.gguf", "Q4_0", pool)
    assert out.read_bytes() == quantized(model, tmp_path / "one.gguf", "Q4_0", pool).read_bytes()


def importance_of(path: Path, names: list[str]) -> ImportanceMatrix:
    rng = np.random.default_rng(8)
    with load_gguf(path) as file:
        sums = {name: np.exp(rng.normal(0, 1.5, file.tensors[name].shape[-1])).astype(np.float32) for name in names}
    entries = {name: Importance(values[None], np.full(1, 7, np.float32)) for name, values in sums.items()}
    return ImportanceMatrix(entries, source="imatrix.gguf", datasets=("text.txt",), n_chunks=3)


def test_importance_lowers_the_weighted_error_and_is_recorded(
    model: Path, tmp_path: Path, pool: ops.ThreadPool
) -> None:
    name = "blk.0.attn_qkv.weight"
    importance = importance_of(model, [name])
    expected = values_of(model)[name][1]

    def weighted_error(path: Path) -> float:
        weights = importance.entries[name].sums
        return float(np.mean(weights * (values_of(path)[name][1] - expected) ** 2))

    plain = quantized(model, tmp_path / "plain.gguf", "Q3_K_S", pool)
    helped = quantized(model, tmp_path / "helped.gguf", "Q3_K_S", pool, importance=importance)
    assert weighted_error(helped) < 0.95 * weighted_error(plain)
    with load_gguf(helped) as file:
        fields = {key: file.metadata[key] for key in file.metadata if key.startswith("quantize.imatrix.")}
    assert list(fields.values()) == ["imatrix.gguf", "text.txt", 1, 3]


def test_each_expert_has_its_own_importance(tmp_path: Path, pool: ops.ThreadPool) -> None:
    rng = np.random.default_rng(9)
    stack, name = rng.standard_normal((3, 8, 256)).astype(np.float32), "blk.0.ffn_down_exps.weight"
    with GGUFWriter(tmp_path / "moe.gguf") as writer:
        writer.add("general.architecture", "phi3")
        for key, value in {"block_count": 1, "attention.head_count": 4, "expert_count": 3}.items():
            writer.add(f"phi3.{key}", value, ValueType.UINT32)
        writer.add_tensor(name, stack.shape, GGMLType.F32, stack)
    sums = np.exp(rng.normal(0, 1.5, (3, 256))).astype(np.float32)
    sums[2] = 0
    counts = np.array([4, 9, 0], np.float32)
    importance = ImportanceMatrix({name: Importance(sums, counts)}, source="i.gguf")
    out = quantized(tmp_path / "moe.gguf", tmp_path / "out.gguf", "Q4_K_S", pool, importance=importance)
    with load_gguf(out) as file:
        got, kind = file.tensors[name].data, file.tensors[name].type
    experts = [ops.quantize(stack[i], kind, importance=sums[i] if i < 2 else None, pool=pool) for i in range(3)]
    assert np.array_equal(got[: 2 * len(experts[0])], np.concatenate(experts[:2]))
    # The expert that was never chosen: all columns alike.
    unknown = ops.quantize(stack[2], kind, importance=np.ones(256, np.float32), pool=pool)
    assert np.array_equal(got[2 * len(unknown) :], unknown)


def test_the_importance_of_another_model_is_refused(model: Path, tmp_path: Path, pool: ops.ThreadPool) -> None:
    other = ImportanceMatrix({"v.blk.0": Importance(np.ones((1, 8), np.float32), np.ones(1, np.float32))}, source="i")
    with pytest.raises(RequestError, match="knows no matrix"):
        quantized(model, tmp_path / "out.gguf", "Q4_0", pool, importance=other)
    wide = Importance(np.ones((1, 512), np.float32), np.ones(1, np.float32))
    with pytest.raises(RequestError, match=r"has 512 values, expected the 256"):
        quantized(
            model, tmp_path / "out.gguf", "Q4_0", pool, importance=ImportanceMatrix({"output.weight": wide}, source="i")
        )


def test_names_of_types_are_read_in_any_case_and_unknown_ones_name_the_possible() -> None:
    assert parse_file_type("q4_k_m") is FileType.Q4_K_M
    for name in ("Q4_K", "IQ2_XS", "F32", ""):
        with pytest.raises(RequestError, match="possible: F16, BF16, Q8_0"):
            parse_file_type(name)
