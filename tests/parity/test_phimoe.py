"""Phi-3.5-MoE class models against transformers: logits within 1e-4 of their norm, equal greedy ids, equal routes.

The weights are float32 and so is the cache: nothing is rounded but float32 sums, and only a token whose two best scores
are closer than that rounding could be routed otherwise; the seeds give none.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import Checkpoint, all_logits, greedy_ids, int8_activations, sequence_batch
from tiny_models.phimoe import (
    PHIMOE_MEMBERS,
    fused_experts,
    phimoe_longrope,
    phimoe_reference_logits,
    random_phimoe_checkpoint,
    read_phimoe_gguf,
    tiny_phimoe_config,
    write_phimoe_gguf,
)

from phlite import ops
from phlite.engine import Engine, SamplingParams
from phlite.models.base import CausalLM
from phlite.models.registry import load_model

MAX_RELATIVE_DIFFERENCE = 1e-4

pytest.importorskip("torch", reason="the oracle needs torch: pip install 'phlite[parity]'")
pytest.importorskip("transformers", reason="the oracle needs transformers: pip install 'phlite[parity]'")


class PhimoeOracle:
    """PhimoeForCausalLM in float32 with a checkpoint's weights."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        import torch
        from transformers import PhimoeConfig, PhimoeForCausalLM
        from transformers.utils import logging

        logging.set_verbosity_error()
        self._torch = torch
        torch.set_num_threads(1)
        config = copy.deepcopy(checkpoint.config)  # transformers writes into the nested ones
        del config["model_type"]
        config = PhimoeConfig(**config, bos_token_id=1, eos_token_id=None, pad_token_id=0)
        self.model = PhimoeForCausalLM(config).eval()
        state = {name: torch.from_numpy(t.values.copy()) for name, t in fused_experts(checkpoint).items()}
        self.model.load_state_dict(state)
        if config.rope_parameters["rope_type"] != "default":
            # Its forward is wrapped by what chooses the frequencies by the length, and then computes those of short
            # sequences once more; the published code and transformers 4 use the chosen ones.
            rotary = self.model.model.rotary_emb
            rotary.rope_init_fn = lambda config: (rotary.inv_freq, None)

    def logits(self, token_ids: Sequence[int], last: int = 0) -> np.ndarray:
        """Return float32[T, V], or of the last tokens only."""
        with self._torch.inference_mode():
            return self.model(self._torch.tensor([list(token_ids)]), logits_to_keep=last).logits[0].numpy()

    def greedy_ids(self, prompt_ids: Sequence[int], n_new: int) -> list[int]:
        """Return the ids that generate() gives without sampling."""
        prompt = self._torch.tensor([list(prompt_ids)])
        with self._torch.inference_mode():
            ids = self.model.generate(
                prompt, attention_mask=self._torch.ones_like(prompt), max_new_tokens=n_new, do_sample=False
            )
        return ids[0, len(prompt_ids) :].tolist()


@pytest.fixture(scope="session")
def both(
    tmp_path_factory: pytest.TempPathFactory, pool: ops.ThreadPool
) -> Callable[..., tuple[PhimoeOracle, CausalLM]]:
    """Build the oracle and our model of a checkpoint."""

    def build(checkpoint: Checkpoint) -> tuple[PhimoeOracle, CausalLM]:
        path: Path = write_phimoe_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", checkpoint)
        return PhimoeOracle(checkpoint), load_model(path, pool=pool)

    return build


@pytest.fixture(scope="module", params=PHIMOE_MEMBERS)
def pair(request: pytest.FixtureRequest, both: Any) -> Any:
    return both(random_phimoe_checkpoint(PHIMOE_MEMBERS[request.param], seed=11))


@pytest.fixture(scope="module")
def small_pair(both: Any) -> Any:
    """The list switches after 48 tokens, its attention factors differ, and the window is shorter."""
    rope = phimoe_longrope(64, original=48, short_mscale=1.1, long_mscale=1.3)
    config = tiny_phimoe_config(
        max_position_embeddings=1536, original_max_position_embeddings=48, sliding_window=40, rope_scaling=rope
    )
    return both(random_phimoe_checkpoint(config, seed=32))


def relative_difference(got: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference of a row, relative to the norm of its logits; the worst row."""
    return float((np.abs(got - expected).max(axis=-1) / np.linalg.norm(expected, axis=-1)).max())


def test_logits_of_every_position_equal_transformers(pair: Any, random_ids: Any) -> None:
    oracle, model = pair
    ids = random_ids(150, 512)
    assert relative_difference(all_logits(model, ids), oracle.logits(ids)) < MAX_RELATIVE_DIFFERENCE


def test_64_greedy_ids_equal_transformers(pair: Any, random_ids: Any) -> None:
    oracle, model = pair
    prompt = random_ids(12, 512)
    assert greedy_ids(model, prompt, 64) == oracle.greedy_ids(prompt, 64)


def test_experts_that_share_a_weight_equal_transformers(both: Any, random_ids: Any) -> None:
    # Scores so near each other that most softmaxes run over several experts.
    checkpoint = random_phimoe_checkpoint(tiny_phimoe_config(), seed=12)
    gates = [name for name in checkpoint.tensors if name.endswith("gate.weight")]
    for name in gates:
        values = checkpoint.tensors[name].values
        values[:] = values[:1] + 0.03 * values
        checkpoint.tensors[name].data[:] = values.view(np.uint8).reshape(checkpoint.tensors[name].data.shape)
    oracle, model = both(checkpoint)
    ids = random_ids(100, 512)
    assert relative_difference(all_logits(model, ids), oracle.logits(ids)) < MAX_RELATIVE_DIFFERENCE


@pytest.mark.parametrize("n_tokens", [2047, 2048, 2100])
def test_window_of_the_narrow_members_equals_transformers(both: Any, random_ids: Any, n_tokens: int) -> None:
    oracle, model = both(random_phimoe_checkpoint(PHIMOE_MEMBERS["phi-mini-moe"], seed=13))
    ids = random_ids(n_tokens, 512)
    cache = model.build_kv_cache(-(-n_tokens // 64), "f32")
    got = model.forward(sequence_batch(ids, logit_rows=range(n_tokens - 4, n_tokens)), cache)
    assert relative_difference(got, oracle.logits(ids, last=4)) < MAX_RELATIVE_DIFFERENCE


@pytest.mark.parametrize("n_tokens", [4096, 4097])
def test_logits_around_4096_tokens_equal_transformers(both: Any, random_ids: Any, n_tokens: int) -> None:
    oracle, model = both(random_phimoe_checkpoint(PHIMOE_MEMBERS["phi-3.5-moe"], seed=14))
    ids = random_ids(5000, 512)[:n_tokens]
    cache = model.build_kv_cache(-(-n_tokens // 64), "f32")
    for start in range(0, n_tokens, 1024):
        part = ids[start : start + 1024]
        rows = [row for row in range(len(part)) if start + row >= n_tokens - 4]
        logits = model.forward(sequence_batch(part, start=start, seq_len=n_tokens, logit_rows=rows), cache)
    expected = oracle.logits(ids, last=4)[-len(logits) :]
    assert relative_difference(logits, expected) < MAX_RELATIVE_DIFFERENCE


@pytest.mark.parametrize("n_tokens", [47, 48, 49, 130])
def test_every_position_around_a_small_original_length_equals_transformers(
    small_pair: Any, random_ids: Any, n_tokens: int
) -> None:
    oracle, model = small_pair
    ids = random_ids(n_tokens, 512)
    assert relative_difference(all_logits(model, ids), oracle.logits(ids)) < MAX_RELATIVE_DIFFERENCE


@pytest.mark.parametrize("n_prompt", [20, 47, 48, 49])
def test_64_greedy_ids_across_a_small_original_length_equal_transformers(
    small_pair: Any, random_ids: Any, n_prompt: int
) -> None:
    oracle, model = small_pair
    prompt = random_ids(n_prompt, 512)
    assert greedy_ids(model, prompt, 64) == oracle.greedy_ids(prompt, 64)


def test_many_sequences_side_by_side_equal_transformers(small_pair: Any, random_ids: Any) -> None:
    """Tokens of all sequences meet in one product of an expert; each must get its own answer back."""
    oracle, model = small_pair
    prompts = [random_ids(n, 512) for n in (5, 30, 44, 48, 49, 90)]
    engine = Engine(model, n_ctx=192, cache_tokens=2048, kv_type="f32", max_batch_tokens=17)
    sequences = [engine.add(prompt, SamplingParams.greedy(max_tokens=30)) for prompt in prompts]
    ids: dict[int, list[int]] = {id(sequence): [] for sequence in sequences}
    while engine.has_unfinished:
        for output in engine.step():
            ids[id(output.sequence)].append(output.token_id)
    for prompt, sequence in zip(prompts, sequences, strict=True):
        assert ids[id(sequence)] == oracle.greedy_ids(prompt, 30)


@pytest.mark.parametrize("jitter_eps", [0.001, 0.01, 0.1])
def test_routes_equal_transformers_function(jitter_eps: float) -> None:
    import torch
    from transformers.models.phimoe.modeling_phimoe import sparsemixer

    rng = np.random.default_rng(21)
    far = rng.normal(0, 2, (400, 16))
    near = rng.normal(0, 3, (400, 1)) * (1 + rng.normal(0, 0.02, (400, 16)))
    tied = rng.integers(-2, 3, (400, 16))
    scores = np.concatenate([far, near, tied, np.zeros((1, 16))]).astype(np.float32)
    expected_weights, expected_experts = sparsemixer(torch.from_numpy(scores), jitter_eps, training=False)
    experts, weights = ops.route(scores, jitter_eps)
    np.testing.assert_array_equal(experts, expected_experts.numpy())
    np.testing.assert_allclose(weights, expected_weights.numpy(), rtol=4 * 2**-23)  # a float32 softmax of up to 16


@pytest.mark.parametrize("member", ["phi-3.5-moe", "phi-mini-moe"])
def test_llama_cpp_reads_the_file_and_departs_from_transformers_where_we_know(
    member: str, llama_cpp_model: Any, tmp_path: Path, random_ids: Any
) -> None:
    """Names, shapes and orders are llama.cpp's: with its norms and its router the definition gives its logits."""
    checkpoint = random_phimoe_checkpoint(PHIMOE_MEMBERS[member], seed=15)
    llama_cpp = llama_cpp_model(write_phimoe_gguf(tmp_path / "tiny.gguf", checkpoint), 256)
    ids = random_ids(40, 512)
    llama_cpp.eval(ids)
    got = np.array(llama_cpp.scores[: len(ids)])
    llama_cpp.close()
    as_llama_cpp, as_it_is = (
        phimoe_reference_logits(checkpoint.config, checkpoint.weights, ids, as_llama_cpp=it) for it in (True, False)
    )
    assert relative_difference(got, as_llama_cpp) < 1e-5
    assert relative_difference(got, as_it_is) > 0.01  # if this fails, llama.cpp has been repaired: compare with it


@pytest.mark.parametrize("file_type", ["MOSTLY_Q4_K_M", "MOSTLY_Q8_0", "MOSTLY_IQ4_XS"])
def test_a_file_that_llama_cpp_quantised_equals_the_definition_of_its_weights(
    file_type: str, llama_cpp_model: Any, tmp_path: Path, pool: ops.ThreadPool, random_ids: Any
) -> None:
    import ctypes

    import llama_cpp

    config = tiny_phimoe_config(intermediate_size=512)
    checkpoint = random_phimoe_checkpoint(config, seed=16)
    source, target = write_phimoe_gguf(tmp_path / "f32.gguf", checkpoint), tmp_path / "quantised.gguf"
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_{file_type}")
    options.nthread = 1
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(options)) == 0

    quantised, ids = read_phimoe_gguf(target, checkpoint), random_ids(40, 512)
    assert quantised.tensors["model.layers.0.block_sparse_moe.gate.weight"].type == "F32"
    rounding = int8_activations(quantised.tensors)
    expected = phimoe_reference_logits(config, quantised.weights, ids, round_activations=rounding)
    got = all_logits(load_model(target, pool=pool), ids)
    error = np.linalg.norm(got - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    # An input on the other side of a rounding to int8 moves a row by a hundredth, and once in a while to other experts.
    assert np.median(error) < 1e-5
    assert np.quantile(error, 0.9) < 0.02
