"""Fixtures of the end-to-end tests: a hub on this machine, and the real program in its own environment."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from hub_server import HubServer


def load_sibling(name: str) -> ModuleType:
    """Import a helper file of this folder; under importlib import mode it is on no path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


hub_server = load_sibling("hub_server")


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """A running hub without repositories."""
    with hub_server.HubServer().running() as server:
        yield server


@pytest.fixture
def hub_environment(hub: HubServer, tmp_path: Path) -> dict[str, str]:
    """Environment variables that lead to the hub on this machine and to an empty cache."""
    return {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_CACHE": str(tmp_path / "hf" / "hub"),
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }


@pytest.fixture
def phlite(hub_environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the program as a user does; returns the finished process with text output."""

    def run(*arguments: str, stdin: str = "", env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "phlite", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            env=clean_environment() | hub_environment | (env or {}),
        )

    return run


def clean_environment() -> dict[str, str]:
    """This process's environment without what would change how a program finds models or shows text."""
    unwanted = ("HF_", "HUGGINGFACE_", "PHLITE_ISA", "XDG_", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
    return {key: value for key, value in os.environ.items() if not key.startswith(unwanted)}
