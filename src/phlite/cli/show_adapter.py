"""What `phlite show` says of a LoRA adapter: a PEFT folder, or a GGUF file with the type "adapter"."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from phlite.cli.terminal import printable
from phlite.gguf import Metadata
from phlite.hub import format_bytes
from phlite.models.lora_file import CONFIG_NAME, AdapterFile, load_adapter_file

__all__ = ["is_adapter_folder", "is_adapter_metadata", "print_adapter"]

LAYER = re.compile(r"(.*?)\.(\d+)\.(.*?)(?:\.weight)?")


def is_adapter_folder(name: str) -> bool:
    """Whether this is a folder that peft has written."""
    return (Path(name) / CONFIG_NAME).is_file()


def is_adapter_metadata(metadata: Metadata) -> bool:
    """Whether this is the metadata of an adapter's GGUF file."""
    return metadata.get("general.type") == "adapter"


def print_adapter(path: str | Path, *, verbose: bool) -> None:
    """Print what an adapter changes and by how much; with verbose every matrix.

    raises: ModelFileError, UnsupportedModelError as when it is loaded
    """
    file = load_adapter_file(path)
    for label, value in _summary(file):
        print(printable(f"{label:<14}{value}"))
    for pair in file.pairs if verbose else ():
        print(printable(f"  {pair.name:<48} {pair.a.type.name:<5} rank {pair.a.shape[0]}"))


def _summary(file: AdapterFile) -> list[tuple[str, str]]:
    n_bytes = sum(pair.a.data.nbytes + pair.b.data.nbytes for pair in file.pairs)
    ranks = sorted({pair.a.shape[0] for pair in file.pairs})
    factors = sorted({pair.scaling for pair in file.pairs})
    return [
        ("adapter", "LoRA, given with a model as --lora PATH[=SCALE]"),
        ("file", f"{file.source} ({format_bytes(n_bytes)})"),
        ("for", "a Hugging Face model" if file.architecture is None else f"architecture {file.architecture}"),
        ("rank", ", ".join(map(str, ranks))),
        ("factor", ", ".join(f"{factor:g}" for factor in factors) + " at scale 1"),
        ("changes", _changed(file)),
    ]


def _changed(file: AdapterFile) -> str:
    """Name the matrices, with the number of layers where they are a layer's: "self_attn.o_proj (32 layers)"."""
    layers: Counter[str] = Counter()
    others = []
    for pair in file.pairs:
        layer = LAYER.fullmatch(pair.name)
        if layer:
            layers[layer[3]] += 1
        else:
            others.append(pair.name)
    return ", ".join([*(f"{part} ({n} layers)" for part, n in layers.items()), *others])
