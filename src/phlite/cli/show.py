"""`phlite show NAME`: what a model file, a checkpoint folder or an adapter holds, read without loading weights."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import numpy as np

from phlite.cli.describe import (
    describe_architecture,
    describe_chat_template,
    describe_layers,
    describe_parameters,
)
from phlite.cli.parser import Parser
from phlite.cli.show_adapter import is_adapter_folder, is_adapter_metadata, print_adapter
from phlite.cli.stats import named_sampling
from phlite.cli.terminal import printable
from phlite.gguf import GGMLType, GGUFFile, Metadata, file_type_name, load_gguf
from phlite.hub import fetch, format_bytes
from phlite.recommended import recommended_fields
from phlite.tokenizer.special_tokens import STOP_TEXTS

MAX_VALUE_CHARACTERS = 100


def add_arguments(parser: Parser) -> None:
    """The arguments of `phlite show`."""
    parser.add_argument("name", help="which model: a name, owner/repo or a path")
    parser.add_argument("-v", "--verbose", action="store_true", help="also the chat template, all metadata and tensors")


def run(options: argparse.Namespace) -> int:
    """Print a summary; with --verbose everything."""
    if is_adapter_folder(options.name):
        print_adapter(options.name, verbose=options.verbose)
        return 0
    local = fetch(options.name, progress=True)
    if local.folder is not None:
        from phlite.checkpoint import load_checkpoint
        from phlite.cli.show_checkpoint import print_checkpoint

        with load_checkpoint(local.folder) as checkpoint:
            print_checkpoint(checkpoint, verbose=options.verbose)
        return 0
    with load_gguf(local.gguf) as file:
        if is_adapter_metadata(file.metadata):
            print_adapter(local.gguf, verbose=options.verbose)
            return 0
        for label, value in _summary(file):
            print(printable(f"{label:<14}{value}"))
        if options.verbose:
            _print_everything(file)
    return 0


def _summary(file: GGUFFile) -> list[tuple[str, str]]:
    from phlite.models.registry import (
        ARCHITECTURES,  # with the kernels, which the program's other commands start without
    )

    metadata = file.metadata
    arch = metadata.get_str("general.architecture", "unknown")
    rows = [
        ("model", metadata.get_str("general.name", "unnamed")),
        ("file", f"{file.paths[0]} ({format_bytes(file.n_bytes)}{_parts(file)})"),
        ("architecture", describe_architecture(arch, ARCHITECTURES)),
        ("parameters", _parameters(file, arch)),
        ("shape", _shape(metadata, arch)),
        ("context", _context(metadata, arch)),
        ("quantisation", file_type_name(metadata.get_int("general.file_type", -1))),
        *(("", line) for line in _tensor_types(file)),
        ("tokenizer", _tokenizer(metadata)),
        ("sampling", named_sampling(recommended_fields(metadata)) or "no recommendation"),
        ("licence", metadata.get_str("general.license", "not given")),
    ]
    rows += [("chat template", _chat_template(metadata)), ("stops at", " ".join(_stop_texts(metadata)) or "nothing")]
    description = metadata.get_str("general.description", "")
    return [*rows, ("description", description)] if description else rows


def _parts(file: GGUFFile) -> str:
    return f" in {len(file.paths)} parts" if len(file.paths) > 1 else ""


def _parameters(file: GGUFFile, arch: str) -> str:
    return describe_parameters(
        sum(tensor.n_elements for tensor in file.tensors.values()),
        n_in_experts=sum(tensor.n_elements for tensor in file.tensors.values() if "_exps." in tensor.name),
        n_experts=file.metadata.get_int(f"{arch}.expert_count", 0),
        n_used=file.metadata.get_int(f"{arch}.expert_used_count", 0),
    )


def _shape(metadata: Metadata, arch: str) -> str:
    def value(key: str) -> object:
        return metadata.get(f"{arch}.{key}", "?")

    return describe_layers(
        n_layers=value("block_count"),
        width=value("embedding_length"),
        heads=value("attention.head_count"),
        kv_heads=value("attention.head_count_kv"),
        mlp=value("feed_forward_length"),
        n_experts=metadata.get(f"{arch}.expert_count", 0),
        n_used=value("expert_used_count"),
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


def _chat_template(metadata: Metadata) -> str:
    return describe_chat_template(
        metadata.get_str("tokenizer.chat_template", ""),
        frozenset(metadata.get_str_array("tokenizer.ggml.tokens", [])),
        metadata.get_str("general.name", ""),
    )


def _stop_texts(metadata: Metadata) -> list[str]:
    tokens = metadata.get_str_array("tokenizer.ggml.tokens", [])
    by_id = [metadata.get_int(f"tokenizer.ggml.{key}_token_id", -1) for key in ("eos", "eot", "eom")]
    named = [tokens[i] for i in by_id if 0 <= i < len(tokens)]
    return list(dict.fromkeys([*named, *(token for token in tokens if token in STOP_TEXTS)]))


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
