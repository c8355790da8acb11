"""The code of docs/python.md and the programs in examples/ run as they stand, with the embedded model."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import phlite

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "python.md"
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(phlite.__file__).parents[1]), "HF_HUB_OFFLINE": "1"}


def run(*arguments):
    command = [sys.executable, "-W", "error", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT, encoding="utf-8")


def test_every_block_of_the_python_page_runs():
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) > 10
    namespace = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), namespace)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_runs_offline(path):
    assert run(path).stdout.strip()


def test_the_tutorials_program_prints_a_seed_that_gives_the_same_haiku():
    program = ROOT / "examples" / "haiku_ice_hockey.py"
    first = run(program)
    seed = re.search(r"seed (\d+)", first.stderr)[1]
    again = run(program, "--seed", seed)
    assert first.stdout == again.stdout
