"""LoRA adapters that peft wrote, against transformers and peft: logits within 1e-4 of their norm, equal greedy ids."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import MEMBERS, all_logits, random_checkpoint, write_gguf, write_hf_folder
from tiny_models.phi import PHI_MEMBERS, random_phi_checkpoint, split_phi_weights, write_phi_gguf

from phlite.checkpoint import load_checkpoint
from phlite.engine import SamplingParams
from phlite.engine.adapters import AdapterUse
from phlite.llm import LLM
from phlite.models.lora import load_adapter
from phlite.models.registry import build_checkpoint_model, load_model

MAX_RELATIVE_DIFFERENCE = 1e-4
FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]


pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # peft uses what transformers will remove


@pytest.fixture(scope="module")
def peft():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of third parties' imports
        return pytest.importorskip("peft", reason="the oracle needs peft: pip install 'phlite[parity]'")


@pytest.fixture
def save_adapter(peft, transformers_model, tmp_path):
    """Write a random adapter for a checkpoint with peft's own save_pretrained; returns its folder."""

    def save(checkpoint, name: str, **options: Any) -> Path:
        import torch

        torch.manual_seed(sum(map(ord, name)))
        config = peft.LoraConfig(**{"target_modules": FUSED, "init_lora_weights": False, **options})
        model = peft.get_peft_model(transformers_model(checkpoint).model, config)
        # By default peft copies the output matrix into an adapter of lm_head, which is refused.
        model.save_pretrained(tmp_path / name, save_embedding_layers=False)
        return tmp_path / name

    return save


@pytest.fixture
def oracle(peft, transformers_model):
    """transformers' model with adapters of these folders, each with its scale."""

    def build(checkpoint, adapters: dict[Path, float]):
        plain = transformers_model(checkpoint)
        names = [folder.name for folder in adapters]
        model = peft.PeftModel.from_pretrained(plain.model, adapters and next(iter(adapters)), adapter_name=names[0])
        for folder in list(adapters)[1:]:
            model.load_adapter(folder, adapter_name=folder.name)
        model.base_model.set_adapter(names)
        for module in model.modules():
            if isinstance(module, peft.tuners.lora.LoraLayer):
                for folder, scale in adapters.items():
                    if folder.name in module.scaling:
                        module.scaling[folder.name] *= scale
        plain.model = model.eval()
        return plain

    return build


def load_llm(tmp_path: Path, checkpoint, lora=None, **file: Any) -> LLM:
    path = write_gguf(tmp_path / "base.gguf", checkpoint, **file)
    return LLM.load(str(path), lora=lora, threads=2, kv_type="f32", n_ctx=512)


def logits_of(llm: LLM, ids: list[int], lora: dict[str, float] | None = None) -> np.ndarray:
    return all_logits(llm.engine.model, ids, lora=llm.engine.adapters.chosen(lora))


def relative_difference(got: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference of a row, relative to the norm of its logits; the worst row."""
    return float((np.abs(got - expected).max(axis=-1) / np.linalg.norm(expected, axis=-1)).max())


def assert_equal(llm: LLM, oracle, ids: list[int]) -> None:
    assert relative_difference(logits_of(llm, ids), oracle.logits(ids)) < MAX_RELATIVE_DIFFERENCE
    completion = llm.generate(ids[:12], SamplingParams.greedy(max_tokens=64, ignore_eos=True))
    assert list(completion.token_ids) == oracle.greedy_ids(ids[:12], 64)


@pytest.mark.parametrize("member", MEMBERS)
def test_an_adapter_of_all_projections_equals_peft(member, save_adapter, oracle, tmp_path, random_ids):
    checkpoint = random_checkpoint(MEMBERS[member], seed=81)
    folder = save_adapter(checkpoint, "all", r=8, lora_alpha=16)
    ids = random_ids(100, 512)
    llm = load_llm(tmp_path, checkpoint, folder)
    assert_equal(llm, oracle(checkpoint, {folder: 1.0}), ids)
    bare = logits_of(llm, ids, lora={})
    np.testing.assert_array_equal(bare, logits_of(load_llm(tmp_path, checkpoint), ids))
    assert np.abs(bare - logits_of(llm, ids)).max() > 0.1  # the adapter does something


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rslora", {"r": 8, "lora_alpha": 4, "use_rslora": True}),
        (
            "patterns",
            {"r": 8, "rank_pattern": {"o_proj": 3, "layers.1.mlp.down_proj": 5}, "alpha_pattern": {"o_proj": 9}},
        ),
        ("one-layer", {"r": 16, "target_modules": ["qkv_proj"], "layers_to_transform": [1]}),
        ("output", {"r": 4, "target_modules": ["lm_head", "gate_up_proj"]}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_options_of_an_adapter_equal_peft(name, options, save_adapter, oracle, tmp_path, random_ids):
    checkpoint = random_checkpoint(MEMBERS["medium-4k"], seed=82)
    folder = save_adapter(checkpoint, name, **{"lora_alpha": 12, **options})
    assert_equal(load_llm(tmp_path, checkpoint, folder), oracle(checkpoint, {folder: 1.0}), random_ids(60, 512))


def test_several_adapters_with_scales_equal_peft(save_adapter, oracle, tmp_path, random_ids):
    checkpoint = random_checkpoint(MEMBERS["phi-4"], seed=83)
    one = save_adapter(checkpoint, "one", r=4, lora_alpha=8)
    two = save_adapter(checkpoint, "two", r=8, lora_alpha=8, target_modules=["o_proj", "down_proj"])
    llm = load_llm(tmp_path, checkpoint, {str(one): 0.7, str(two): -0.4})
    assert_equal(llm, oracle(checkpoint, {one: 0.7, two: -0.4}), random_ids(60, 512))


def test_a_checkpoint_folder_with_an_adapter_equals_peft(save_adapter, oracle, tmp_path, pool, random_ids):
    checkpoint = random_checkpoint(MEMBERS["mini-4k"], seed=84)
    folder = save_adapter(checkpoint, "style", r=8, lora_alpha=8)
    with load_checkpoint(write_hf_folder(tmp_path / "base", checkpoint)) as opened:
        model = build_checkpoint_model(opened, pool=pool)
    ids, adapter = random_ids(60, 512), load_adapter(folder, model, name="style")
    got = all_logits(model, ids, lora=[AdapterUse(adapter, 1.0)])
    assert relative_difference(got, oracle(checkpoint, {folder: 1.0}).logits(ids)) < MAX_RELATIVE_DIFFERENCE


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K"])
def test_an_adapter_of_a_quantised_model_equals_peft_within_the_rounding(
    kind, save_adapter, oracle, tmp_path, random_ids
):
    """Products with the base see int8 activations; the adapter's must not, so that the error stays as it is."""
    config = {**MEMBERS["phi-4-mini"], "hidden_size": 768, "num_attention_heads": 6, "num_key_value_heads": 2}
    checkpoint = random_checkpoint(config, kind, seed=85)
    folder = save_adapter(checkpoint, "style", r=8, lora_alpha=16)
    ids = random_ids(32, 512)
    llm = load_llm(tmp_path, checkpoint, folder)
    exact, got = oracle(checkpoint, {folder: 1.0}).logits(ids), logits_of(llm, ids)
    bare, bare_got = oracle(checkpoint, {folder: 0.0}).logits(ids), logits_of(llm, ids, lora={})
    error, bare_error = (np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in ((got, exact), (bare_got, bare)))
    assert np.linalg.norm(exact - bare) > 0.5 * np.linalg.norm(bare)
    assert error < 1.5 * bare_error


def test_an_adapter_of_phi_2_equals_peft(peft, tmp_path, pool, random_ids):
    """Split q, k and v, products with biases, and gelu behind the sum."""
    import torch
    from transformers import PhiConfig, PhiForCausalLM

    checkpoint = random_phi_checkpoint(PHI_MEMBERS["grouped"], seed=86)
    config = {key: value for key, value in checkpoint.config.items() if key != "model_type"}
    plain = PhiForCausalLM(PhiConfig(**config, bos_token_id=1, eos_token_id=None, pad_token_id=0)).eval()
    weights = {name: torch.from_numpy(v.copy()) for name, v in split_phi_weights(checkpoint).items()}
    plain.load_state_dict(weights, strict=True)
    targets = ["q_proj", "v_proj", "dense", "fc1", "fc2"]
    lora = peft.LoraConfig(r=6, lora_alpha=12, target_modules=targets, init_lora_weights=False)
    tuned = peft.get_peft_model(plain, lora).eval()
    tuned.save_pretrained(tmp_path / "style")
    ids = random_ids(60, 512)
    with torch.inference_mode():
        expected = tuned(torch.tensor([ids])).logits[0].numpy()

    model = load_model(write_phi_gguf(tmp_path / "base.gguf", checkpoint), pool=pool)
    adapter = load_adapter(tmp_path / "style", model, name="style")
    got = all_logits(model, ids, lora=[AdapterUse(adapter, 1.0)])
    assert relative_difference(got, expected) < MAX_RELATIVE_DIFFERENCE
    assert relative_difference(all_logits(model, ids), expected) > 0.01
