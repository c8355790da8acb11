"""Phi-1.5 and Phi-2 against transformers' PhiForCausalLM and llama.cpp: logits, greedy ids, chunks, batches."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from tiny_models import all_logits, greedy_ids, write_hf_folder
from tiny_models.phi import PHI_MEMBERS, random_phi_checkpoint, split_phi_weights, write_phi_gguf

from phlite.checkpoint import load_checkpoint
from phlite.convert import convert_checkpoint
from phlite.gguf import FileType, load_gguf
from phlite.models.registry import build_checkpoint_model, load_model

MAX_RELATIVE_DIFFERENCE = 1e-4


def relative_difference(got: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference of a row, relative to the norm of its logits; the worst row."""
    return float((np.abs(got - expected).max(axis=-1) / np.linalg.norm(expected, axis=-1)).max())


class TransformersPhi:
    """PhiForCausalLM in float32 with a checkpoint's weights."""

    def __init__(self, checkpoint) -> None:
        torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
        torch.set_num_threads(1)
        transformers.utils.logging.set_verbosity_error()
        config = {k: v for k, v in checkpoint.config.items() if k != "model_type"}
        config = transformers.PhiConfig(**config, bos_token_id=1, eos_token_id=None, pad_token_id=0)
        self._torch, self.model = torch, transformers.PhiForCausalLM(config).eval()
        state = {name: torch.from_numpy(v.copy()) for name, v in split_phi_weights(checkpoint).items()}
        self.model.load_state_dict(state, strict=True)

    def logits(self, token_ids) -> np.ndarray:
        with self._torch.inference_mode():
            return self.model(self._torch.tensor([list(token_ids)])).logits[0].numpy()

    def greedy_ids(self, prompt_ids, n_new: int) -> list[int]:
        prompt = self._torch.tensor([list(prompt_ids)])
        with self._torch.inference_mode():
            ids = self.model.generate(
                prompt, attention_mask=self._torch.ones_like(prompt), max_new_tokens=n_new, do_sample=False
            )
        return ids[0, len(prompt_ids) :].tolist()


@pytest.fixture(scope="module", params=PHI_MEMBERS)
def pair(request: pytest.FixtureRequest, transformers_model, tmp_path_factory, pool):
    """A member's config with random float32 weights: the oracle's model and ours."""
    checkpoint = random_phi_checkpoint(PHI_MEMBERS[request.param], seed=61)
    path = write_phi_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", checkpoint)
    return TransformersPhi(checkpoint), load_model(path, pool=pool)


def test_logits_of_every_position_equal_transformers(pair, random_ids):
    oracle, model = pair
    ids = random_ids(150, 512)
    assert relative_difference(all_logits(model, ids), oracle.logits(ids)) < MAX_RELATIVE_DIFFERENCE


def test_64_greedy_ids_equal_transformers(pair, random_ids):
    oracle, model = pair
    prompt = random_ids(12, 512)
    assert greedy_ids(model, prompt, 64) == oracle.greedy_ids(prompt, 64)
    assert greedy_ids(model, prompt, 64, dtype="f16") == oracle.greedy_ids(prompt, 64)


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_of_a_prompt_do_not_change_a_bit(pair, random_ids, chunk: int):
    _, model = pair
    ids = random_ids(130, 512)
    assert np.array_equal(all_logits(model, ids, chunk=chunk), all_logits(model, ids))


def test_fused_qkv_of_gguf_files_equals_transformers(transformers_model, tmp_path, pool, random_ids):
    checkpoint = random_phi_checkpoint(PHI_MEMBERS["phi-2"], seed=62, fused=True)
    model = load_model(write_phi_gguf(tmp_path / "tiny.gguf", checkpoint), pool=pool)
    ids = random_ids(100, 512)
    assert (
        relative_difference(all_logits(model, ids), TransformersPhi(checkpoint).logits(ids)) < MAX_RELATIVE_DIFFERENCE
    )


@pytest.mark.parametrize(("kind", "bound"), [("F32", 4e-4), ("F16", 1e-3), ("Q8_0", 2e-2)])
def test_the_same_file_in_llama_cpp(llama_cpp_model, tmp_path, pool, random_ids, kind: str, bound: float):
    # llama.cpp looks GELU up in a table of float16, off by up to 2^-11 of each value; F16 and Q8_0 round inputs too.
    # Measured 2.1e-4, 4.3e-4, 9.5e-3 of the logits' norm.
    checkpoint = random_phi_checkpoint(PHI_MEMBERS["phi-2"], kind, seed=63, fused=True)
    path = write_phi_gguf(tmp_path / "tiny.gguf", checkpoint)
    oracle, ids = llama_cpp_model(path, 256), random_ids(64, 512)
    oracle.eval(ids)
    expected, got = np.array(oracle.scores[: len(ids)]), all_logits(load_model(path, pool=pool), ids)
    oracle.close()
    assert np.linalg.norm(got - expected) / np.linalg.norm(expected) < bound
    best_two = np.sort(expected, axis=-1)[:, -2:]
    decided = best_two[:, 1] - best_two[:, 0] > 5 * np.sqrt(2) * (got - expected).std(axis=-1)
    assert decided.mean() > 0.25
    np.testing.assert_array_equal(got.argmax(axis=-1)[decided], expected.argmax(axis=-1)[decided])


def test_a_saved_checkpoint_and_its_conversion_give_the_same_bits_and_llama_cpp_the_same_logits(
    transformers_model, llama_cpp_model, tmp_path, pool, random_ids
):
    oracle = TransformersPhi(random_phi_checkpoint(PHI_MEMBERS["phi-2"], seed=64))
    folder = write_hf_folder(tmp_path / "model", random_phi_checkpoint(PHI_MEMBERS["phi-2"], seed=1))  # a tokenizer
    oracle.model.save_pretrained(folder)
    ids = random_ids(64, 512)
    with load_checkpoint(folder) as checkpoint:
        logits = all_logits(build_checkpoint_model(checkpoint, pool=pool), ids)
        path = convert_checkpoint(checkpoint, tmp_path / "tiny.gguf", file_type=FileType.F32)
    assert relative_difference(logits, oracle.logits(ids)) < MAX_RELATIVE_DIFFERENCE
    assert np.array_equal(all_logits(load_model(path, pool=pool), ids), logits)

    llama = llama_cpp_model(path, 256)
    llama.eval(ids)
    expected = np.array(llama.scores[: len(ids)])
    llama.close()
    assert np.linalg.norm(logits - expected) / np.linalg.norm(expected) < 4e-4  # its GELU, as above


def test_converted_tensors_have_the_names_of_the_gguf_package(tmp_path):
    folder = write_hf_folder(tmp_path / "model", random_phi_checkpoint(PHI_MEMBERS["phi-1.5"], "BF16"))
    with load_checkpoint(folder) as checkpoint:
        path = convert_checkpoint(checkpoint, tmp_path / "tiny.gguf")
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.PHI2, 2)
        expected = {names.get_name(name, try_suffixes=(".weight", ".bias")) for name in checkpoint.tensors}
    with load_gguf(path) as file:
        assert set(file.tensors) == expected
        kinds = {(len(tensor.shape), tensor.type.name) for tensor in file.tensors.values()}
    assert kinds == {(1, "F32"), (2, "BF16")}
