"""The numbers of a Phi-3.5-MoE class model, from a GGUF file's metadata or from a Hugging Face config.json."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from phlite.errors import ModelFileError, UnsupportedModelError
from phlite.gguf import Metadata, quoted
from phlite.layers.rope import longrope_attention_factor
from phlite.layers.weights import Weights
from phlite.models.hf_config import INERT_KEYS, HFConfig
from phlite.ops.moe import EXPERTS_PER_TOKEN, MAX_EXPERTS

MAX_POSITIONS = 2**31 - 1

PUBLISHED_MSCALE = 1.243163121016122
"""short_mscale and long_mscale of Phi-3.5-MoE-instruct, which llama.cpp's converter does not write into its files."""

GGUF_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.layers.*.input_layernorm.weight": "blk.*.attn_norm.weight",
    "model.layers.*.input_layernorm.bias": "blk.*.attn_norm.bias",
    "model.layers.*.self_attn.qkv_proj.weight": "blk.*.attn_qkv.weight",
    "model.layers.*.self_attn.qkv_proj.bias": "blk.*.attn_qkv.bias",
    "model.layers.*.self_attn.q_proj.weight": "blk.*.attn_q.weight",
    "model.layers.*.self_attn.q_proj.bias": "blk.*.attn_q.bias",
    "model.layers.*.self_attn.k_proj.weight": "blk.*.attn_k.weight",
    "model.layers.*.self_attn.k_proj.bias": "blk.*.attn_k.bias",
    "model.layers.*.self_attn.v_proj.weight": "blk.*.attn_v.weight",
    "model.layers.*.self_attn.v_proj.bias": "blk.*.attn_v.bias",
    "model.layers.*.self_attn.o_proj.weight": "blk.*.attn_output.weight",
    "model.layers.*.self_attn.o_proj.bias": "blk.*.attn_output.bias",
    "model.layers.*.post_attention_layernorm.weight": "blk.*.ffn_norm.weight",
    "model.layers.*.post_attention_layernorm.bias": "blk.*.ffn_norm.bias",
    "model.layers.*.block_sparse_moe.gate.weight": "blk.*.ffn_gate_inp.weight",
    "model.layers.*.block_sparse_moe.experts.*.w1.weight": "blk.*.ffn_gate.*.weight",
    "model.layers.*.block_sparse_moe.experts.*.w2.weight": "blk.*.ffn_down.*.weight",
    "model.layers.*.block_sparse_moe.experts.*.w3.weight": "blk.*.ffn_up.*.weight",
    "model.norm.weight": "output_norm.weight",
    "model.norm.bias": "output_norm.bias",
    "lm_head.weight": "output.weight",
    "lm_head.bias": "output.bias",
    "rope.short_factor": "rope_factors_short.weight",
    "rope.long_factor": "rope_factors_long.weight",
}
"""Module of the checkpoint -> tensor of a GGUF file, stacks of experts split (`phimoe_tensors.split_stacks`)."""

_INERT_KEYS = INERT_KEYS | {"hidden_dropout", "input_jitter_noise", "output_router_logits", "router_aux_loss_coef"}

logger = logging.getLogger("phlite")


@dataclass(frozen=True, slots=True, kw_only=True)
class PhimoeConfig:
    """The numbers of the architecture under their Hugging Face names.

    head_dim D is in elements, all of them are rotated
    sliding_window: keys that a query sees, itself included; None: all
    router_jitter_noise: experts within about twice this of the best, relative to their size, share its weight
    attention_bias: q, k, v and o have biases; lm_head_bias: the output matrix has one; the norms always have
    rope_short_factor, rope_long_factor: LongRoPE's lists of D / 2 stretches; None without LongRoPE
    rope_short_mscale, rope_long_mscale: multiply cos and sin, with the short and with the long list
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    original_max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    num_local_experts: int
    router_jitter_noise: float
    attention_bias: bool
    lm_head_bias: bool
    sliding_window: int | None = None
    tie_word_embeddings: bool = False
    rope_short_factor: tuple[float, ...] | None = None
    rope_long_factor: tuple[float, ...] | None = None
    rope_short_mscale: float = 1.0
    rope_long_mscale: float = 1.0

    @property
    def effective_window(self) -> int:
        """The sliding window, or 0 where no sequence is long enough to notice it."""
        window = self.sliding_window
        return 0 if window is None or window >= self.max_position_embeddings else window

    @classmethod
    def from_gguf(cls, metadata: Metadata, weights: Weights) -> PhimoeConfig:
        """Return the config of a GGUF file of architecture `phimoe`, written by phlite or by llama.cpp.

        weights: gives the vocabulary's size, which biases there are, and LongRoPE's lists
        raises:  ModelFileError where keys are missing, wrong or contradict each other;
                 UnsupportedModelError for a key that is not known here
        source:  llama.cpp conversion/phi.py, PhiMoeModel.set_gguf_parameters; the keys of ours are in docs/models.md
        """
        hidden_size = metadata.get_int("phimoe.embedding_length", minimum=1)
        num_heads = metadata.get_int("phimoe.attention.head_count", minimum=1)
        head_dim = metadata.get_int("phimoe.attention.key_length", hidden_size // num_heads, minimum=2)
        metadata.get_int("phimoe.attention.value_length", head_dim, minimum=head_dim, maximum=head_dim)
        metadata.get_int("phimoe.rope.dimension_count", head_dim, minimum=head_dim, maximum=head_dim)
        inner = metadata.get_int("phimoe.feed_forward_length", minimum=1)
        metadata.get_int("phimoe.expert_feed_forward_length", inner, minimum=inner, maximum=inner)
        metadata.get_int("phimoe.expert_used_count", minimum=EXPERTS_PER_TOKEN, maximum=EXPERTS_PER_TOKEN)
        max_positions = metadata.get_int("phimoe.context_length", minimum=2, maximum=MAX_POSITIONS)
        original = metadata.get_int(
            "phimoe.rope.scaling.original_context_length", max_positions, minimum=2, maximum=MAX_POSITIONS
        )
        vocab_size = weights.matrix("model.embed_tokens.weight", n_rows=None, n_cols=hidden_size).shape[0]
        metadata.get_int("phimoe.vocab_size", vocab_size, minimum=vocab_size, maximum=vocab_size)
        has_factors = "rope.short_factor" in weights or "rope.long_factor" in weights
        short, long = (
            tuple(map(float, weights.vector(f"rope.{which}_factor", head_dim // 2))) if has_factors else None
            for which in ("short", "long")
        )
        short_mscale, long_mscale = _gguf_mscales(metadata, max_positions, original) if has_factors else (1.0, 1.0)
        attention = "model.layers.0.self_attn"
        config = cls(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=inner,
            num_hidden_layers=metadata.get_int("phimoe.block_count", minimum=1),
            num_attention_heads=num_heads,
            num_key_value_heads=metadata.get_int("phimoe.attention.head_count_kv", num_heads, minimum=1),
            head_dim=head_dim,
            max_position_embeddings=max_positions,
            original_max_position_embeddings=original,
            # llama.cpp's name; the norms are LayerNorms.
            rms_norm_eps=metadata.get_float("phimoe.attention.layer_norm_rms_epsilon", minimum=0.0, maximum=1.0),
            rope_theta=metadata.get_float("phimoe.rope.freq_base", 10000.0, minimum=1.0, maximum=1e30),
            num_local_experts=metadata.get_int("phimoe.expert_count", minimum=EXPERTS_PER_TOKEN, maximum=MAX_EXPERTS),
            router_jitter_noise=metadata.get_float("phimoe.router_jitter_noise", 0.01, minimum=0.0, maximum=1.0),
            attention_bias=f"{attention}.q_proj.bias" in weights or f"{attention}.qkv_proj.bias" in weights,
            lm_head_bias="lm_head.bias" in weights,
            sliding_window=metadata.get_int("phimoe.attention.sliding_window", 0, minimum=0) or None,
            tie_word_embeddings="lm_head.weight" not in weights,
            rope_short_factor=short,
            rope_long_factor=long,
            rope_short_mscale=short_mscale,
            rope_long_mscale=long_mscale,
        )
        unused = metadata.unused("phimoe.")
        if unused:
            raise UnsupportedModelError(
                f"{metadata.source}: metadata key {quoted(unused[0])} has no meaning in a Phi-3.5-MoE class model; "
                "expected only the keys that a converter writes for one, since leaving it out could compute another "
                "model"
            )
        _check(config, metadata.source)
        return config

    @classmethod
    def from_hf_config(cls, values: Mapping[str, object], *, source: str = "config.json") -> PhimoeConfig:
        """Return the config of a Hugging Face checkpoint of model_type `phimoe`.

        values: the parsed config.json, of the published code or of transformers 4 or 5
        raises: ModelFileError where keys are missing, wrong or contradict each other;
                UnsupportedModelError for another model_type, or a key that is not known here
        source: transformers 5.x configuration_phimoe.PhimoeConfig, whose defaults stand for absent keys
        """
        hf = HFConfig(values, source=source)
        for key, only in (("model_type", "phimoe"), ("hidden_act", "silu")):
            if hf.get_str(key, only) != only:
                raise UnsupportedModelError(f"{source}: {key} is {values[key]!r}, expected {only!r}")
        hf.get_int("num_experts_per_tok", EXPERTS_PER_TOKEN, minimum=EXPERTS_PER_TOKEN, maximum=EXPERTS_PER_TOKEN)
        num_heads = hf.get_int("num_attention_heads", 32)
        hidden_size = hf.get_int("hidden_size", 4096)
        max_positions = hf.get_int("max_position_embeddings", 131072)
        rope = hf.get_object("rope_parameters" if "rope_parameters" in hf else "rope_scaling")
        theta = rope.get_float("rope_theta", hf.get_float("rope_theta", 1e6))
        original = hf.get_int("original_max_position_embeddings", max_positions, minimum=2)
        original = rope.get_int("original_max_position_embeddings", original, minimum=2)
        kind = rope.get_str("rope_type", rope.get_str("type", "default"))
        short = long = None
        short_mscale = long_mscale = 1.0
        if kind in ("longrope", "su"):
            short, long = rope.get_floats("short_factor"), rope.get_floats("long_factor")
            scale = rope.get_float("factor", max_positions / original)
            factor = rope.get_float("attention_factor", longrope_attention_factor(scale, original))
            short_mscale, long_mscale = (rope.get_float(f"{which}_mscale", factor) for which in ("short", "long"))
        elif kind != "default":
            raise UnsupportedModelError(f"{source}: rope scaling {kind!r}, expected 'default' or 'longrope'")
        config = cls(
            vocab_size=hf.get_int("vocab_size", 32064),
            hidden_size=hidden_size,
            intermediate_size=hf.get_int("intermediate_size", 6400),
            num_hidden_layers=hf.get_int("num_hidden_layers", 32),
            num_attention_heads=num_heads,
            num_key_value_heads=hf.get_int("num_key_value_heads", 8),
            head_dim=hf.get_int("head_dim", hidden_size // num_heads),
            max_position_embeddings=max_positions,
            original_max_position_embeddings=original,
            rms_norm_eps=hf.get_float("rms_norm_eps", 1e-5),
            rope_theta=theta,
            num_local_experts=hf.get_int("num_local_experts", 16, minimum=EXPERTS_PER_TOKEN, maximum=MAX_EXPERTS),
            router_jitter_noise=hf.get_float("router_jitter_noise", 0.01),
            attention_bias=hf.get_bool("attention_bias", False),
            lm_head_bias=hf.get_bool("lm_head_bias", False),
            sliding_window=hf.get_int("sliding_window") if "sliding_window" in hf else None,
            tie_word_embeddings=hf.get_bool("tie_word_embeddings", False),
            rope_short_factor=short,
            rope_long_factor=long,
            rope_short_mscale=short_mscale,
            rope_long_mscale=long_mscale,
        )
        unknown = [key for key in hf.unused() if key not in _INERT_KEYS]
        unknown += [f"{rope.source.rsplit(' ', 1)[-1]}.{key}" for key in rope.unused()]
        if unknown:
            raise UnsupportedModelError(
                f"{source}: key {unknown[0]!r} has no meaning in a Phi-3.5-MoE class model; expected only the keys of "
                "transformers' PhimoeConfig, since leaving it out could compute another model"
            )
        _check(config, source)
        return config


def _gguf_mscales(metadata: Metadata, max_positions: int, original: int) -> tuple[float, float]:
    """Return what multiplies cos and sin with the short and with the long list.

    phlite writes both as in the checkpoint. llama.cpp's converter writes one number, by the formula that Phi-3 uses
    and Phi-3.5-MoE does not; such a file stands for Phi-3.5-MoE, whose numbers then take its place.
    """
    formula = longrope_attention_factor(max_positions / original, original)
    factor = metadata.get_float("phimoe.rope.scaling.attn_factor", formula, minimum=1e-3)
    kind = metadata.get_str("phimoe.rope.scaling.type", "longrope")
    scale = metadata.get_float("phimoe.rope.scaling.factor", 1.0)
    if kind != "longrope" or scale not in (0.0, 1.0):
        raise UnsupportedModelError(
            f"{metadata.source}: rope scaling of type {kind!r} by {scale} with LongRoPE factors; expected LongRoPE by "
            "its factors alone"
        )
    if "phimoe.rope.scaling.short_mscale" in metadata:
        return (
            metadata.get_float("phimoe.rope.scaling.short_mscale", minimum=1e-3),
            metadata.get_float("phimoe.rope.scaling.long_mscale", minimum=1e-3),
        )
    if abs(factor - formula) < 1e-6 and (max_positions, original) == (131072, 4096):
        logger.info(
            "%s: attention factor %.6f is a converter's formula, not the model's; using Phi-3.5-MoE-instruct's %.6f",
            metadata.source,
            factor,
            PUBLISHED_MSCALE,
        )
        return PUBLISHED_MSCALE, PUBLISHED_MSCALE
    return factor, factor


def _check(config: PhimoeConfig, source: str) -> None:
    n_q, n_kv, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    if n_q % n_kv:
        raise ModelFileError(f"{source}: {n_q} query heads, expected a multiple of the {n_kv} key/value heads")
    if head_dim < 2 or head_dim % 2:
        raise ModelFileError(f"{source}: heads of {head_dim} elements, expected an even number")
    for factors in (config.rope_short_factor, config.rope_long_factor):
        if factors is not None and (len(factors) != head_dim // 2 or min(factors) <= 0):
            raise ModelFileError(
                f"{source}: LongRoPE list of {len(factors)} factors from {min(factors, default=0.0)}, expected "
                f"{head_dim // 2} above 0, one for each pair of a head's elements"
            )
