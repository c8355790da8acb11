"""The numbers of a Phi-3 class model, from a GGUF file's metadata or from a Hugging Face config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from phlite.errors import ModelFileError, UnsupportedModelError
from phlite.gguf import Metadata, quoted
from phlite.layers.rope import longrope_attention_factor
from phlite.layers.weights import Weights
from phlite.models.hf_config import INERT_KEYS, HFConfig

MAX_POSITIONS = 2**31 - 1

GGUF_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.layers.*.input_layernorm.weight": "blk.*.attn_norm.weight",
    "model.layers.*.self_attn.qkv_proj.weight": "blk.*.attn_qkv.weight",
    "model.layers.*.self_attn.q_proj.weight": "blk.*.attn_q.weight",
    "model.layers.*.self_attn.k_proj.weight": "blk.*.attn_k.weight",
    "model.layers.*.self_attn.v_proj.weight": "blk.*.attn_v.weight",
    "model.layers.*.self_attn.o_proj.weight": "blk.*.attn_output.weight",
    "model.layers.*.post_attention_layernorm.weight": "blk.*.ffn_norm.weight",
    "model.layers.*.mlp.gate_up_proj.weight": "blk.*.ffn_up.weight",
    "model.layers.*.mlp.gate_proj.weight": "blk.*.ffn_gate.weight",
    "model.layers.*.mlp.up_proj.weight": "blk.*.ffn_up.weight",
    "model.layers.*.mlp.down_proj.weight": "blk.*.ffn_down.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "rope.short_factor": "rope_factors_short.weight",
    "rope.long_factor": "rope_factors_long.weight",
}
"""Module of the checkpoint -> tensor of a GGUF file. ffn_up is the fused matrix where there is no ffn_gate."""

PHI3_MARKERS = frozenset({"<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>"})
"""Phi-3's chat markers. Llama has none of them, so they tell a Phi-3 stored with architecture `llama` from a Llama."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phi3Config:
    """The numbers of the architecture under their Hugging Face names.

    head_dim D and rotary_dim are in elements; the first rotary_dim of a head are rotated, the rest pass through.
    sliding_window: keys that a query sees, itself included; None: all
    rope_short_factor, rope_long_factor: LongRoPE's lists of rotary_dim / 2 stretches; None without LongRoPE
    rope_attention_factor: m, multiplies cos and sin
    rope_interleaved: q and k rows are ordered for rotation in neighbouring pairs, as in files of architecture `llama`
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
    rotary_dim: int
    sliding_window: int | None = None
    tie_word_embeddings: bool = False
    rope_short_factor: tuple[float, ...] | None = None
    rope_long_factor: tuple[float, ...] | None = None
    rope_attention_factor: float = 1.0
    rope_interleaved: bool = False

    @property
    def effective_window(self) -> int:
        """The sliding window, or 0 where no sequence is long enough to notice it."""
        window = self.sliding_window
        return 0 if window is None or window >= self.max_position_embeddings else window

    @classmethod
    def from_gguf(cls, metadata: Metadata, weights: Weights) -> Phi3Config:
        """Return the config of a GGUF file of architecture `phi3`, or of a Phi-3 stored as `llama`.

        weights: gives the vocabulary's size, whether there is an output matrix, and LongRoPE's lists
        raises:  ModelFileError where keys are missing, wrong or contradict each other;
                 UnsupportedModelError for a key that is not known here, or a `llama` that is no Phi-3
        source:  llama.cpp conversion/phi.py, Phi3MiniModel.set_gguf_parameters
        """
        arch = metadata.get_str("general.architecture")
        if arch == "llama":
            _check_is_phi3(metadata)
        hidden_size = metadata.get_int(f"{arch}.embedding_length", minimum=1)
        num_heads = metadata.get_int(f"{arch}.attention.head_count", minimum=1)
        head_dim = metadata.get_int(f"{arch}.attention.key_length", hidden_size // num_heads, minimum=1)
        metadata.get_int(f"{arch}.attention.value_length", head_dim, minimum=head_dim, maximum=head_dim)
        rotary_dim = metadata.get_int(f"{arch}.rope.dimension_count", head_dim, minimum=2)
        max_positions = metadata.get_int(f"{arch}.context_length", minimum=2, maximum=MAX_POSITIONS)
        original = metadata.get_int(
            f"{arch}.rope.scaling.original_context_length", max_positions, minimum=2, maximum=MAX_POSITIONS
        )
        vocab_size = weights.matrix("model.embed_tokens.weight", n_rows=None, n_cols=hidden_size).shape[0]
        metadata.get_int(f"{arch}.vocab_size", vocab_size, minimum=vocab_size, maximum=vocab_size)

        has_factors = "rope.short_factor" in weights or "rope.long_factor" in weights
        short, long = (
            tuple(map(float, weights.vector(f"rope.{which}_factor", rotary_dim // 2))) if has_factors else None
            for which in ("short", "long")
        )
        _check_gguf_scaling(metadata, arch, has_factors=has_factors)
        # The converter writes the factor; where it did not, the formula that it uses gives it.
        formula = longrope_attention_factor(max_positions / original, original) if has_factors else 1.0

        # Conversions before June 2024 did not write the window, which the 4k models of that time all have.
        default_window = 2047 if max_positions == 4096 and not has_factors else 0
        config = cls(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=metadata.get_int(f"{arch}.feed_forward_length", minimum=1),
            num_hidden_layers=metadata.get_int(f"{arch}.block_count", minimum=1),
            num_attention_heads=num_heads,
            num_key_value_heads=metadata.get_int(f"{arch}.attention.head_count_kv", num_heads, minimum=1),
            head_dim=head_dim,
            max_position_embeddings=max_positions,
            original_max_position_embeddings=original,
            rms_norm_eps=metadata.get_float(f"{arch}.attention.layer_norm_rms_epsilon", minimum=0.0, maximum=1.0),
            rope_theta=metadata.get_float(f"{arch}.rope.freq_base", 10000.0, minimum=1.0, maximum=1e30),
            rotary_dim=rotary_dim,
            sliding_window=metadata.get_int(f"{arch}.attention.sliding_window", default_window, minimum=0) or None,
            tie_word_embeddings="lm_head.weight" not in weights,
            rope_short_factor=short,
            rope_long_factor=long,
            rope_attention_factor=metadata.get_float(f"{arch}.rope.scaling.attn_factor", formula, minimum=1e-3),
            rope_interleaved=arch == "llama",
        )
        unused = metadata.unused(f"{arch}.")
        if unused:
            raise UnsupportedModelError(
                f"{metadata.source}: metadata key {quoted(unused[0])} has no meaning in a Phi-3 class model; expected "
                "only the keys that a converter writes for one, since leaving it out could compute another model"
            )
        _check(config, metadata.source)
        return config

    @classmethod
    def from_hf_config(cls, values: Mapping[str, object], *, source: str = "config.json") -> Phi3Config:
        """Return the config of a Hugging Face checkpoint of model_type `phi3`.

        values: the parsed config.json, of transformers 4 (rope_theta, rope_scaling) or 5 (rope_parameters)
        raises: ModelFileError where keys are missing, wrong or contradict each other;
                UnsupportedModelError for another model_type, or a key that is not known here
        source: transformers 5.x configuration_phi3.Phi3Config, modeling_rope_utils._compute_longrope_parameters
        """
        hf = HFConfig(values, source=source)
        for key, only in (("model_type", "phi3"), ("hidden_act", "silu")):
            if hf.get_str(key, only) != only:
                raise UnsupportedModelError(f"{source}: {key} is {values[key]!r}, expected {only!r}")
        for key in ("attention_bias", "mlp_bias", "lm_head_bias"):
            if hf.get_bool(key, False):
                raise UnsupportedModelError(f"{source}: {key} is true, but Phi-3 class models have no biases")

        num_heads = hf.get_int("num_attention_heads", 32)
        hidden_size = hf.get_int("hidden_size", 3072)
        head_dim = hf.get_int("head_dim", hidden_size // num_heads)
        max_positions = hf.get_int("max_position_embeddings", 4096)
        rope = hf.get_object("rope_parameters" if "rope_parameters" in hf else "rope_scaling")
        theta = rope.get_float("rope_theta", hf.get_float("rope_theta", 10000.0))
        partial = rope.get_float("partial_rotary_factor", hf.get_float("partial_rotary_factor", 1.0))
        original = hf.get_int("original_max_position_embeddings", 4096, minimum=2)
        original = rope.get_int("original_max_position_embeddings", original, minimum=2)
        kind = rope.get_str("rope_type", rope.get_str("type", "default"))
        short = long = None
        attention_factor = 1.0
        if kind in ("longrope", "su", "yarn"):  # transformers reads all three as longrope
            short, long = rope.get_floats("short_factor"), rope.get_floats("long_factor")
            scale = rope.get_float("factor", max_positions / original)
            attention_factor = rope.get_float("attention_factor", longrope_attention_factor(scale, original))
        elif kind != "default":
            raise UnsupportedModelError(f"{source}: rope scaling {kind!r}, expected 'default' or 'longrope'")
        config = cls(
            vocab_size=hf.get_int("vocab_size", 32064),
            hidden_size=hidden_size,
            intermediate_size=hf.get_int("intermediate_size", 8192),
            num_hidden_layers=hf.get_int("num_hidden_layers", 32),
            num_attention_heads=num_heads,
            num_key_value_heads=hf.get_int("num_key_value_heads", num_heads),
            head_dim=head_dim,
            max_position_embeddings=max_positions,
            original_max_position_embeddings=original,
            rms_norm_eps=hf.get_float("rms_norm_eps", 1e-5),
            rope_theta=theta,
            rotary_dim=int(head_dim * partial),
            sliding_window=hf.get_int("sliding_window") if "sliding_window" in hf else None,
            tie_word_embeddings=hf.get_bool("tie_word_embeddings", False),
            rope_short_factor=short,
            rope_long_factor=long,
            rope_attention_factor=attention_factor,
        )
        unknown = [key for key in hf.unused() if key not in INERT_KEYS]
        unknown += [f"{rope.source.rsplit(' ', 1)[-1]}.{key}" for key in rope.unused()]
        if unknown:
            raise UnsupportedModelError(
                f"{source}: key {unknown[0]!r} has no meaning in a Phi-3 class model; expected only the keys of "
                "transformers' Phi3Config, since leaving it out could compute another model"
            )
        _check(config, source)
        return config


def _check_is_phi3(metadata: Metadata) -> None:
    if not PHI3_MARKERS.issubset(metadata.get_str_array("tokenizer.ggml.tokens", [])):
        markers = " ".join(sorted(PHI3_MARKERS))
        raise UnsupportedModelError(
            f"{metadata.source}: a Llama model: its vocabulary lacks Phi-3's chat markers {markers}; of architecture "
            "'llama' only the first conversions of Phi-3-mini are supported"
        )


def _check_gguf_scaling(metadata: Metadata, arch: str, *, has_factors: bool) -> None:
    kind = metadata.get_str(f"{arch}.rope.scaling.type", "longrope" if has_factors else "none")
    factor = metadata.get_float(f"{arch}.rope.scaling.factor", 1.0)
    attention_factor = metadata.get_float(f"{arch}.rope.scaling.attn_factor", 1.0)
    if kind not in (("longrope",) if has_factors else ("none", "linear")) or factor not in (0.0, 1.0):
        raise UnsupportedModelError(
            f"{metadata.source}: rope scaling of type {kind!r} by {factor} "
            f"{'with' if has_factors else 'without'} LongRoPE factors; expected none, or LongRoPE by its factors alone"
        )
    if attention_factor != 1.0 and not has_factors:
        raise ModelFileError(
            f"{metadata.source}: {arch}.rope.scaling.attn_factor is {attention_factor}, but the tensors "
            "rope_factors_short.weight and rope_factors_long.weight are missing; the file is incomplete, convert again"
        )


def _check(config: Phi3Config, source: str) -> None:
    n_q, n_kv, rotary_dim = config.num_attention_heads, config.num_key_value_heads, config.rotary_dim
    if n_q % n_kv:
        raise ModelFileError(f"{source}: {n_q} query heads, expected a multiple of the {n_kv} key/value heads")
    if rotary_dim < 2 or rotary_dim % 2 or rotary_dim > config.head_dim:
        raise ModelFileError(
            f"{source}: {rotary_dim} rotary dimensions, expected an even number up to the head's {config.head_dim}"
        )
    for factors in (config.rope_short_factor, config.rope_long_factor):
        if factors is not None and (len(factors) != rotary_dim // 2 or min(factors) <= 0):
            raise ModelFileError(
                f"{source}: LongRoPE list of {len(factors)} factors from {min(factors, default=0.0)}, expected "
                f"{rotary_dim // 2} above 0, one for each pair of rotary dimensions"
            )
