"""Quantised weights against transformers on the dequantised weights, in every block format.

The weights' values are exact; what differs is the input of each product, rounded to int8: x becomes
q · max|x| / 127 with |q| <= 127 per 32 columns (256 for formats with superblocks), so an element is off by at most
max|x| / 254, uniformly and with mean 0. How much of that reaches the logits is not guessed but computed: the float64
definition, run once as it is and once with its inputs rounded so, gives the error e of the rounding alone, 2 to 5 % of
the logits' norm in two layers. Ours must be as far from transformers as that, and nearer to the rounded definition than
an independent rounding could be (sqrt(2) e): the same elements are rounded the same way, but for those that lie within
1e-6 of a half, after each of which the next inputs differ by 1e-3 and a few more round the other way.
"""

import numpy as np
import pytest
from tiny_models import BLOCK_FORMATS, MEMBERS, all_logits, int8_activations, random_checkpoint, reference_logits

BLOCKS_OF_INT8 = [kind for kind in BLOCK_FORMATS if kind not in ("F32", "F16", "BF16")]
CONFIG = {**MEMBERS["phi-4-mini"], "hidden_size": 768, "num_attention_heads": 6, "num_key_value_heads": 2}


def q4_k_m(name: str) -> str:
    """The mixture of the published Phi-3-mini q4 file."""
    if "qkv_proj" in name:
        return "Q5_K"
    return "Q6_K" if "layers.0.mlp.down_proj" in name or "lm_head" in name else "Q4_K"


def relative_norm(difference: np.ndarray, of: np.ndarray) -> float:
    return float(np.linalg.norm(difference) / np.linalg.norm(of))


@pytest.mark.parametrize("kind", [*BLOCKS_OF_INT8, q4_k_m], ids=[*BLOCKS_OF_INT8, "Q4_K_M"])
def test_logits_equal_transformers_within_the_error_of_int8_activations(
    kind, transformers_model, phlite_model, random_ids
):
    config = {**CONFIG, "tie_word_embeddings": isinstance(kind, str)}
    checkpoint = random_checkpoint(config, kind, seed=21)
    ids = random_ids(32, 512)
    got, expected = all_logits(phlite_model(checkpoint), ids), transformers_model(checkpoint).logits(ids)

    exact = reference_logits(config, checkpoint.weights, ids)
    rounded = reference_logits(config, checkpoint.weights, ids, round_activations=int8_activations(checkpoint.tensors))
    error = relative_norm(rounded - exact, exact)
    assert 0.01 < error < 0.08  # else the logits do not depend on all of the weights, or the rounding is another
    assert 0.8 * error < relative_norm(got - expected, expected) < 1.25 * error
    assert relative_norm(got - rounded, rounded) < 0.8 * error
