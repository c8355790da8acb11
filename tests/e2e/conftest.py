"""Fixtures of the end-to-end tests: a hub on this machine, and the real program in its own environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from e2e.hub_server import HubServer
from e2e.terminal import Terminal
from tiny_models import random_checkpoint, tiny_config, write_gguf

Phlite = Callable[..., "subprocess.CompletedProcess[str]"]

# A shell starts background jobs with interrupts ignored, and programs inherit that; the programs under test must not.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """A running hub without repositories."""
    with HubServer().running() as server:
        yield server


@pytest.fixture
def program_environment(tmp_path: Path) -> dict[str, str]:
    """Environment variables of a user who has nothing yet and no network."""
    unwanted = ("HF_", "HUGGINGFACE_", "PHLITE_ISA", "XDG_", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(unwanted)}
    return {
        **kept,
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_CACHE": str(tmp_path / "hf" / "hub"),
        "HF_HUB_DOWNLOAD_TIMEOUT": "10",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "TERM": "xterm",
        "COLUMNS": "100",
        "INPUTRC": "/dev/null",
    }


@pytest.fixture
def hub_environment(hub: HubServer, program_environment: dict[str, str]) -> dict[str, str]:
    """The same, with a way to the hub on this machine."""
    return {**program_environment, "HF_ENDPOINT": hub.endpoint}


@pytest.fixture
def phlite(program_environment: dict[str, str]) -> Phlite:
    """Run the program as a user does; returns the finished process with text output."""

    def run(
        *arguments: str | Path, stdin: str | bytes = "", env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        finished = subprocess.run(
            command(*arguments),
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            capture_output=True,
            timeout=60,
            check=False,
            env={**program_environment, **(env or {})},
        )
        return subprocess.CompletedProcess(
            finished.args, finished.returncode, finished.stdout.decode(), finished.stderr.decode()
        )

    return run


@pytest.fixture
def terminal(program_environment: dict[str, str]) -> Iterator[Callable[..., Terminal]]:
    """Start the program on a terminal of its own."""
    started: list[Terminal] = []

    def start(*arguments: str | Path) -> Terminal:
        started.append(Terminal(command(*arguments), program_environment))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture(scope="session")
def endless_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights that never ends by itself: its control tokens have logit 0, far below the best."""
    config = tiny_config(vocab_size=4096, hidden_size=128, intermediate_size=256, num_attention_heads=2)
    config |= {"num_key_value_heads": 2, "max_position_embeddings": 131072, "original_max_position_embeddings": 131072}
    path = tmp_path_factory.mktemp("models") / "endless.gguf"
    checkpoint = random_checkpoint(config, "F16", seed=1, gain=6.0)
    checkpoint.tensors["lm_head.weight"].data[:8] = 0
    return write_gguf(path, checkpoint)


def command(*arguments: str | Path) -> list[str]:
    """The program with arguments, and with all warnings shown."""
    return [sys.executable, "-W", "default", "-m", "phlite", *map(str, arguments)]
