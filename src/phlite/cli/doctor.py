"""`phlite doctor`: what this installation and machine offer, and whether everything is well."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import phlite
from phlite.cli.machine import cpu_model
from phlite.cli.parser import Parser
from phlite.hub import cache_dir, cached_models, format_bytes, resolve

# Engines of other projects; phlite runs without any of them.
OTHER_ENGINES = ("transformers", "onnxruntime_genai", "openvino_genai", "llama_cpp", "mlx_lm", "vllm")
VARIABLES = (
    *("PHLITE_ISA", "PHLITE_TEST_DATA"),
    *("HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_SYMLINKS", "HF_TOKEN"),
    *("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "XDG_CACHE_HOME", "XDG_STATE_HOME"),
)
SECRET = ("HF_TOKEN",)


class Finding(NamedTuple):
    """One line of the report; `problem` and `advice` count for the verdict."""

    label: str
    text: str
    problem: bool = False
    advice: bool = False


def add_arguments(parser: Parser) -> None:
    """`phlite doctor` has no arguments of its own."""


def run(options: argparse.Namespace) -> int:
    """Print the report and a verdict; exit code 2 if something is broken."""
    findings = [*_program(), *_processor(), *_memory(), *_cache(), *_other_engines(), *_environment()]
    for finding in findings:
        mark = "!" if finding.problem else "?" if finding.advice else " "
        print(f"{mark} {finding.label:<16}{finding.text}")
    n_problems = sum(finding.problem for finding in findings)
    n_advice = sum(finding.advice for finding in findings)
    if n_problems:
        print(f"\n{n_problems} problem{'s' * (n_problems > 1)} (marked !).")
    else:
        print(f"\nAll is well.{f' {n_advice} remark(s) (marked ?).' if n_advice else ''}")
    return 2 if n_problems else 0


def _program() -> Iterator[Finding]:
    yield Finding("phlite", f"{phlite.__version__} in {Path(__file__).parent.parent}")
    yield Finding("python", f"{platform.python_version()} ({sys.executable})")
    yield Finding("system", f"{platform.platform()}")
    names = ("numpy", "tokenizers", "huggingface_hub", "jinja2", "rich")
    versions = {name: _version(name) for name in names}
    missing = [name for name, version in versions.items() if version is None]
    yield Finding("libraries", ", ".join(f"{name} {version}" for name, version in versions.items() if version))
    if missing:
        yield Finding("missing", f"{', '.join(missing)}: pip install {' '.join(missing)}", problem=True)
    embedded = resolve("haiku").path
    if embedded is None or not embedded.exists():
        yield Finding("haiku", f"the embedded model {embedded} is missing; install phlite again", problem=True)


def _processor() -> Iterator[Finding]:
    yield Finding("processor", cpu_model())
    try:
        from phlite.ops import isa_name, physical_core_count, supported_isas
    except ImportError as error:
        yield Finding("native module", f"cannot be loaded ({error}); install phlite again", problem=True)
        return
    yield Finding("cores", f"{physical_core_count()} physical, {_usable_cpus()} usable threads")
    forced = " (forced by PHLITE_ISA)" if os.environ.get("PHLITE_ISA") else ""
    yield Finding("instructions", f"{isa_name()}{forced}; this machine can: {', '.join(supported_isas())}")
    if isa_name() == "scalar":
        yield Finding("", "only the slow portable code is in use; a newer processor is many times faster", advice=True)


def _memory() -> Iterator[Finding]:
    from phlite.memory import available_memory_bytes

    available = available_memory_bytes()
    if available is None:
        yield Finding("memory", "this system does not tell")
        return
    enough = [(name, size) for name, size in (("phi3", 3.0e9), ("phi4", 10.5e9)) if available >= size]
    fits = f"enough for {' and '.join(name for name, _ in enough)}" if enough else "too little for phi3 (about 3 GB)"
    yield Finding("memory", f"{format_bytes(available)} available, {fits}", advice=not enough)


def _cache() -> Iterator[Finding]:
    folder = cache_dir()
    models = cached_models()
    size_bytes = sum(model.size_bytes for model in models)
    yield Finding("cache", f"{folder}: {len(models)} model file(s), {format_bytes(size_bytes)}")
    for model in models:
        if model.state in ("damaged", "partial"):
            yield Finding("", f"{model.name} is {model.state}: phlite pull {model.name}", advice=True)
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free_bytes = shutil.disk_usage(existing).free
    low = free_bytes < 3e9
    yield Finding("disk", f"{format_bytes(free_bytes)} free{'; phi3 needs 2.4 GB' if low else ''}", advice=low)
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        yield Finding("", f"{existing} cannot be written to: set HF_HOME to another folder", problem=True)


def _other_engines() -> Iterator[Finding]:
    found = [name for name in OTHER_ENGINES if importlib.util.find_spec(name) is not None]
    missing = [name for name in OTHER_ENGINES if name not in found]
    text = f"found {', '.join(found) or 'none'}; not installed: {', '.join(missing) or 'none'} (not needed)"
    yield Finding("other engines", text)


def _environment() -> Iterator[Finding]:
    for name in VARIABLES:
        value = os.environ.get(name)
        if value:
            yield Finding("environment", f"{name}={'(set)' if name in SECRET else value}")


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(module: str) -> str | None:
    try:
        return importlib.metadata.version(module.replace("_", "-"))
    except importlib.metadata.PackageNotFoundError:
        return None
