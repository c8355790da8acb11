"""One file per engine, each with `SETTINGS`, `why_missing` and `load`. Nothing here imports an engine before `load`."""

from __future__ import annotations

import importlib
from typing import cast

from engines.base import EngineModule, Options

ENGINES = [
    "phlite",
    "llama-cpp-python",
    "llama-bench",
    "onnxruntime-genai",
    "openvino-genai",
    "mistralrs",
    "transformers",
]
"""Names on the command line; the module of each is its name with underscores."""


def find_module(name: str) -> EngineModule:
    """Return the module of an engine of that name."""
    return cast("EngineModule", importlib.import_module("engines." + name.replace("-", "_")))


def all_settings() -> list[str]:
    """Every "engine/setting" that can be asked for; the plain name stands for the setting "defaults"."""
    return [f"{name}/{setting}" for name in ENGINES for setting in find_module(name).SETTINGS]


def split_name(label: str) -> tuple[str, str]:
    """Return the two parts of "llama-cpp-python/no-repack"; the setting is "defaults" where none is named."""
    name, _, setting = label.partition("/")
    return name, setting or "defaults"


__all__ = ["ENGINES", "Options", "all_settings", "find_module", "split_name"]
