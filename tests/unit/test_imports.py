"""The order in which the package's parts may import each other, its public names, and what an import costs."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import phlite

PACKAGE = Path(phlite.__file__).parent

# From the top down: a part may import those below it, the leaves, and itself.
ORDER = [
    "__main__",
    "cli",
    "server",
    "cluster",
    "backends",
    "llm",
    "completion",
    "imatrix",
    "perplexity",
    "loading",
    "packing",
    "recommended",
    "spelling",
    "engine",
    "convert",
    "models",
    "layers",
    "ops",
    "_native",
]
LEAVES = ["tokenizer", "vision", "hub", "checkpoint", "gguf", "memory", "tiles", "constrained"]
LEAF_NEEDS = {"checkpoint": {"gguf"}}  # a checkpoint's tensors are of the same kind as those of a GGUF file
EVERYWHERE = ["errors"]

PUBLIC_NAMES = [
    "AsyncCompletionStream",
    "Completion",
    "CompletionStream",
    "Constraint",
    "Engine",
    "LLM",
    "Message",
    "PhliteError",
    "SamplingParams",
    "Sequence",
    "StepOutput",
    "TokenLogprob",
    "__version__",
    "errors",
    "load",
]


def modules():
    """Every module of the package: dotted name -> file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(["phlite", *(parts[:-1] if parts[-1] == "__init__" else parts)])] = path
    return found


MODULES = modules()


def imported_modules(tree, *, at_import_time):
    """Names of phlite modules that a syntax tree imports; at_import_time leaves out functions and TYPE_CHECKING."""
    names, nodes = set(), list(tree.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports inside the package are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names.add(full if full in MODULES or full == "phlite._native" else node.module)
        elif at_import_time and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        elif at_import_time and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            nodes += node.orelse
            continue
        nodes += ast.iter_child_nodes(node)
    return {name for name in names if name == "phlite" or name.startswith("phlite.")}


def part_of(module):
    """The first name below phlite: "engine" for phlite.engine.sampling."""
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("module", [name for name in MODULES if name != "phlite"])
def test_imports_run_downwards(module):
    part = part_of(module)
    if part in ORDER:
        allowed = {*ORDER[ORDER.index(part) :], *LEAVES, *EVERYWHERE}
    else:
        assert part in LEAVES + EVERYWHERE, f"{module} has no place in the order of imports"
        allowed = {part, *LEAF_NEEDS.get(part, ()), *EVERYWHERE}
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    imported = {part_of(name) for name in imported_modules(tree, at_import_time=False)}
    # The package itself gives its version to the command line; nothing else of it is used inside.
    assert imported - {""} <= allowed
    assert "" not in imported or part in {"cli", "server"}


def test_no_module_needs_itself_to_be_imported():
    graph = {
        name: imported_modules(ast.parse(path.read_text(encoding="utf-8")), at_import_time=True) - {"phlite"}
        for name, path in MODULES.items()
    }
    # A package's __init__ gathers names of its own modules, so only edges between different modules below it count.
    done, path = set(), []

    def visit(name):
        assert name not in path, f"import cycle: {' -> '.join([*path[path.index(name) :], name])}"
        if name in done or name not in graph:
            return
        path.append(name)
        for imported in sorted(graph[name]):
            visit(imported)
        path.pop()
        done.add(name)

    for name in graph:
        visit(name)


def test_the_public_names_are_these():
    assert phlite.__all__ == sorted(phlite.__all__, key=lambda name: (name.upper() != name, name))
    assert sorted(phlite.__all__) == PUBLIC_NAMES


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_every_public_name_can_be_used(name):
    assert getattr(phlite, name) is not None
    assert name in dir(phlite)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'phlite' has no attribute 'lode'"):
        _ = phlite.lode


def test_the_version_is_the_projects():
    project = PACKAGE.parent.parent / "pyproject.toml"
    if not project.exists():
        pytest.skip(f"phlite is installed; {project} is not there to compare with")
    assert re.search(r'^version = "(.+)"', project.read_text(), re.MULTILINE)[1] == phlite.__version__


def python(code):
    """What a fresh interpreter prints."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
    assert done.stderr == ""
    return done.stdout


def environment():
    return {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}


def test_import_phlite_takes_less_than_150_ms():
    code = "import time; t = time.perf_counter(); import phlite; print((time.perf_counter() - t) * 1e3)"
    assert min(float(python(code)) for _ in range(3)) < 150


def test_import_phlite_has_no_side_effects():
    code = """
import sys, threading, signal, logging
before = (threading.active_count(), signal.getsignal(signal.SIGINT), list(logging.getLogger().handlers))
import phlite
assert before == (threading.active_count(), signal.getsignal(signal.SIGINT), list(logging.getLogger().handlers))
print(sorted(name for name in sys.modules if name.startswith("phlite") or name == "numpy"))
"""
    assert python(code) == "['phlite']\n"


def test_using_the_llm_class_imports_no_network_or_template_library():
    code = """
import sys, phlite
phlite.LLM
print({"huggingface_hub", "tokenizers", "jinja2", "rich", "torch", "asyncio"} & set(sys.modules))
"""
    assert python(code) == "set()\n"
