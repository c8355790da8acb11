"""A Hugging Face folder with Phi-3-mini's shape and random weights, to compare engines without downloading a model.

    python benchmarks/random_checkpoint.py FOLDER --tokenizer DIR

Speed does not depend on the values of weights. Every engine's own tool makes its format of the folder;
docs/benchmarks.md has the commands. The tokenizer is copied from DIR, any folder of a Phi-3-mini.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CONFIG = {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "bos_token_id": 1,
    "eos_token_id": 32000,
    "pad_token_id": 32000,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "sliding_window": 2047,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 32064,
}
E, F, V = 3072, 8192, 32064
SCALE = 0.02
"""Standard deviation of the weights, the model's initializer_range: activations stay finite in every engine."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a checkpoint of Phi-3-mini's shape with random weights.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="folder with tokenizer.json")
    parser.add_argument("--layers", type=int, default=32, metavar="N")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    shard_of: dict[str, str] = {}
    for name, shapes in shards(options.layers):
        write_shard(options.folder / name, shapes, rng)
        shard_of.update(dict.fromkeys(shapes, name))
    write_json(options.folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": shard_of})
    write_json(options.folder / "config.json", {**CONFIG, "num_hidden_layers": options.layers})
    write_json(options.folder / "generation_config.json", {"eos_token_id": [32000, 32001, 32007]})
    for path in options.tokenizer.glob("tokenizer*"):
        shutil.copyfile(path, options.folder / path.name)


def shards(n_layers: int) -> Iterator[tuple[str, dict[str, tuple[int, ...]]]]:
    """Yield file names with the shapes of their tensors: one file per layer, one for the ends."""
    n_files = n_layers + 1
    for layer_idx in range(n_layers):
        prefix = f"model.layers.{layer_idx}."
        yield (
            f"model-{layer_idx + 1:05d}-of-{n_files:05d}.safetensors",
            {
                prefix + "input_layernorm.weight": (E,),
                prefix + "post_attention_layernorm.weight": (E,),
                prefix + "self_attn.qkv_proj.weight": (3 * E, E),
                prefix + "self_attn.o_proj.weight": (E, E),
                prefix + "mlp.gate_up_proj.weight": (2 * F, E),
                prefix + "mlp.down_proj.weight": (E, F),
            },
        )
    yield (
        f"model-{n_files:05d}-of-{n_files:05d}.safetensors",
        {"model.embed_tokens.weight": (V, E), "model.norm.weight": (E,), "lm_head.weight": (V, E)},
    )


def write_shard(path: Path, shapes: dict[str, tuple[int, ...]], rng: np.random.Generator) -> None:
    """Write a safetensors file: the length of a JSON header, the header, the tensors one after another."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            file.write(random_bf16(shape, rng).tobytes())


def random_bf16(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.uint16]:
    """Return the bits of bfloat16 numbers: ones for a norm, normally distributed ones for a matrix."""
    if len(shape) == 1:
        values = np.ones(shape, np.float32)
    else:
        values = rng.standard_normal(shape, np.float32) * np.float32(SCALE)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def write_json(path: Path, fields: dict[str, object]) -> None:
    path.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
