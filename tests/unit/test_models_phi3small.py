"""Phi-3-small: every key and tensor is used or refused, and a sequence does not depend on its neighbours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import all_logits
from tiny_models.checkpoint import Checkpoint
from tiny_models.hf_folder import stored
from tiny_models.phi3small import random_phi3small_checkpoint, tiny_phi3small_config, write_phi3small_folder

from phlite import LLM, ops
from phlite.checkpoint import load_checkpoint
from phlite.convert import convert_checkpoint
from phlite.convert.on_load import converted_checkpoint
from phlite.errors import ModelFileError, UnsupportedModelError
from phlite.gguf import FileType, GGUFWriter, ValueType, load_gguf
from phlite.models.base import Batch
from phlite.models.phi3small import Phi3SmallConfig, Phi3SmallForCausalLM
from phlite.models.phi3small_tensors import qkv_row_order
from phlite.models.registry import build_checkpoint_model, build_model, load_model
from phlite.packing import packed_copy, remove_packed_copy, write_packed_copy

IDS = np.random.default_rng(5).integers(0, 384, 300).tolist()
NARROW = {"blocksparse_num_local_blocks": 1, "blocksparse_vert_stride": 4, "num_hidden_layers": 2}
SU = {
    "type": "su",
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
    "short_mscale": 1.1,
    "long_mscale": 1.2,
    "original_max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def pool() -> ops.ThreadPool:
    return ops.ThreadPool(2)


@pytest.fixture
def load(tmp_path: Path, pool: ops.ThreadPool) -> Callable[[Checkpoint], Any]:
    def build(checkpoint: Checkpoint) -> Any:
        with load_checkpoint(write_phi3small_folder(tmp_path / "model", checkpoint)) as opened:
            return build_checkpoint_model(opened, pool=pool)

    return build


@pytest.fixture(scope="module")
def gguf_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    config = tiny_phi3small_config(**NARROW, rope_scaling=SU, max_position_embeddings=512)
    write_phi3small_folder(folder / "model", random_phi3small_checkpoint(config))
    with load_checkpoint(folder / "model") as opened:
        return convert_checkpoint(opened, folder / "small.gguf")


def rewritten(path: Path, target: Path, changes: dict[str, Any], *, without: tuple[str, ...] = ()) -> Path:
    """Copy a file with other metadata."""
    new_types = {int: ValueType.UINT32, float: ValueType.FLOAT32, list: ValueType.INT32}
    with load_gguf(path) as file, GGUFWriter(target) as writer:
        for key, value in file.metadata.items():
            if key not in changes and key not in without:
                writer.add(key, value, file.metadata.value_type(key))
        for key, value in changes.items():
            writer.add(key, value, new_types[type(value)])
        for tensor in file.tensors.values():
            if tensor.name not in without:
                writer.add_tensor(tensor.name, tensor.shape, tensor.type, tensor.data)
    return target


def test_gguf_and_config_json_give_the_same_config(gguf_path: Path, pool: ops.ThreadPool) -> None:
    from_gguf = load_model(gguf_path, pool=pool).config
    assert isinstance(from_gguf, Phi3SmallConfig)
    values = tiny_phi3small_config(**NARROW, rope_scaling=SU, max_position_embeddings=512)
    from_json = Phi3SmallConfig.from_hf_config(values)
    for name in Phi3SmallConfig.__dataclass_fields__:
        if name != "qkv_grouped":
            got, expected = getattr(from_gguf, name), getattr(from_json, name)
            assert got == (pytest.approx(expected, rel=1e-7) if isinstance(expected, float) else expected), name


def test_the_published_8k_config_is_read() -> None:
    published = tiny_phi3small_config(
        hidden_size=4096,
        ff_intermediate_size=14336,
        num_attention_heads=32,
        num_key_value_heads=8,
        num_hidden_layers=32,
        vocab_size=100352,
        transformers_version="4.38.1",
        _name_or_path="Phi-3-small-8k-instruct",
        auto_map={"AutoConfig": "configuration_phi3_small.Phi3SmallConfig"},
    )
    config = Phi3SmallConfig.from_hf_config(published)
    assert (config.head_dim, config.softmax_scale) == (128, 1 / 128)
    assert config.block_sparse == ops.BlockSparse(64, 16, 8, homo_head_pattern=False)
    assert [i for i in range(6) if config.is_dense(i)] == [1, 3, 5]
    assert len(config.masked_token_ids) == 91
    assert 100276 in config.masked_token_ids
    assert not {100255, 100257, 100261, 100262, 100263, 100266} & set(config.masked_token_ids)
    assert config.tie_word_embeddings


def test_missing_keys_mean_the_published_defaults() -> None:
    config = Phi3SmallConfig.from_hf_config({"model_type": "phi3small"})
    assert config == Phi3SmallConfig.from_hf_config(
        tiny_phi3small_config(
            hidden_size=4096,
            ff_intermediate_size=14336,
            num_attention_heads=32,
            num_key_value_heads=8,
            num_hidden_layers=32,
            vocab_size=100352,
        )
    )


def test_null_means_none_and_not_the_default() -> None:
    nulls = dict.fromkeys(
        ["gegelu_limit", "dense_attention_every_n_layers", "mup_embedding_multiplier", "mup_width_multiplier"]
    )
    config = Phi3SmallConfig.from_hf_config(tiny_phi3small_config(**nulls))
    assert config.gegelu_limit is None
    assert not any(config.is_dense(i) for i in range(8))
    assert (config.mup_embedding_multiplier, config.mup_width_multiplier) == (1.0, 1.0)


@pytest.mark.parametrize(("is_padded", "expected"), [(True, 512), (False, 336)])
def test_a_multiplier_may_give_the_intermediate_size(is_padded: bool, expected: int) -> None:
    values = tiny_phi3small_config(ff_intermediate_size=None, ff_dim_multiplier=4, gegelu_pad_to_256=is_padded)
    assert Phi3SmallConfig.from_hf_config(values).intermediate_size == expected


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model_type": "phi3"}, UnsupportedModelError, "model_type is 'phi3'"),
        ({"hidden_act": "gelu"}, UnsupportedModelError, "hidden_act is 'gelu'"),
        ({"rope_position_scale": 2.0}, UnsupportedModelError, "rope_position_scale is 2.0"),
        ({"blocksparse_block_size": 32}, UnsupportedModelError, "sparse blocks of 32 positions.*multiple of 64"),
        ({"sliding_window": 2047}, UnsupportedModelError, "'sliding_window' has no meaning"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, UnsupportedModelError, "'linear'"),
        ({"rope_scaling": {**SU, "factor": 2.0}}, UnsupportedModelError, r"'rope_scaling\.factor' has no meaning"),
        ({"rope_scaling": {**SU, "long_factor": [1.0] * 7}}, ModelFileError, "list of 7 factors"),
        ({"rope_scaling": {"type": "su", "short_factor": [1.0]}}, ModelFileError, "original_max_position_embeddings"),
        ({"num_key_value_heads": 3}, ModelFileError, "8 query heads"),
        ({"num_attention_heads": 7, "num_key_value_heads": 7}, ModelFileError, "7 heads of 18"),
        ({"num_attention_heads": 256}, ModelFileError, "256 heads of 1,"),
        ({"ff_dim_multiplier": 4}, ModelFileError, "expected one of them"),
        ({"dense_attention_every_n_layers": 1.5}, ModelFileError, "1.5"),
        ({"blocksparse_vert_stride": 0}, ModelFileError, "blocksparse_vert_stride"),
        ({"gegelu_limit": -1.0}, ModelFileError, "gegelu_limit"),
    ],
    ids=str,
)
def test_a_config_that_is_not_this_model_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Phi3SmallConfig.from_hf_config(tiny_phi3small_config(**changes))


PREFIX = "phi3small"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"attention.block_sparse.block_size": 96}, UnsupportedModelError, "sparse blocks of 96"),
        ({"attention.block_sparse.local_blocks": 0}, ModelFileError, "local_blocks"),
        ({"attention.sliding_window": 512}, UnsupportedModelError, "sliding_window"),
        ({"masked_token_ids": [3, 384]}, ModelFileError, "masked token ids from 3 to 384"),
        ({"masked_token_ids": [3, 3]}, ModelFileError, "distinct"),
        ({"masked_token_ids": list(range(384))}, ModelFileError, "all 384 token ids are masked"),
        ({"rope.dimension_count": 8}, ModelFileError, "dimension_count"),
        ({"vocab_size": 383}, ModelFileError, "vocab_size"),
        ({"logit_scale": 0.0}, ModelFileError, "logit_scale"),
        ({"attention.head_count_kv": 3}, ModelFileError, "8 query heads"),
        ({"attention.head_count": 256}, ModelFileError, "dimension_count"),
        ({"block_count": 4_000_000_000}, ModelFileError, "block_count"),
        ({"block_count": 2_000_000_000}, ModelFileError, r"blk\.2\."),
    ],
    ids=str,
)
def test_a_file_that_contradicts_itself_is_refused(
    gguf_path: Path,
    tmp_path: Path,
    pool: ops.ThreadPool,
    changes: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    keys = {f"{PREFIX}.{key}": value for key, value in changes.items()}
    path = rewritten(gguf_path, tmp_path / "changed.gguf", keys)
    with pytest.raises(error, match=message):
        load_model(path, pool=pool)


@pytest.mark.parametrize(
    "name",
    [
        "phi3small.attention.scale",
        "phi3small.attention.block_sparse.homogeneous_heads",
        "phi3small.masked_token_ids",
        "phi3small.rope.scaling.long_mscale",
        "blk.1.attn_qkv.bias",
        "blk.0.ffn_up.weight",
        "output_norm.bias",
        "rope_factors_long.weight",
    ],
)
def test_a_missing_key_or_tensor_is_named(gguf_path: Path, tmp_path: Path, pool: ops.ThreadPool, name: str) -> None:
    path = rewritten(gguf_path, tmp_path / "less.gguf", {}, without=(name,))
    with pytest.raises(ModelFileError, match=name):
        load_model(path, pool=pool)


def test_masked_tokens_are_never_generated(gguf_path: Path, tmp_path: Path, pool: ops.ThreadPool) -> None:
    likely = np.argsort(all_logits(load_model(gguf_path, pool=pool), IDS[:20])[-1])[::-1][:5].tolist()
    path = rewritten(gguf_path, tmp_path / "masked.gguf", {f"{PREFIX}.masked_token_ids": likely[:4]})
    logits = all_logits(load_model(path, pool=pool), IDS[:20])[-1]
    assert np.flatnonzero(np.isneginf(logits)).tolist() == sorted(likely[:4])
    assert logits.argmax() == likely[4]


def test_rows_of_the_grouped_matrix_are_put_in_order() -> None:
    config = Phi3SmallConfig.from_hf_config(
        tiny_phi3small_config(hidden_size=12, num_attention_heads=6, num_key_value_heads=3, ff_intermediate_size=8)
    )
    # Three groups of two queries, a key and a value, two rows each.
    heads = [["q0", "q1", "k0", "v0"], ["q2", "q3", "k1", "v1"], ["q4", "q5", "k2", "v2"]]
    rows = [f"{head}{row}" for group in heads for head in group for row in "ab"]
    ordered = [rows[i] for i in qkv_row_order(config)]
    expected = [f"{kind}{i}" for kind, n in (("q", 6), ("k", 3), ("v", 3)) for i in range(n)]
    assert ordered == [f"{head}{row}" for head in expected for row in "ab"]


def test_a_table_that_the_config_gives_too_is_ignored(load: Callable[[Checkpoint], Any]) -> None:
    checkpoint = random_phi3small_checkpoint(tiny_phi3small_config(**NARROW))
    table = {"model.layers.0.self_attn.rotary_emb.inv_freq": stored(np.ones(8))}
    more = Checkpoint(checkpoint.config, {**checkpoint.tensors, **table})
    assert isinstance(load(more), Phi3SmallForCausalLM)


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        ({"lm_head.weight": stored(np.ones((384, 128)))}, ModelFileError, "'lm_head.weight' differs"),
        ({"model.layers.0.mlp.gate_proj.bias": stored(np.ones(8))}, UnsupportedModelError, "gate_proj"),
        ({"model.layers.1.self_attn.dense.bias": stored(np.ones(127))}, ModelFileError, r"expected \[128\]"),
    ],
    ids=["output", "unknown", "shape"],
)
def test_a_tensor_that_does_not_belong_is_refused(
    load: Callable[[Checkpoint], Any], tensors: dict[str, Any], error: type[Exception], message: str
) -> None:
    checkpoint = random_phi3small_checkpoint(tiny_phi3small_config(**NARROW))
    with pytest.raises(error, match=message):
        load(Checkpoint(checkpoint.config, {**checkpoint.tensors, **tensors}))


@pytest.mark.parametrize("dtype", ["f16", "q8_0", "f32"])
def test_neighbours_in_the_batch_do_not_change_a_bit(gguf_path: Path, pool: ops.ThreadPool, dtype: str) -> None:
    # The original length is 64: the first is rotated with the short list, the others with the long one.
    model, prompts = load_model(gguf_path, pool=pool), [IDS[:33], IDS, IDS[100:230]]
    alone = [all_logits(model, prompt, dtype=dtype)[-1] for prompt in prompts]
    starts = np.cumsum([0, *map(len, prompts)]).astype(np.int32)
    batch = Batch(
        token_ids=np.concatenate(prompts).astype(np.int32),
        positions=np.concatenate([np.arange(len(prompt)) for prompt in prompts]).astype(np.int32),
        seq_starts=starts,
        block_tables=np.array([[8, -1, -1, -1, -1], [0, 4, 2, 3, 1], [5, 7, 6, -1, -1]], np.int32),
        seq_lens=np.diff(starts).astype(np.int32),
        logit_rows=(starts[1:] - 1).astype(np.int32),
    )
    np.testing.assert_array_equal(model.forward(batch, model.build_kv_cache(9, dtype)), np.stack(alone))


def test_threads_do_not_change_a_bit(gguf_path: Path) -> None:
    logits = [all_logits(load_model(gguf_path, pool=ops.ThreadPool(n)), IDS) for n in (1, 2, 7)]
    np.testing.assert_array_equal(logits[0], logits[1])
    np.testing.assert_array_equal(logits[0], logits[2])


def test_a_converted_file_answers_in_a_chat(gguf_path: Path) -> None:
    llm = LLM.load(str(gguf_path), threads=1)
    markers = llm.tokenizer.special_tokens
    assert llm.chat_ids("the ring")[:2] == [markers["<|endoftext|>"], markers["<|user|>"]]
    assert {markers["<|endoftext|>"], markers["<|end|>"]} <= llm.tokenizer.stop_ids
    answer = llm.chat("the ring", max_tokens=70, temperature=1.0, seed=3)
    assert len(answer.token_ids) == 70 or answer.finish_reason == "stop"


def test_a_folder_quantised_while_loading_gives_the_bits_of_its_converted_file(
    tmp_path: Path, pool: ops.ThreadPool
) -> None:
    config = tiny_phi3small_config(**NARROW, hidden_size=256)
    folder = write_phi3small_folder(tmp_path / "model", random_phi3small_checkpoint(config, "BF16"))
    with load_checkpoint(folder) as opened:
        path = convert_checkpoint(opened, tmp_path / "small.gguf", file_type=FileType.Q4_K_M, pool=pool)
        loaded = build_checkpoint_model(converted_checkpoint(opened, FileType.Q4_K_M, pool=pool), pool=pool)
    with load_gguf(path) as file:
        kinds = {file.tensors[name].type.name for name in ("token_embd.weight", "blk.0.ffn_up.weight")}
        assert kinds == {"Q6_K", "Q4_K"}
    np.testing.assert_array_equal(all_logits(loaded, IDS), all_logits(load_model(path, pool=pool), IDS))


def test_a_packed_copy_gives_the_bits_of_its_file(gguf_path: Path, pool: ops.ThreadPool) -> None:
    expected = all_logits(load_model(gguf_path, pool=pool), IDS)
    write_packed_copy(gguf_path, pool=pool)
    try:
        with load_gguf(gguf_path) as file:
            stored = packed_copy(file)
            assert stored is not None
            np.testing.assert_array_equal(all_logits(build_model(file, pool=pool, tiles=stored), IDS), expected)
    finally:
        remove_packed_copy(gguf_path)
