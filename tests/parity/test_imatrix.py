"""Importance matrices against transformers: what each module is multiplied by, squared and added up over windows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import MEMBERS, Checkpoint, random_checkpoint, write_gguf
from tiny_models.gguf_file import gguf_name
from tiny_models.phimoe import PHIMOE_MEMBERS, fused_experts, random_phimoe_checkpoint, write_phimoe_gguf

from phlite import ops
from phlite.convert.importance import ImportanceMatrix
from phlite.gguf import load_gguf
from phlite.imatrix import InputSums, watch_windows
from phlite.models.registry import build_model
from phlite.perplexity import Windows

N_CTX = 96


def seen_by_phlite(path: Path, token_ids: np.ndarray, pool: ops.ThreadPool, logit_bytes: int) -> ImportanceMatrix:
    with pytest.MonkeyPatch.context() as patch, load_gguf(path) as file:
        patch.setattr("phlite.imatrix.LOGIT_BYTES", logit_bytes)
        sums = InputSums({name: tensor.shape for name, tensor in file.tensors.items()})
        model = build_model(file, pool=pool)
        done = list(watch_windows(model, Windows(token_ids, 1), sums, kv_type="f32"))
        assert done == [1, 2]
        watch = model.lm_head.watch
        assert watch is not None
        assert watch.see is None
        return sums.matrix(source="", dataset="text", n_windows=2, n_ctx=N_CTX)


def windows_of(checkpoint: Checkpoint) -> np.ndarray:
    return np.random.default_rng(91).integers(0, checkpoint.config["vocab_size"], (2, N_CTX)).astype(np.int32)


def sums_of_linear_modules(model: Any, token_ids: np.ndarray) -> dict[str, np.ndarray]:
    """Sums of squared inputs of every nn.Linear by module name."""
    import torch

    sums: dict[str, np.ndarray] = {}

    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: Any, arguments: tuple[Any, ...]) -> None:
            x = arguments[0].reshape(-1, arguments[0].shape[-1]).double().numpy()
            sums[name] = sums.get(name, 0) + np.square(x).sum(axis=0)

        return hook

    handles = [
        module.register_forward_pre_hook(hook_of(name))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    with torch.inference_mode():
        for window in token_ids:
            model(torch.tensor(window[None].astype(np.int64)))
    for handle in handles:
        handle.remove()
    return sums


@pytest.mark.parametrize("logit_bytes", [1 << 30, 4 * 1003 * 20], ids=["whole windows", "in pieces"])
@pytest.mark.parametrize("member", ["mini-4k", "phi-4-mini"])
def test_every_matrix_sees_what_transformers_modules_see(
    transformers_model: Callable[..., Any], tmp_path: Path, pool: ops.ThreadPool, member: str, logit_bytes: int
):
    checkpoint = random_checkpoint(MEMBERS[member], seed=92)
    path, token_ids = write_gguf(tmp_path / "tiny.gguf", checkpoint), windows_of(checkpoint)
    expected = sums_of_linear_modules(transformers_model(checkpoint).model, token_ids)
    got = seen_by_phlite(path, token_ids, pool, logit_bytes)
    names = {gguf_name(f"{name}.weight"): sums for name, sums in expected.items()}
    if checkpoint.config["tie_word_embeddings"]:
        names["token_embd.weight"] = names.pop("output.weight")
    assert got.entries.keys() == names.keys()
    for name, sums in names.items():
        np.testing.assert_allclose(got.entries[name].sums, sums[None], rtol=2e-4, err_msg=name)
        assert got.entries[name].counts.tolist() == [2 * N_CTX]


def test_every_expert_sees_what_it_sees_in_transformers(
    transformers_model: Callable[..., Any], tmp_path: Path, pool: ops.ThreadPool
):
    import torch
    from transformers import PhimoeConfig, PhimoeForCausalLM

    checkpoint = random_phimoe_checkpoint(PHIMOE_MEMBERS["phi-mini-moe"], seed=93)
    path, token_ids = write_phimoe_gguf(tmp_path / "tiny.gguf", checkpoint), windows_of(checkpoint)
    config = {key: value for key, value in checkpoint.config.items() if key != "model_type"}
    model = PhimoeForCausalLM(PhimoeConfig(**config, bos_token_id=1, eos_token_id=None, pad_token_id=0)).eval()
    model.load_state_dict({n: torch.from_numpy(t.values.copy()) for n, t in fused_experts(checkpoint).items()})
    n_experts = checkpoint.config["num_local_experts"]
    weights = {name: tensor.values.astype(np.float64) for name, tensor in fused_experts(checkpoint).items()}
    seen: dict[str, list[Any]] = {}
    for name, module in model.named_modules():
        if name.endswith(".experts"):
            module.register_forward_pre_hook(
                lambda module, arguments, name=name: seen.setdefault(name, []).append(arguments)
            )
    with torch.inference_mode():
        for window in token_ids:
            model(torch.tensor(window[None].astype(np.int64)))
    got = seen_by_phlite(path, token_ids, pool, 1 << 30)
    assert len(seen) == checkpoint.config["num_hidden_layers"]
    for name, calls in seen.items():
        layer_idx = name.split(".")[2]
        x = np.concatenate([call[0].reshape(-1, call[0].shape[-1]).double().numpy() for call in calls])
        chosen = np.concatenate([call[1].reshape(len(x) // len(calls), -1).numpy() for call in calls])
        entries = {part: got.entries[f"blk.{layer_idx}.ffn_{part}_exps.weight"] for part in ("gate", "up", "down")}
        for e in range(n_experts):
            rows = x[(chosen == e).any(axis=1)]
            gate, up = np.split(rows @ weights[f"{name}.gate_up_proj"][e].T, 2, axis=1)
            inner = gate / (1 + np.exp(-gate)) * up
            for part, inputs in (("gate", rows), ("up", rows), ("down", inner)):
                assert entries[part].counts[e] == len(rows)
                expected = np.square(inputs).sum(axis=0)
                assert np.abs(entries[part].sums[e] - expected).max() <= 1e-3 * expected.mean()
