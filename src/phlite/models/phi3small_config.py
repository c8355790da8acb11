"""The numbers of a Phi-3-small model, from a GGUF file's metadata or from a Hugging Face config.json.

llama.cpp has no such architecture, so the keys are our own, in the words of its others: docs/gguf-phi3small.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from phlite import ops
from phlite.errors import ModelFileError, UnsupportedModelError
from phlite.gguf import Metadata, quoted
from phlite.layers.rope import longrope_attention_factor
from phlite.layers.weights import Weights
from phlite.models.hf_config import INERT_KEYS, HFConfig
from phlite.ops.attention import BLOCK_POSITIONS

MAX_POSITIONS = 2**31 - 1

DUMMY_TOKEN_IDS = (100256, 100258, 100259, 100260, 100264, 100265, *range(100267, 100352))
"""Rows of the vocabulary that the model never means: <|fim_*|>, <|endofprompt|>, padding. Not in config.json.

source: microsoft/Phi-3-small-8k-instruct tokenization_phi3_small.py, dummy_token_indices
"""

# Beside INERT_KEYS: dropout, padding for training, and the sizes of another implementation's kernels.
_INERT_KEYS = INERT_KEYS | {
    "attention_bias",  # false in the published files although every product has a bias
    "attention_dropout_prob",
    "blocksparse_triton_kernel_block_size",
    "embedding_dropout_prob",
    "ffn_dropout_prob",
    "pad_sequence_to_multiple_of_64",
    "reorder_and_upcast_attn",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Phi3SmallConfig:
    """The numbers of the architecture under their Hugging Face names.

    softmax_scale:            factor of the scores, mup_attn_multiplier / head_dim, or 1 / sqrt(head_dim) without muP
    mup_embedding_multiplier: embeddings are multiplied by it; mup_width_multiplier: logits are divided by it
    gegelu_limit:             clamps the inputs of gegelu; None: no limit
    block_sparse:             what the heads of the sparse layers see
    dense_attention_every_n_layers: layer i is dense when i + 1 is a multiple of it; None: all layers are sparse
    rope_short_factor, rope_long_factor: LongRoPE's lists of head_dim / 2 stretches; None without LongRoPE
    rope_short_mscale, rope_long_mscale: multiply cos and sin with the short and the long list
    masked_token_ids:         ids whose logits are -inf
    qkv_grouped:              query_key_value has, as in the checkpoint, the rows of each group's queries, key and value
                              together; else all queries, all keys, all values
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
    layer_norm_epsilon: float
    rope_theta: float
    softmax_scale: float
    mup_embedding_multiplier: float
    mup_width_multiplier: float
    gegelu_limit: float | None
    block_sparse: ops.BlockSparse
    dense_attention_every_n_layers: int | None
    rope_short_factor: tuple[float, ...] | None = None
    rope_long_factor: tuple[float, ...] | None = None
    rope_short_mscale: float = 1.0
    rope_long_mscale: float = 1.0
    masked_token_ids: tuple[int, ...] = ()
    tie_word_embeddings: bool = True
    qkv_grouped: bool = False

    def is_dense(self, layer_idx: int) -> bool:
        """Whether every head of the layer sees all earlier keys."""
        n = self.dense_attention_every_n_layers
        return n is not None and (layer_idx + 1) % n == 0

    @classmethod
    def from_gguf(cls, metadata: Metadata, weights: Weights) -> Phi3SmallConfig:
        """Return the config of a GGUF file of architecture `phi3small`.

        weights: gives the vocabulary's size, whether there is an output matrix, and LongRoPE's lists
        raises:  ModelFileError where keys are missing, wrong or contradict each other;
                 UnsupportedModelError for a key that is not known here
        source:  docs/gguf-phi3small.md
        """
        arch = "phi3small"

        def count(key: str, *, minimum: int = 1) -> int:
            return metadata.get_int(f"{arch}.{key}", minimum=minimum, maximum=MAX_POSITIONS)

        def factor(key: str, default: float | None = None) -> float:
            if default is None:
                return metadata.get_float(f"{arch}.{key}", minimum=1e-6, maximum=1e6)
            return metadata.get_float(f"{arch}.{key}", default, minimum=1e-6, maximum=1e6)

        hidden_size, num_heads = count("embedding_length"), count("attention.head_count")
        head_dim = metadata.get_int(f"{arch}.attention.key_length", hidden_size // num_heads, minimum=2)
        metadata.get_int(f"{arch}.attention.value_length", head_dim, minimum=head_dim, maximum=head_dim)
        metadata.get_int(f"{arch}.rope.dimension_count", head_dim, minimum=head_dim, maximum=head_dim)
        vocab_size = weights.matrix("model.embed_tokens.weight", n_rows=None, n_cols=hidden_size).shape[0]
        metadata.get_int(f"{arch}.vocab_size", vocab_size, minimum=vocab_size, maximum=vocab_size)
        max_positions = count("context_length", minimum=2)
        has_factors = "rope.short_factor" in weights or "rope.long_factor" in weights
        short, long = (
            tuple(map(float, weights.vector(f"rope.{which}_factor", head_dim // 2))) if has_factors else None
            for which in ("short", "long")
        )
        original, mscales = max_positions, (1.0, 1.0)
        if has_factors:
            original = count("rope.scaling.original_context_length", minimum=2)
            mscales = factor("rope.scaling.short_mscale"), factor("rope.scaling.long_mscale")
        sparse = f"{arch}.attention.block_sparse"
        homogeneous = metadata.get_bool(f"{sparse}.homogeneous_heads")
        config = cls(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=count("feed_forward_length"),
            num_hidden_layers=count("block_count"),
            num_attention_heads=num_heads,
            num_key_value_heads=count("attention.head_count_kv"),
            head_dim=head_dim,
            max_position_embeddings=max_positions,
            original_max_position_embeddings=original,
            layer_norm_epsilon=metadata.get_float(f"{arch}.attention.layer_norm_epsilon", minimum=0.0, maximum=1.0),
            rope_theta=metadata.get_float(f"{arch}.rope.freq_base", minimum=1.0, maximum=1e30),
            softmax_scale=factor("attention.scale"),
            mup_embedding_multiplier=factor("embedding_scale", 1.0),
            mup_width_multiplier=factor("logit_scale", 1.0),
            gegelu_limit=factor("gegelu_limit") if f"{arch}.gegelu_limit" in metadata else None,
            block_sparse=ops.BlockSparse(
                block_size=count("attention.block_sparse.block_size"),
                num_local_blocks=count("attention.block_sparse.local_blocks"),
                vert_stride=count("attention.block_sparse.vertical_stride"),
                homo_head_pattern=homogeneous,
            ),
            dense_attention_every_n_layers=count("attention.block_sparse.dense_every_n_layers", minimum=0) or None,
            rope_short_factor=short,
            rope_long_factor=long,
            rope_short_mscale=mscales[0],
            rope_long_mscale=mscales[1],
            masked_token_ids=tuple(metadata.get_int_array(f"{arch}.masked_token_ids").tolist()),
            tie_word_embeddings="lm_head.weight" not in weights,
        )
        unused = metadata.unused(f"{arch}.")
        if unused:
            raise UnsupportedModelError(
                f"{metadata.source}: metadata key {quoted(unused[0])} has no meaning in a Phi-3-small model; expected "
                "only the keys of docs/gguf-phi3small.md, since leaving it out could compute another model"
            )
        _check(config, metadata.source)
        return config

    @classmethod
    def from_hf_config(cls, values: Mapping[str, object], *, source: str = "config.json") -> Phi3SmallConfig:
        """Return the config of a Hugging Face checkpoint of model_type `phi3small`.

        values: the parsed config.json
        raises: ModelFileError where keys are missing, wrong or contradict each other;
                UnsupportedModelError for another model_type, or a key that is not known here
        source: microsoft/Phi-3-small-8k-instruct configuration_phi3_small.py
        """
        hf = HFConfig(values, source=source)
        for key, only in (("model_type", "phi3small"), ("hidden_act", "gegelu")):
            if hf.get_str(key, only) != only:
                raise UnsupportedModelError(f"{source}: {key} is {values[key]!r}, expected {only!r}")
        position_scale = hf.get_float("rope_position_scale", 1.0)
        if position_scale != 1.0:
            # Implementations disagree on whether positions are multiplied or divided by it.
            raise UnsupportedModelError(f"{source}: rope_position_scale is {position_scale}, expected 1.0")

        def unless_null(key: str, default: float) -> float | None:
            """Here null says something else than a missing key: none."""
            value = hf.get_float(key, default)
            return None if key in values and values[key] is None else value

        hidden_size, num_heads = hf.get_int("hidden_size", 4096), hf.get_int("num_attention_heads", 32)
        head_dim = max(1, hidden_size // num_heads)  # _check refuses heads that do not fill the hidden size
        multiplier = hf.get_float("mup_attn_multiplier", 1.0)
        max_positions = hf.get_int("max_position_embeddings", 8192, minimum=2)
        every_n = unless_null("dense_attention_every_n_layers", 2)
        if every_n is not None and every_n != int(every_n):
            raise ModelFileError(f"{source}: dense_attention_every_n_layers is {every_n}, expected an integer or null")
        rope = hf.get_object("rope_scaling")
        scaling = _read_rope_scaling(rope, max_positions)
        vocab_size = hf.get_int("vocab_size", 100352)
        config = cls(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=_intermediate_size(hf, hidden_size),
            num_hidden_layers=hf.get_int("num_hidden_layers", 32),
            num_attention_heads=num_heads,
            num_key_value_heads=hf.get_int("num_key_value_heads", 8),
            head_dim=head_dim,
            max_position_embeddings=max_positions,
            original_max_position_embeddings=scaling.original,
            layer_norm_epsilon=hf.get_float("layer_norm_epsilon", 1e-5),
            rope_theta=hf.get_float("rope_embedding_base", 1e6),
            softmax_scale=multiplier / head_dim if hf.get_bool("mup_use_scaling", True) else head_dim**-0.5,
            mup_embedding_multiplier=unless_null("mup_embedding_multiplier", 10.0) or 1.0,
            mup_width_multiplier=unless_null("mup_width_multiplier", 8.0) or 1.0,
            gegelu_limit=unless_null("gegelu_limit", 20.0),
            block_sparse=ops.BlockSparse(
                block_size=hf.get_int("blocksparse_block_size", 64),
                num_local_blocks=hf.get_int("blocksparse_num_local_blocks", 16),
                vert_stride=hf.get_int("blocksparse_vert_stride", 8),
                homo_head_pattern=hf.get_bool("blocksparse_homo_head_pattern", False),
            ),
            dense_attention_every_n_layers=None if every_n is None else int(every_n),
            rope_short_factor=scaling.short_factor,
            rope_long_factor=scaling.long_factor,
            rope_short_mscale=scaling.short_mscale,
            rope_long_mscale=scaling.long_mscale,
            masked_token_ids=tuple(token_id for token_id in DUMMY_TOKEN_IDS if token_id < vocab_size),
            tie_word_embeddings=hf.get_bool("tie_word_embeddings", True),
            qkv_grouped=True,
        )
        unknown = [key for key in hf.unused() if key not in _INERT_KEYS]
        unknown += [f"rope_scaling.{key}" for key in rope.unused()]
        if unknown:
            raise UnsupportedModelError(
                f"{source}: key {unknown[0]!r} has no meaning in a Phi-3-small model; expected only the keys of the "
                "published Phi3SmallConfig, since leaving it out could compute another model"
            )
        _check(config, source)
        return config


@dataclass(frozen=True, slots=True)
class _RopeScaling:
    original: int
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None
    short_mscale: float = 1.0
    long_mscale: float = 1.0


def _read_rope_scaling(rope: HFConfig, max_positions: int) -> _RopeScaling:
    """Return the lists of the 128k model; an mscale that is not given is LongRoPE's formula."""
    kind = rope.get_str("type", rope.get_str("rope_type", "default"))
    if kind == "default":
        return _RopeScaling(max_positions)
    if kind not in ("su", "longrope"):
        raise UnsupportedModelError(f"{rope.source}: type {kind!r}, expected 'su' or 'longrope'")
    original = rope.get_int("original_max_position_embeddings", minimum=2)
    formula = longrope_attention_factor(max_positions / original, original)
    return _RopeScaling(
        original,
        rope.get_floats("short_factor"),
        rope.get_floats("long_factor"),
        rope.get_float("short_mscale", formula),
        rope.get_float("long_mscale", formula),
    )


def _intermediate_size(hf: HFConfig, hidden_size: int) -> int:
    """Return ff_intermediate_size, or two thirds of ff_dim_multiplier hidden sizes, in steps of 256 where padded."""
    is_padded = hf.get_bool("gegelu_pad_to_256", True)
    if "ff_dim_multiplier" not in hf:
        return hf.get_int("ff_intermediate_size", 14336)
    if "ff_intermediate_size" in hf:
        raise ModelFileError(f"{hf.source}: both ff_intermediate_size and ff_dim_multiplier, expected one of them")
    size = hf.get_int("ff_dim_multiplier") * (hidden_size // 3) * 2
    return -(-size // 256) * 256 if is_padded else size


def _check(config: Phi3SmallConfig, source: str) -> None:
    n_q, n_kv, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    if n_q % n_kv:
        raise ModelFileError(f"{source}: {n_q} query heads, expected a multiple of the {n_kv} key/value heads")
    if head_dim * n_q != config.hidden_size or head_dim % 2:
        raise ModelFileError(
            f"{source}: {n_q} heads of {head_dim}, expected an even size and {config.hidden_size} together"
        )
    if config.block_sparse.block_size % BLOCK_POSITIONS:
        raise UnsupportedModelError(
            f"{source}: sparse blocks of {config.block_sparse.block_size} positions, expected a multiple of "
            f"{BLOCK_POSITIONS}, the block of the key/value cache; the published models have 64"
        )
    for factors in (config.rope_short_factor, config.rope_long_factor):
        if factors is not None and (len(factors) != head_dim // 2 or min(factors) <= 0):
            raise ModelFileError(
                f"{source}: LongRoPE list of {len(factors)} factors from {min(factors, default=0.0)}, expected "
                f"{head_dim // 2} above 0, one for each pair of rotary dimensions"
            )
    masked = config.masked_token_ids
    if len(set(masked)) != len(masked) or (masked and not 0 <= min(masked) <= max(masked) < config.vocab_size):
        raise ModelFileError(
            f"{source}: masked token ids from {min(masked)} to {max(masked)}, expected distinct ids below the "
            f"vocabulary's {config.vocab_size}"
        )
    if len(masked) == config.vocab_size:
        raise ModelFileError(f"{source}: all {len(masked)} token ids are masked, expected some that can be generated")
