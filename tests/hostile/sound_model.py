"""A sound model of one small layer, as keys and tensors that a test can damage one at a time before writing them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from phlite.gguf import GGMLType, GGUFWriter, ValueType

U32, I32, F32 = ValueType.UINT32, ValueType.INT32, ValueType.FLOAT32

Keys = dict[str, tuple[object, ValueType | None]]
Tensors = dict[str, np.ndarray]

_BYTES = [f"<0x{value:02X}>" for value in range(256)]
_MARKERS = ["<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]
TOKENS = ["<unk>", "<s>", "</s>", *_BYTES, "▁", "a", "b", "▁a", *_MARKERS]
TOKEN_TYPES = [2, 3, 3] + [6] * 256 + [1] * 4 + [3] * 5
HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM = 64, 96, 2, 1, 32


def sound_keys() -> Keys:
    """Metadata of architecture phi3 with a SentencePiece vocabulary."""
    return {
        "general.architecture": ("phi3", None),
        "phi3.context_length": (4096, U32),
        "phi3.rope.scaling.original_context_length": (4096, U32),
        "phi3.embedding_length": (HIDDEN, U32),
        "phi3.feed_forward_length": (INNER, U32),
        "phi3.block_count": (1, U32),
        "phi3.attention.head_count": (HEADS, U32),
        "phi3.attention.head_count_kv": (KV_HEADS, U32),
        "phi3.attention.layer_norm_rms_epsilon": (1e-5, F32),
        "phi3.rope.dimension_count": (HEAD_DIM, U32),
        "phi3.rope.freq_base": (10000.0, F32),
        "phi3.attention.sliding_window": (2047, U32),
        "tokenizer.ggml.model": ("llama", None),
        "tokenizer.ggml.tokens": (TOKENS, None),
        "tokenizer.ggml.scores": ([-float(i) for i in range(len(TOKENS))], F32),
        "tokenizer.ggml.token_type": (TOKEN_TYPES, I32),
        "tokenizer.ggml.bos_token_id": (1, U32),
        "tokenizer.ggml.eos_token_id": (TOKENS.index("<|end|>"), U32),
        "tokenizer.ggml.unknown_token_id": (0, U32),
        "tokenizer.ggml.add_bos_token": (True, None),
    }


def sound_tensors() -> Tensors:
    """float32 weights that fit sound_keys()."""
    rng = np.random.default_rng(1)

    def matrix(n_rows: int, n_cols: int) -> np.ndarray:
        return rng.normal(0, n_cols**-0.5, (n_rows, n_cols)).astype(np.float32)

    return {
        "token_embd.weight": matrix(len(TOKENS), HIDDEN),
        "blk.0.attn_norm.weight": np.ones(HIDDEN, np.float32),
        "blk.0.attn_qkv.weight": matrix((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN),
        "blk.0.attn_output.weight": matrix(HIDDEN, HEADS * HEAD_DIM),
        "blk.0.ffn_norm.weight": np.ones(HIDDEN, np.float32),
        "blk.0.ffn_up.weight": matrix(2 * INNER, HIDDEN),
        "blk.0.ffn_down.weight": matrix(HIDDEN, INNER),
        "output_norm.weight": np.ones(HIDDEN, np.float32),
        "output.weight": matrix(len(TOKENS), HIDDEN),
    }


def write_model(path: Path, keys: Mapping[str, tuple[object, ValueType | None]], tensors: Tensors) -> Path:
    """Write the file; returns its path."""
    with GGUFWriter(path) as writer:
        for key, (value, value_type) in keys.items():
            writer.add(key, value, value_type)  # type: ignore[arg-type]
        for name, values in tensors.items():
            writer.add_tensor(name, values.shape, GGMLType.F32, values)
    return path
