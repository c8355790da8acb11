"""What a worker asks of an engine: three timed operations, each a bare loop around the engine's own step."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

PROMPT_OF_A_BATCH = 32
"""Tokens in the prompt of each sequence of a batch."""


class NotOfferedError(Exception):
    """The engine's interface cannot do what the test asks for; the message says what."""


@dataclass(frozen=True)
class Options:
    """How an engine is to be loaded.

    model:     path of the GGUF file
    folder:    path of the same model in the engine's own format, "" where it reads GGUF
    setting:   one of the engine's SETTINGS
    n_threads: threads to compute with
    kv:        numbers in the attention cache: "f16", "q8_0" or "f32"
    n_ctx:     most tokens that a test adds to a sequence after its depth
    """

    model: str
    folder: str
    setting: str
    n_threads: int
    kv: str
    n_ctx: int


class Engine(Protocol):
    """A loaded model. Every method returns seconds; preparation is not in them.

    facts: version, options and sizes worth recording
    """

    facts: dict[str, str | int | float]

    def prefill(self, n: int, depth: int) -> float:
        """Process n prompt tokens after `depth` tokens of context, up to the logits of the last."""

    def decode(self, n: int, depth: int) -> float:
        """Process n tokens one by one after max(depth, 1) tokens of context."""

    def batch(self, n_sequences: int, n: int) -> float:
        """Process n tokens, one per step, of each of n_sequences sequences with PROMPT_OF_A_BATCH tokens before."""


class EngineModule(Protocol):
    """A file of this folder."""

    SETTINGS: Mapping[str, str]
    """Name -> what it means; the first is what a user gets who sets nothing."""

    def why_missing(self, options: Options) -> str:
        """Return why the engine cannot run here, "" if it can."""

    def load(self, options: Options) -> Engine:
        """Load the model."""


def token_ids(n: int) -> NDArray[np.int32]:
    """Return int32[n] ordinary ids; the speed does not depend on which, and every vocabulary has these."""
    return np.random.default_rng(n).integers(100, 1000, n, dtype=np.int32)


def missing_package(name: str) -> str:
    """Return a sentence if the Python package is not installed, "" if it is."""
    return "" if importlib.util.find_spec(name) else f"the Python package {name} is not installed"


def missing_folder(folder: str, option: str) -> str:
    """Return a sentence if the engine's own model was not given, "" if it was."""
    return "" if folder else f"no model in its own format was given ({option} DIR)"
