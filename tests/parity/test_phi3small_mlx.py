"""Phi-3-small against mlx-lm on whole prompts of full blocks; it runs on the CPU where pip has wheels for it.

Two things in mlx-lm 0.32 are not the published model. Its sparse layers add the causal mask, which is one of bools, to
the scores, so that they see later keys too: the test gives it a mask of zeros and -inf. And it counts blocks from the
end of the prompt, so its mask is the published one only where lengths are multiples of the block. Beside that, it takes
layer i for sparse when i % n == 0, the same as i + 1 not being a multiple of n for the published n = 2 alone, and knows
no LongRoPE and no homogeneous heads.
"""

import warnings
from typing import Any

import numpy as np
import pytest
from tiny_models import all_logits
from tiny_models.phi3small import random_phi3small_checkpoint, tiny_phi3small_config, write_phi3small_folder

from phlite.checkpoint import load_checkpoint
from phlite.models.registry import build_checkpoint_model

MAX_RELATIVE_DIFFERENCE = 1e-4


@pytest.fixture(scope="module")
def mlx() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of third parties' imports
        mx = pytest.importorskip("mlx.core", reason="the oracle needs mlx: pip install 'mlx[cpu]' mlx-lm")
        pytest.importorskip("mlx_lm.models.phi3small", reason="the oracle needs mlx-lm: pip install mlx-lm")
    mx.set_default_device(mx.cpu)
    return mx


@pytest.mark.parametrize("n_local", [1, 2])
def test_logits_of_full_blocks_equal_mlx_lms(mlx, monkeypatch, tmp_path, pool, random_ids, n_local):
    from mlx_lm.models import phi3small

    later = mlx.array(np.triu(np.full((256, 256), -np.inf, np.float32), 1))
    monkeypatch.setattr(phi3small, "create_attention_mask", lambda *args, **options: later)
    # The published vocabulary: mlx-lm masks the dummy tokens by fixed ids.
    config = tiny_phi3small_config(
        vocab_size=100352,
        num_hidden_layers=2,
        blocksparse_num_local_blocks=n_local,
        blocksparse_vert_stride=4,
        gegelu_limit=2.0,
    )
    checkpoint, ids = random_phi3small_checkpoint(config, seed=41), random_ids(256, 100352)
    oracle = phi3small.Model(phi3small.ModelArgs.from_dict(config))
    oracle.load_weights([(name, mlx.array(values)) for name, values in checkpoint.weights.items()])
    expected = np.array(oracle(mlx.array([ids]))[0])
    with load_checkpoint(write_phi3small_folder(tmp_path / "model", checkpoint)) as opened:
        got = all_logits(build_checkpoint_model(opened, pool=pool), ids)
    assert np.array_equal(np.isneginf(got), np.isneginf(expected))
    assert np.isneginf(got[0]).sum() == 91
    got, expected = (np.where(np.isneginf(x), 0.0, x) for x in (got, expected))
    difference = np.abs(got - expected).max(axis=-1) / np.linalg.norm(expected, axis=-1)
    assert difference.max() < MAX_RELATIVE_DIFFERENCE
