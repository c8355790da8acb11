"""A small checkpoint as a Hugging Face folder: config.json, safetensors files, tokenizer.json and its neighbours."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiny_models.checkpoint import Checkpoint, StoredTensor

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
MARKERS = {
    0: "<unk>",
    1: "<s>",
    2: "</s>",
    3: "<|endoftext|>",
    4: "<|assistant|>",
    5: "<|end|>",
    6: "<|user|>",
    7: "<|system|>",
}
MERGES = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("i", "n"), ("▁", "a"), ("in", "g")]
LETTERS = ["▁", *map(chr, range(ord("a"), ord("z") + 1))]


def write_hf_folder(
    folder: Path,
    checkpoint: Checkpoint,
    *,
    n_shards: int = 1,
    tokenizer: bool = True,
    strips: bool = False,
    generation_config: Mapping[str, Any] | None = None,
) -> Path:
    """Write the files and return the folder.

    n_shards: 1 writes model.safetensors, more an index and its files
    strips:   whether the markers swallow the white space behind them
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(checkpoint.config))
    names = list(checkpoint.tensors)
    if n_shards == 1:
        write_safetensors(folder / "model.safetensors", checkpoint.tensors)
    else:
        weight_map = {}
        for shard, part in enumerate(np.array_split(names, n_shards), start=1):
            file = f"model-{shard:05d}-of-{n_shards:05d}.safetensors"
            write_safetensors(folder / file, {name: checkpoint.tensors[name] for name in part.tolist()})
            weight_map |= dict.fromkeys(part.tolist(), file)
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if generation_config is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation_config))
    if tokenizer:
        write_tokenizer(folder, checkpoint.config["vocab_size"], strips=strips)
    return folder


def write_safetensors(path: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """Write one file by the format's own description."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data: list[bytes] = []
    position = 0
    for name, tensor in tensors.items():
        raw = tensor.data.tobytes()
        header[name] = {
            "dtype": tensor.type,
            "shape": list(tensor.values.shape),
            "data_offsets": [position, position + len(raw)],
        }
        position += len(raw)
        data.append(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data))


def write_tokenizer(folder: Path, n_vocab: int, *, strips: bool) -> None:
    """Write a SentencePiece-BPE vocabulary: Phi-3's markers, the bytes, letters and a few merges."""
    pieces = [MARKERS[i] for i in MARKERS] + [f"<0x{byte:02X}>" for byte in range(256)] + LETTERS
    pieces += [left + right for left, right in MERGES]
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    definition = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(i, text, strips) for i, text in MARKERS.items()],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, space]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {piece: i for i, piece in enumerate(pieces[:n_vocab])},
            "merges": [f"{left} {right}" for left, right in MERGES],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    config = {
        "bos_token": "<s>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<unk>",
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "LlamaTokenizer",
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _added(token_id: int, text: str, strips: bool) -> dict[str, Any]:
    rstrip = strips and text.startswith("<|") and text != "<|endoftext|>"
    flags = {"single_word": False, "lstrip": False, "rstrip": rstrip, "normalized": False, "special": True}
    return {"id": token_id, "content": text, **flags}


def stored(values: NDArray[np.float32] | Sequence[Any], kind: str = "F32") -> StoredTensor:
    """Return values as a tensor of a float type; for BF16 they must be bfloat16 numbers."""
    array = np.asarray(values, np.float32)
    if kind == "BF16":
        data = (array.view(np.uint32) >> 16).astype(np.uint16)
    else:
        data = array.astype(np.float16) if kind == "F16" else array
    return StoredTensor(kind, np.ascontiguousarray(data).view(np.uint8), array)
