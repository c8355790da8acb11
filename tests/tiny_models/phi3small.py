"""Small random Phi-3-small models: config, weights with biases, and the file of ranks that is their vocabulary."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

from tiny_models.checkpoint import Checkpoint, StoredTensor
from tiny_models.hf_folder import stored, write_hf_folder

# Pairs of tokens that are joined, in order; the letters of a few words, runs of spaces, a broken character.
JOINED = [b"he", b"in", b" t", b"er", b" the", b"  ", b"\n\n", b"ing", b"\xe3\x81", b"    "]


def tiny_phi3small_config(**changes: Any) -> dict[str, Any]:
    """Return a config.json as a dict: three layers, four queries to a key, the published pattern of blocks.

    The names and the values that are not sizes are those of microsoft/Phi-3-small-8k-instruct.
    """
    return {
        "model_type": "phi3small",
        "architectures": ["Phi3SmallForCausalLM"],
        "attention_bias": False,
        "attention_dropout_prob": 0.0,
        "blocksparse_block_size": 64,
        "blocksparse_homo_head_pattern": False,
        "blocksparse_num_local_blocks": 16,
        "blocksparse_triton_kernel_block_size": 64,
        "blocksparse_vert_stride": 8,
        "bos_token_id": 100257,
        "dense_attention_every_n_layers": 2,
        "embedding_dropout_prob": 0.1,
        "eos_token_id": 100257,
        "ff_dim_multiplier": None,
        "ff_intermediate_size": 256,
        "ffn_dropout_prob": 0.1,
        "gegelu_limit": 20.0,
        "gegelu_pad_to_256": True,
        "hidden_act": "gegelu",
        "hidden_size": 128,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "max_position_embeddings": 8192,
        "mup_attn_multiplier": 1.0,
        "mup_embedding_multiplier": 10.0,
        "mup_use_scaling": True,
        "mup_width_multiplier": 8.0,
        "num_attention_heads": 8,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "pad_sequence_to_multiple_of_64": True,
        "reorder_and_upcast_attn": False,
        "rope_embedding_base": 1000000,
        "rope_position_scale": 1.0,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": 384,
        **changes,
    }


def random_phi3small_checkpoint(config: dict[str, Any], kind: str = "F32", *, seed: int = 0) -> Checkpoint:
    """Return random tensors by Hugging Face name; scores are spread so that logits depend on every block that is seen.

    kind: "F32", "F16" or "BF16", of the matrices
    """
    rng = np.random.default_rng(seed)
    n_hidden, n_inner = config["hidden_size"], config["ff_intermediate_size"]
    head_dim = n_hidden // config["num_attention_heads"]
    n_qkv = n_hidden + 2 * config["num_key_value_heads"] * head_dim
    tensors: dict[str, StoredTensor] = {}

    def matrix(name: str, n_rows: int, n_cols: int, std: float) -> None:
        values = rng.normal(0.0, std, (n_rows, n_cols)).astype(np.float32)
        if kind == "BF16":
            values = (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        elif kind == "F16":
            values = values.astype(np.float16).astype(np.float32)
        tensors[name] = stored(values, kind)

    def product(name: str, n_rows: int, n_cols: int, gain: float) -> None:
        matrix(f"{name}.weight", n_rows, n_cols, gain * n_cols**-0.5)
        tensors[f"{name}.bias"] = stored(rng.normal(0.0, 0.3, n_rows))

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = stored(rng.uniform(0.5, 1.5, n_hidden))
        tensors[f"{name}.bias"] = stored(rng.normal(0.0, 0.3, n_hidden))

    matrix("model.embed_tokens.weight", config["vocab_size"], n_hidden, 0.1)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        norm(f"{layer}.input_layernorm")
        product(f"{layer}.self_attn.query_key_value", n_qkv, n_hidden, 0.6 * head_dim**0.5)
        product(f"{layer}.self_attn.dense", n_hidden, n_hidden, 1.5)
        norm(f"{layer}.post_attention_layernorm")
        product(f"{layer}.mlp.up_proj", 2 * n_inner, n_hidden, 1.5)
        product(f"{layer}.mlp.down_proj", n_hidden, n_inner, 1.0)
    norm("model.final_layernorm")
    return Checkpoint(config, tensors)


def write_phi3small_folder(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write the files as the published folder has them: a file of ranks, and no tokenizer.json; returns the folder."""
    write_hf_folder(folder, checkpoint, tokenizer=False)
    write_rank_file(folder / "cl100k_base.tiktoken")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Phi3SmallTokenizer"}))
    return folder


def write_rank_file(path: Path, joined: list[bytes] | None = None) -> Path:
    """Write the single bytes and the joined ones with their ranks."""
    tokens = [bytes([byte]) for byte in range(256)] + (JOINED if joined is None else joined)
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)))
    return path
