"""`phlite show NAME`: what a model file holds, read from its header without loading weights."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import numpy as np

from phlite.cli.parser import Parser
from phlite.cli.stats import named_sampling
from phlite.cli.terminal import printable
from phlite.gguf import GGMLType, GGUFFile, Metadata, file_type_name, load_gguf
from phlite.hub import fetch, format_bytes
from phlite.recommended import recommended_fields

MAX_VALUE_CHARACTERS = 100


def add_arguments(parser: Parser) -> None:
    """The arguments of `phlite show`."""
    parser.add_argument("name", help="which model: a name, owner/repo or a path")
    parser.add_argument("-v", "--verbose", action="store_true", help="also the chat template, all metadata and tensors")


def run(options: argparse.Namespace) -> int:
    """Print a summary; with --verbose everything."""
    with load_gguf(fetch(options.name, progress=True).gguf) as file:
        for label, value in _summary(file):
            print(printable(f"{label:<14}{value}"))
        if options.verbose:
            _print_everything(file)
    return 0


def _summary(file: GGUFFile) -> list[tuple[str, str]]:
    metadata = file.metadata
    arch = metadata.get_str("general.architecture", "unknown")
    rows = [
        ("model", metadata.get_str("general.name", "unnamed")),
        ("file", f"{file.paths[0]} ({format_bytes(file.n_bytes)}{_parts(file)})"),
        ("architecture", arch),
        ("parameters", _count(sum(tensor.n_elements for tensor in file.tensors.values()))),
        ("shape", _shape(metadata, arch)),
        ("context", _context(metadata, arch)),
        ("quantisation", file_type_name(metadata.get_int("general.file_type", -1))),
        *(("", line) for line in _tensor_types(file)),
        ("tokenizer", _tokenizer(metadata)),
        ("sampling", named_sampling(recommended_fields(metadata)) or "no recommendation"),
        ("licence", metadata.get_str("general.license", "not given")),
    ]
    template = metadata.get_str("tokenizer.chat_template", "")
    rows.append(("chat template", f"{len(template)} characters (-v shows it)" if template else "none"))
    description = metadata.get_str("general.description", "")
    return [*rows, ("description", description)] if description else rows


def _parts(file: GGUFFile) -> str:
    return f" in {len(file.paths)} parts" if len(file.paths) > 1 else ""


def _count(n: int) -> str:
    return f"{n / 1e9:.2f} billion" if n >= 1e8 else f"{n / 1e6:.2f} million"


def _shape(metadata: Metadata, arch: str) -> str:
    def value(key: str) -> str:
        return str(metadata.get(f"{arch}.{key}", "?"))

    heads = f"{value('attention.head_count')} heads ({value('attention.head_count_kv')} for keys and values)"
    return (
        f"{value('block_count')} layers, {value('embedding_length')} wide, {heads}, MLP {value('feed_forward_length')}"
    )


def _context(metadata: Metadata, arch: str) -> str:
    length = metadata.get_int(f"{arch}.context_length", 0)
    original = metadata.get_int(f"{arch}.rope.scaling.original_context_length", 0)
    window = metadata.get_int(f"{arch}.attention.sliding_window", 0)
    text = f"{length} tokens"
    if 0 < original < length:
        text += f", stretched from {original} by LongRoPE"
    if 0 < window < length:
        text += f", attention window {window}"
    return text


def _tensor_types(file: GGUFFile) -> list[str]:
    by_type: dict[GGMLType, list[int]] = {}
    for tensor in file.tensors.values():
        by_type.setdefault(tensor.type, []).append(tensor.data.nbytes)
    largest_first = sorted(by_type.items(), key=lambda item: -sum(item[1]))
    return [f"{kind.name:<7}{len(sizes):>4} tensors  {format_bytes(sum(sizes)):>8}" for kind, sizes in largest_first]


def _tokenizer(metadata: Metadata) -> str:
    kinds = {"llama": "SentencePiece BPE", "gpt2": "byte-level BPE"}
    model = metadata.get_str("tokenizer.ggml.model", "none")
    tokens = metadata.get_str_array("tokenizer.ggml.tokens", [])
    return f"{kinds.get(model, model)}, {len(tokens)} tokens"


def _print_everything(file: GGUFFile) -> None:
    template = file.metadata.get("tokenizer.chat_template")
    if template:
        print(printable(f"\nchat template\n{_indented(str(template))}"))
    print("\nmetadata")
    _print_metadata(file.metadata)
    print("\ntensors")
    for tensor in file.tensors.values():
        shape = " x ".join(str(size) for size in tensor.shape)
        print(printable(f"  {tensor.name:<32} {tensor.type.name:<7} {shape}"))


def _print_metadata(metadata: Mapping[str, object]) -> None:
    for key, value in metadata.items():
        if key == "tokenizer.chat_template":
            continue
        text = " ".join(str(value).split())
        if isinstance(value, (list, np.ndarray)):
            head = ", ".join(repr(item) if isinstance(item, str) else str(item) for item in value[:4])
            text = f"[{head}{', ...' if len(value) > 4 else ''}] ({len(value)} values)"
        print(printable(f"  {key:<46} {text[:MAX_VALUE_CHARACTERS]}"))


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
