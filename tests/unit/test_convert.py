"""Checkpoint to GGUF: nothing lost, nothing left over, one tensor in memory, and no half-written file."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tiny_models import (
    MEMBERS,
    Checkpoint,
    all_logits,
    random_checkpoint,
    stored,
    tiny_config,
    write_hf_folder,
    write_safetensors,
)
from tiny_models.phi import PHI_MEMBERS, random_phi_checkpoint
from tiny_models.phimoe import PHIMOE_MEMBERS, random_phimoe_checkpoint

from phlite import ops
from phlite.checkpoint import load_checkpoint
from phlite.convert import Planner, convert_checkpoint, default_type, plan_conversion
from phlite.convert.on_load import converted_checkpoint
from phlite.convert.plan import PlannedTensor
from phlite.convert.tensor_data import encode_tensor
from phlite.errors import ModelFileError, RequestError, UnsupportedModelError
from phlite.gguf import FileType, GGMLType, load_gguf
from phlite.models.registry import build_checkpoint_model, load_model

IDS = np.random.default_rng(5).integers(0, 500, 30).tolist()


@pytest.fixture(scope="module")
def pool() -> ops.ThreadPool:
    return ops.ThreadPool(2)


def write(folder: Path, checkpoint: Checkpoint, **options: Any) -> Path:
    return write_hf_folder(folder / "model", checkpoint, **options)


def convert(folder: Path, path: Path, file_type: FileType | None = None, **options: Any) -> Path:
    with load_checkpoint(folder) as checkpoint:
        return convert_checkpoint(checkpoint, path, file_type=file_type, **options)


CHECKPOINTS = {
    **{name: (random_checkpoint, config) for name, config in MEMBERS.items()},
    "phi-2": (random_phi_checkpoint, PHI_MEMBERS["phi-2"]),
    "phi-3.5-moe": (random_phimoe_checkpoint, PHIMOE_MEMBERS["phi-3.5-moe"]),
}


@pytest.mark.parametrize("member", CHECKPOINTS)
@pytest.mark.parametrize("file_type", [None, FileType.Q4_K_M])
def test_a_converted_file_and_a_folder_quantised_on_load_give_the_same_bits(
    tmp_path: Path, pool: ops.ThreadPool, member: str, file_type: FileType | None
) -> None:
    build, config = CHECKPOINTS[member]
    folder = write(tmp_path, build(config, "BF16", seed=31), n_shards=2)
    file_model = load_model(convert(folder, tmp_path / "m.gguf", file_type, pool=pool), pool=pool)
    with load_checkpoint(folder) as checkpoint:
        loaded = checkpoint if file_type is None else converted_checkpoint(checkpoint, file_type, pool=pool)
        folder_model = build_checkpoint_model(loaded, pool=pool)
    np.testing.assert_array_equal(all_logits(file_model, IDS), all_logits(folder_model, IDS))


def test_split_projections_become_the_fused_ones(tmp_path: Path, pool: ops.ThreadPool) -> None:
    config = tiny_config(num_key_value_heads=2)
    split = random_checkpoint(config, seed=32, split_qkv=True, split_gate_up=True)
    paths = [
        convert(write(tmp_path / name, checkpoint), tmp_path / f"{name}.gguf")
        for name, checkpoint in (("split", split), ("fused", split.fused()))
    ]
    with load_gguf(paths[0]) as first, load_gguf(paths[1]) as second:
        assert list(first.tensors) == list(second.tensors)
        for name, tensor in first.tensors.items():
            assert tensor.data.tobytes() == second.tensors[name].data.tobytes()


def test_the_keys_are_those_of_llama_cpps_converter(tmp_path: Path) -> None:
    config = MEMBERS["phi-4-mini"]
    path = convert(write(tmp_path, random_checkpoint(config)), tmp_path / "m.gguf", name="Phi-4-mini tiny")
    reader = gguf.GGUFReader(path)

    def value(key: str) -> object:
        field = reader.get_field(key)
        return None if field is None else field.contents()

    expected = {
        gguf.Keys.General.ARCHITECTURE: "phi3",
        gguf.Keys.General.TYPE: gguf.GGUFType.MODEL,
        gguf.Keys.General.NAME: "Phi-4-mini tiny",
        gguf.Keys.General.FILE_TYPE: int(gguf.LlamaFileType.ALL_F32),
        gguf.Keys.General.QUANTIZATION_VERSION: gguf.GGML_QUANT_VERSION,
        gguf.Keys.LLM.CONTEXT_LENGTH: 131072,
        gguf.Keys.LLM.EMBEDDING_LENGTH: 384,
        gguf.Keys.LLM.FEED_FORWARD_LENGTH: 512,
        gguf.Keys.LLM.BLOCK_COUNT: 2,
        gguf.Keys.Attention.HEAD_COUNT: 3,
        gguf.Keys.Attention.HEAD_COUNT_KV: 1,
        gguf.Keys.Attention.LAYERNORM_RMS_EPS: pytest.approx(1e-5),
        gguf.Keys.Attention.SLIDING_WINDOW: 262144,
        gguf.Keys.Rope.DIMENSION_COUNT: 96,
        gguf.Keys.Rope.FREQ_BASE: 10000.0,
        gguf.Keys.Rope.SCALING_ORIG_CTX_LEN: 4096,
        gguf.Keys.Rope.SCALING_ATTN_FACTOR: pytest.approx(1.1902380714238083),
        gguf.Keys.Tokenizer.MODEL: "llama",
        gguf.Keys.Tokenizer.PRE: "default",
        gguf.Keys.Tokenizer.BOS_ID: 1,
        gguf.Keys.Tokenizer.EOS_ID: 3,
        gguf.Keys.Tokenizer.EOT_ID: 5,
        gguf.Keys.Tokenizer.ADD_BOS: False,
        gguf.Keys.Tokenizer.ADD_PREFIX: True,
    }
    assert {key.format(arch="phi3"): value(key.format(arch="phi3")) for key in expected} == {
        key.format(arch="phi3"): wanted for key, wanted in expected.items()
    }
    assert len(value(gguf.Keys.Tokenizer.LIST)) == config["vocab_size"]
    assert value(gguf.Keys.Tokenizer.CHAT_TEMPLATE)


def test_no_window_is_written_as_0_so_that_it_is_not_taken_for_2047(tmp_path: Path) -> None:
    path = convert(write(tmp_path, random_checkpoint(tiny_config())), tmp_path / "m.gguf")
    assert load_model(path, pool=ops.ThreadPool(1)).config.sliding_window is None  # type: ignore[attr-defined]


@pytest.mark.parametrize("strips", [False, True])
@pytest.mark.parametrize("name", ["Phi-3 tiny", "something else"])
def test_markers_swallow_white_space_as_the_folders_whatever_the_name(tmp_path: Path, strips: bool, name: str) -> None:
    from phlite.tokenizer import build_tokenizer, load_tokenizer

    folder = write(tmp_path, random_checkpoint(tiny_config()), strips=strips)
    with load_gguf(convert(folder, tmp_path / "m.gguf", name=name)) as file:
        ours = build_tokenizer(file.metadata)
    prompt = "<|user|>\nthe thing<|end|>\n<|assistant|>\n"
    assert ours.encode_prompt(prompt) == load_tokenizer(folder).encode_prompt(prompt)
    assert (10 + 8 in ours.encode_prompt(prompt)) is not strips  # the byte token of the line end


def test_end_tokens_of_generation_config_that_no_key_names_are_kept(tmp_path: Path) -> None:
    from phlite.tokenizer import build_tokenizer

    folder = write(tmp_path, random_checkpoint(tiny_config()), generation_config={"eos_token_id": [3, 5, 290]})
    with load_gguf(convert(folder, tmp_path / "m.gguf")) as file:
        assert {3, 5, 290} <= build_tokenizer(file.metadata).stop_ids


def test_sampling_of_generation_config_is_kept(tmp_path: Path) -> None:
    from phlite.recommended import recommended_params

    config = {"do_sample": True, "temperature": 0.7, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.1}
    folder = write(tmp_path, random_checkpoint(tiny_config()), generation_config=config)
    with load_gguf(convert(folder, tmp_path / "m.gguf")) as file:
        params = recommended_params(file.metadata)
    assert (params.temperature, params.top_k, params.top_p) == (0.7, 40, 0.9)
    assert (params.repeat_penalty, params.repeat_last_n) == (1.1, -1)


def test_the_default_type_is_what_most_weights_are_stored_in(tmp_path: Path) -> None:
    mixed = random_checkpoint(tiny_config(), lambda name: "F32" if "o_proj" in name else "F16")
    with load_checkpoint(write(tmp_path, mixed)) as checkpoint:
        assert default_type(checkpoint) is FileType.F16


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_rounding_to_half_precision_is_the_gguf_packages(tmp_path: Path, kind: str) -> None:
    checkpoint = random_checkpoint(tiny_config(), seed=33)
    with load_gguf(convert(write(tmp_path, checkpoint), tmp_path / "m.gguf", FileType[kind])) as file:
        data = file.tensors["output.weight"].data
        kept = {tensor.type for tensor in file.tensors.values() if len(tensor.shape) == 1}
    expected = gguf.quants.quantize(checkpoint.tensors["lm_head.weight"].values, gguf.GGMLQuantizationType[kind])
    assert data.tobytes() == expected.tobytes()
    assert kept == {GGMLType.F32}


@pytest.mark.parametrize(
    ("value", "file_type", "fits"),
    [
        (np.nan, FileType.Q4_0, False),
        (np.inf, FileType.F16, False),
        (1e5, FileType.F16, False),
        (1e5, FileType.BF16, True),
    ],
)
def test_a_value_that_a_type_cannot_hold_is_an_error_that_names_the_tensor(
    tmp_path: Path, value: float, file_type: FileType, fits: bool
) -> None:
    checkpoint = random_checkpoint(tiny_config())
    checkpoint.tensors["lm_head.weight"].values[5, 7] = value
    folder, path = write(tmp_path, checkpoint), tmp_path / "m.gguf"
    if fits:
        convert(folder, path, file_type)
        return
    with pytest.raises(ModelFileError, match=r"'lm_head\.weight'.*too large"):
        convert(folder, path, file_type)
    assert sorted(child.name for child in tmp_path.iterdir()) == ["model"]


def test_a_file_that_is_there_is_replaced_only_on_demand(tmp_path: Path) -> None:
    folder, path = write(tmp_path, random_checkpoint(tiny_config())), tmp_path / "m.gguf"
    path.write_text("precious")
    with pytest.raises(RequestError, match="is there already"):
        convert(folder, path)
    assert path.read_text() == "precious"
    convert(folder, path, force=True)
    assert path.read_bytes()[:4] == b"GGUF"


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path, random_checkpoint(tiny_config()))
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1 << 20}))
    with pytest.raises(RequestError, match=r"needs 0\.\d\d GB, .* has 0\.00 GB free"):
        convert(folder, tmp_path / "m.gguf")
    assert sorted(child.name for child in tmp_path.iterdir()) == ["model"]


def test_a_missing_target_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="nowhere is no folder"):
        convert(write(tmp_path, random_checkpoint(tiny_config())), tmp_path / "nowhere" / "m.gguf")


def test_progress_counts_the_bytes_that_were_announced(tmp_path: Path) -> None:
    planned: list[int] = []
    written: dict[str, int] = {}
    convert(
        write(tmp_path, random_checkpoint(tiny_config())),
        tmp_path / "m.gguf",
        on_plan=planned.append,
        progress=written.__setitem__,
    )
    assert planned == [sum(written.values())]
    with load_gguf(tmp_path / "m.gguf") as file:
        assert written == {name: tensor.data.nbytes for name, tensor in file.tensors.items()}


def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path) -> None:
    config = tiny_config(num_hidden_layers=24, vocab_size=512)
    folder = write(tmp_path, random_checkpoint(config, "F16"))
    largest = 2 * 512 * 256 * 4
    convert(folder, tmp_path / "warm.gguf", FileType.F32)
    tracemalloc.start()
    convert(folder, tmp_path / "m.gguf", FileType.F32)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "m.gguf").stat().st_size > 20 * largest
    assert peak < 8 * largest


@pytest.mark.parametrize("member", ["mini-4k", "phi-2", "phi-3.5-moe"])
def test_quantising_on_load_has_one_tensor_beside_the_packed_ones(
    tmp_path: Path, pool: ops.ThreadPool, member: str
) -> None:
    build, config = CHECKPOINTS[member]
    folder = write(tmp_path, build({**config, "num_hidden_layers": 12, "vocab_size": 512}, "BF16"))

    def load() -> int:
        tracemalloc.start()
        with load_checkpoint(folder) as checkpoint:
            build_checkpoint_model(converted_checkpoint(checkpoint, FileType.F16, pool=pool), pool=pool)
            largest = max(tensor.data.nbytes for tensor in checkpoint.tensors.values())
            total = checkpoint.n_bytes
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert total > 16 * largest
        return peak // largest

    load()  # imports and caches
    assert load() < 6  # packed matrices are not Python's; the embedding and the tensor at hand are


def test_a_tensor_without_a_place_is_refused(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tiny_config())
    tensors = {**checkpoint.tensors, "model.layers.0.self_attn.qkv_proj.bias": stored(np.zeros(768))}
    folder = write(tmp_path, Checkpoint(checkpoint.config, tensors))
    with pytest.raises(UnsupportedModelError, match=r"1 of \d+ tensors have no place.*qkv_proj\.bias"):
        convert(folder, tmp_path / "m.gguf")


@pytest.mark.parametrize("kind", ["F32", "BF16"])
def test_a_stored_copy_of_a_tied_output_matrix_changes_nothing(tmp_path: Path, pool: ops.ThreadPool, kind: str) -> None:
    plain = random_checkpoint(tiny_config(tie_word_embeddings=True), kind)
    copied = Checkpoint(plain.config, {**plain.tensors, "lm_head.weight": plain.tensors["model.embed_tokens.weight"]})
    folders = [write(tmp_path / name, checkpoint) for name, checkpoint in (("a", plain), ("b", copied))]
    paths = [convert(folder, folder.parent / "m.gguf", FileType.Q8_0, name="x") for folder in folders]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with load_checkpoint(folders[1]) as checkpoint:
        for opened in (checkpoint, converted_checkpoint(checkpoint, FileType.Q8_0, pool=pool)):
            assert build_checkpoint_model(opened, pool=pool).config.vocab_size == 512


def test_an_output_matrix_that_should_be_tied_and_is_not_is_refused(tmp_path: Path, pool: ops.ThreadPool) -> None:
    untied = random_checkpoint(tiny_config())
    folder = write(tmp_path, Checkpoint({**untied.config, "tie_word_embeddings": True}, untied.tensors))
    with load_checkpoint(folder) as checkpoint:
        for use in (plan_conversion, lambda opened: build_checkpoint_model(opened, pool=pool)):
            with pytest.raises(UnsupportedModelError, match=r"'lm_head\.weight' differs from 'model\.embed_tokens"):
                use(checkpoint)


def test_a_missing_or_misshapen_tensor_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, random_checkpoint(tiny_config()))
    config = json.loads((folder / "config.json").read_text())
    for change, message in (({"num_hidden_layers": 3}, "is missing"), ({"intermediate_size": 256}, "has shape")):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ModelFileError, match=message):
            convert(folder, tmp_path / "m.gguf")


def test_an_unknown_architecture_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    folder = write(tmp_path, Checkpoint({"model_type": "gpt_neox", "vocab_size": 512}, {"w": stored([[1.0]])}))
    with load_checkpoint(folder) as checkpoint:
        with pytest.raises(UnsupportedModelError, match=r"'gpt_neox' cannot be converted.*phi3"):
            plan_conversion(checkpoint)
        with pytest.raises(UnsupportedModelError, match=r"'gpt_neox' is not implemented.*phi3"):
            build_checkpoint_model(checkpoint, pool=ops.ThreadPool(1))


def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, random_checkpoint(tiny_config(vocab_size=512)))
    small = random_checkpoint(tiny_config(vocab_size=280))
    write_safetensors(folder / "model.safetensors", small.tensors)
    (folder / "config.json").write_text(json.dumps(small.config))
    with pytest.raises(ModelFileError, match="297 tokens for an embedding of 280 rows"):
        convert(folder, tmp_path / "m.gguf")


def test_a_tokenizer_that_gguf_cannot_describe_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, random_checkpoint(tiny_config()))
    file = folder / "tokenizer.json"
    definition = json.loads(file.read_text())
    definition["model"]["merges"].remove("▁t he")  # the piece stays, but nothing makes it
    file.write_text(json.dumps(definition))
    with pytest.raises(UnsupportedModelError, match="cannot describe"):
        convert(folder, tmp_path / "m.gguf")


def test_rows_may_be_ordered_anew_and_stacks_lie_one_behind_the_other(tmp_path: Path, pool: ops.ThreadPool) -> None:
    values = {name: np.random.default_rng(i).normal(size=(4, 32)).astype(np.float32) for i, name in enumerate("ab")}
    checkpoint = Checkpoint({"model_type": "phi3"}, {name: stored(array) for name, array in values.items()})
    order = np.array([7, 0, 5, 2, 1, 6, 3, 4])
    with load_checkpoint(write(tmp_path, checkpoint, tokenizer=False)) as opened:
        planner = Planner(opened)
        planner.matrix("m", {"a": 4, "b": 4}, n_cols=32, row_order=order)
        planner.stack("s", ["b", "a"], n_rows=4, n_cols=32)
        planner.values("v", [1.5, 2.5])
        conversion = planner.finish("phi3", {})
        data = {t.name: encode_tensor(t, GGMLType.F32, opened, pool=pool) for t in conversion.tensors}
    assert [tensor.shape for tensor in conversion.tensors] == [(8, 32), (2, 4, 32), (2,)]
    both = np.concatenate([values["a"], values["b"]])
    np.testing.assert_array_equal(data["m"].view(np.float32).reshape(8, 32), both[order])
    np.testing.assert_array_equal(data["s"].view(np.float32).reshape(2, 4, 32), np.stack([values["b"], values["a"]]))
    np.testing.assert_array_equal(data["v"].view(np.float32), np.array([1.5, 2.5], np.float32))


def test_tensors_larger_than_a_slice_are_encoded_like_small_ones(
    tmp_path: Path, pool: ops.ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(8).normal(size=(37, 256)).astype(np.float32)
    folder = write(tmp_path, Checkpoint({}, {"w": stored(values)}), tokenizer=False)
    planned = PlannedTensor("w", (37, 256), ("w",))
    with load_checkpoint(folder) as opened:
        whole = encode_tensor(planned, GGMLType.Q4_K, opened, pool=pool)
        monkeypatch.setattr("phlite.convert.tensor_data.SLICE_BYTES", 5000)
        np.testing.assert_array_equal(encode_tensor(planned, GGMLType.Q4_K, opened, pool=pool), whole)
