"""The numbers of a Phi-1, Phi-1.5 or Phi-2 model, from a GGUF file's metadata or from a Hugging Face config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from phlite.errors import ModelFileError, UnsupportedModelError
from phlite.gguf import Metadata, quoted
from phlite.layers.weights import Weights
from phlite.models.hf_config import INERT_KEYS, HFConfig

MAX_POSITIONS = 2**31 - 1

GGUF_NAMES = {
    f"{module}.{kind}": f"{name}.{kind}"
    for module, name in {
        "model.embed_tokens": "token_embd",
        "model.layers.*.input_layernorm": "blk.*.attn_norm",
        "model.layers.*.self_attn.qkv_proj": "blk.*.attn_qkv",
        "model.layers.*.self_attn.q_proj": "blk.*.attn_q",
        "model.layers.*.self_attn.k_proj": "blk.*.attn_k",
        "model.layers.*.self_attn.v_proj": "blk.*.attn_v",
        "model.layers.*.self_attn.dense": "blk.*.attn_output",
        "model.layers.*.mlp.fc1": "blk.*.ffn_up",
        "model.layers.*.mlp.fc2": "blk.*.ffn_down",
        "model.final_layernorm": "output_norm",
        "lm_head": "output",
    }.items()
    for kind in ("weight", "bias")
}
"""Tensor of the checkpoint -> tensor of a GGUF file of architecture `phi2`. Converters fuse q, k and v."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhiConfig:
    """The numbers of the architecture under their Hugging Face names.

    head_dim D and rotary_dim are in elements; the first rotary_dim of a head are rotated, the rest pass through.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    layer_norm_eps: float
    rope_theta: float
    rotary_dim: int
    tie_word_embeddings: bool = False

    @classmethod
    def from_gguf(cls, metadata: Metadata, weights: Weights) -> PhiConfig:
        """Return the config of a GGUF file of architecture `phi2`, which Phi-1 and Phi-1.5 have too.

        weights: gives the vocabulary's size, and whether there is an output matrix
        raises:  ModelFileError where keys are missing, wrong or contradict each other;
                 UnsupportedModelError for a key that is not known here
        source:  llama.cpp conversion/phi.py, Phi2Model.set_gguf_parameters
        """
        arch = metadata.get_str("general.architecture")
        hidden_size = metadata.get_int(f"{arch}.embedding_length", minimum=1)
        num_heads = metadata.get_int(f"{arch}.attention.head_count", minimum=1)
        head_dim = metadata.get_int(f"{arch}.attention.key_length", hidden_size // num_heads, minimum=1)
        metadata.get_int(f"{arch}.attention.value_length", head_dim, minimum=head_dim, maximum=head_dim)
        vocab_size = weights.matrix("model.embed_tokens.weight", n_rows=None, n_cols=hidden_size).shape[0]
        metadata.get_int(f"{arch}.vocab_size", vocab_size, minimum=vocab_size, maximum=vocab_size)
        config = cls(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=metadata.get_int(f"{arch}.feed_forward_length", minimum=1),
            num_hidden_layers=metadata.get_int(f"{arch}.block_count", minimum=1),
            num_attention_heads=num_heads,
            num_key_value_heads=metadata.get_int(f"{arch}.attention.head_count_kv", num_heads, minimum=1),
            head_dim=head_dim,
            max_position_embeddings=metadata.get_int(f"{arch}.context_length", minimum=2, maximum=MAX_POSITIONS),
            layer_norm_eps=metadata.get_float(f"{arch}.attention.layer_norm_epsilon", minimum=0.0, maximum=1.0),
            rope_theta=metadata.get_float(f"{arch}.rope.freq_base", 10000.0, minimum=1.0, maximum=1e30),
            rotary_dim=metadata.get_int(f"{arch}.rope.dimension_count", head_dim, minimum=2),
            tie_word_embeddings="lm_head.weight" not in weights,
        )
        unused = metadata.unused(f"{arch}.")
        if unused:
            raise UnsupportedModelError(
                f"{metadata.source}: metadata key {quoted(unused[0])} has no meaning in a Phi-2 class model; expected "
                "only the keys that a converter writes for one, since leaving it out could compute another model"
            )
        _check(config, metadata.source)
        return config

    @classmethod
    def from_hf_config(cls, values: Mapping[str, object], *, source: str = "config.json") -> PhiConfig:
        """Return the config of a Hugging Face checkpoint of model_type `phi`.

        values: the parsed config.json, of transformers 4 (rope_theta, rope_scaling) or 5 (rope_parameters)
        raises: ModelFileError where keys are missing, wrong or contradict each other;
                UnsupportedModelError for another model_type, or a key that is not known here
        source: transformers 5.x configuration_phi.PhiConfig
        """
        hf = HFConfig(values, source=source)
        for key, only in (("model_type", "phi"), ("hidden_act", "gelu_new")):
            if hf.get_str(key, only) != only:
                raise UnsupportedModelError(f"{source}: {key} is {values[key]!r}, expected {only!r}")
        if hf.get_bool("qk_layernorm", False):
            raise UnsupportedModelError(
                f"{source}: qk_layernorm is true; no published Phi has norms on queries and keys, expected false"
            )
        num_heads = hf.get_int("num_attention_heads", 32)
        hidden_size = hf.get_int("hidden_size", 2048)
        head_dim = hf.get_int("head_dim", hidden_size // num_heads)
        rope = hf.get_object("rope_parameters" if "rope_parameters" in hf else "rope_scaling")
        kind = rope.get_str("rope_type", rope.get_str("type", "default"))
        if kind != "default":
            raise UnsupportedModelError(f"{source}: rope scaling {kind!r}, expected 'default'")
        partial = rope.get_float("partial_rotary_factor", hf.get_float("partial_rotary_factor", 0.5))
        config = cls(
            vocab_size=hf.get_int("vocab_size", 51200),
            hidden_size=hidden_size,
            intermediate_size=hf.get_int("intermediate_size", 8192),
            num_hidden_layers=hf.get_int("num_hidden_layers", 24),
            num_attention_heads=num_heads,
            num_key_value_heads=hf.get_int("num_key_value_heads", num_heads),
            head_dim=head_dim,
            max_position_embeddings=hf.get_int("max_position_embeddings", 2048),
            layer_norm_eps=hf.get_float("layer_norm_eps", 1e-5),
            rope_theta=rope.get_float("rope_theta", hf.get_float("rope_theta", 10000.0)),
            rotary_dim=int(head_dim * partial),
            tie_word_embeddings=hf.get_bool("tie_word_embeddings", False),
        )
        unknown = [key for key in hf.unused() if key not in INERT_KEYS]
        unknown += [f"{rope.source.rsplit(' ', 1)[-1]}.{key}" for key in rope.unused()]
        if unknown:
            raise UnsupportedModelError(
                f"{source}: key {unknown[0]!r} has no meaning in a Phi-2 class model; expected only the keys of "
                "transformers' PhiConfig, since leaving it out could compute another model"
            )
        _check(config, source)
        return config


def _check(config: PhiConfig, source: str) -> None:
    n_q, n_kv, rotary_dim = config.num_attention_heads, config.num_key_value_heads, config.rotary_dim
    if n_q % n_kv:
        raise ModelFileError(f"{source}: {n_q} query heads, expected a multiple of the {n_kv} key/value heads")
    if rotary_dim < 2 or rotary_dim % 2 or rotary_dim > config.head_dim:
        raise ModelFileError(
            f"{source}: {rotary_dim} rotary dimensions, expected an even number up to the head's {config.head_dim}"
        )
