"""What `phlite show` prints of a Hugging Face folder."""

from __future__ import annotations

import json

from phlite.checkpoint import Checkpoint
from phlite.cli.describe import (
    describe_architecture,
    describe_chat_template,
    describe_layers,
    describe_parameters,
)
from phlite.cli.terminal import printable
from phlite.gguf import GGMLType
from phlite.hub import format_bytes
from phlite.models.registry import MODEL_TYPES
from phlite.tokenizer import load_tokenizer

MAX_VALUE_CHARACTERS = 100


def print_checkpoint(checkpoint: Checkpoint, *, verbose: bool) -> None:
    """Print a summary; with verbose also the chat template, config.json and all tensors."""
    tokenizer = load_tokenizer(checkpoint.folder)
    template = tokenizer.chat_templates.get("default", "")
    for label, value in [
        *_summary(checkpoint),
        ("tokenizer", f"{len(tokenizer.special_tokens)} special tokens of {tokenizer.vocab_size}"),
        ("chat template", describe_chat_template(template, tokenizer.special_tokens, checkpoint.folder.name)),
        ("stops at", " ".join(map(tokenizer.token_text, sorted(tokenizer.stop_ids))) or "nothing"),
    ]:
        print(printable(f"{label:<14}{value}"))
    if not verbose:
        return
    if template:
        print(printable("\nchat template\n" + "\n".join(f"  {line}" for line in template.splitlines())))
    print("\nconfig")
    for key, setting in checkpoint.config.items():
        print(printable(f"  {key:<38} {json.dumps(setting)[:MAX_VALUE_CHARACTERS]}"))
    print("\ntensors")
    for tensor in checkpoint.tensors.values():
        shape = " x ".join(str(size) for size in tensor.shape)
        print(printable(f"  {tensor.name:<52} {tensor.type.name:<7} {shape}"))


def _summary(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    n_files = len(checkpoint.paths)
    of_experts = [tensor.n_elements for name, tensor in checkpoint.tensors.items() if ".experts." in name]
    parts = f" in {n_files} files" if n_files > 1 else ""
    return [
        ("checkpoint", f"{checkpoint.folder} ({format_bytes(checkpoint.n_bytes)}{parts})"),
        ("architecture", describe_architecture(checkpoint.model_type, MODEL_TYPES)),
        (
            "parameters",
            describe_parameters(
                sum(tensor.n_elements for tensor in checkpoint.tensors.values()),
                n_in_experts=sum(of_experts),
                n_experts=_count(checkpoint, "num_local_experts"),
                n_used=_count(checkpoint, "num_experts_per_tok"),
            ),
        ),
        ("shape", _shape(checkpoint)),
        ("context", f"{checkpoint.config.get('max_position_embeddings', '?')} tokens"),
        *(("weights" if i == 0 else "", line) for i, line in enumerate(_tensor_types(checkpoint))),
        ("sampling", _sampling(checkpoint)),
    ]


def _shape(checkpoint: Checkpoint) -> str:
    def value(*keys: str) -> object:
        return next((checkpoint.config[key] for key in keys if checkpoint.config.get(key) is not None), "?")

    return describe_layers(
        n_layers=value("num_hidden_layers"),
        width=value("hidden_size"),
        heads=value("num_attention_heads"),
        kv_heads=value("num_key_value_heads", "num_attention_heads"),
        mlp=value("intermediate_size", "ff_intermediate_size"),
        n_experts=_count(checkpoint, "num_local_experts"),
        n_used=value("num_experts_per_tok"),
    )


def _count(checkpoint: Checkpoint, key: str) -> int:
    value = checkpoint.config.get(key)
    return value if isinstance(value, int) else 0


def _tensor_types(checkpoint: Checkpoint) -> list[str]:
    by_type: dict[GGMLType, list[int]] = {}
    for tensor in checkpoint.tensors.values():
        by_type.setdefault(tensor.type, []).append(tensor.data.nbytes)
    return [f"{kind.name:<7}{len(sizes):>4} tensors  {format_bytes(sum(sizes)):>8}" for kind, sizes in by_type.items()]


def _sampling(checkpoint: Checkpoint) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in checkpoint.sampling().items()) or "no recommendation"
