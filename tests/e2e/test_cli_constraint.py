"""`phlite run` with --json, --json-schema, --regex, --choice and --grammar."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

Phlite = Callable[..., "subprocess.CompletedProcess[str]"]

SCHEMA = {
    "type": "object",
    "properties": {"season": {"enum": ["spring", "winter"]}, "lines": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["season", "lines"],
    "additionalProperties": False,
}


def test_a_schema_comes_from_a_file_or_as_text(phlite: Phlite, tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA), encoding="utf-8")
    first = phlite("run", "haiku", "--seed", "1", "--json-schema", path, "Describe it")
    again = phlite("run", "haiku", "--seed", "1", "--json-schema", json.dumps(SCHEMA), "Describe it")
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout == again.stdout
    value = json.loads(first.stdout)
    assert value["season"] in ("spring", "winter")
    assert 1 <= value["lines"] <= 9


def test_choices_patterns_and_grammars_are_kept(phlite: Phlite, tmp_path: Path) -> None:
    path = tmp_path / "sum.lark"
    path.write_text('start: /[0-9]/ ("+" /[0-9]/){1,3}', encoding="utf-8")
    chosen = phlite("run", "haiku", "--choice", "yes", "--choice", "no", "Is it?")
    matched = phlite("run", "haiku", "--regex", r"[A-Z]{3}-\d", "A code")
    derived = phlite("run", "haiku", "--grammar", path, "A sum")
    assert chosen.stdout in ("yes\n", "no\n")
    assert re.fullmatch(r"[A-Z]{3}-\d\n", matched.stdout)
    assert re.fullmatch(r"\d(\+\d){1,3}\n", derived.stdout)
    assert [one.returncode for one in (chosen, matched, derived)] == [0, 0, 0]


def test_an_answer_cut_at_the_limit_is_reported_and_fails(phlite: Phlite) -> None:
    # Two keys cannot be written in three tokens, whatever the random seed; {} alone, which --json allows, can.
    schema = (
        '{"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}, "required": ["a", "b"]}'
    )
    result = phlite("run", "haiku", "--json-schema", schema, "-n", "3", "Describe it")
    assert result.returncode == 2
    assert result.stderr.startswith("phlite: unfinished after 3 tokens and not what was asked for: -n 0")
    assert result.stdout.startswith("{")


def test_what_cannot_be_kept_is_refused_before_anything_is_loaded(phlite: Phlite, tmp_path: Path) -> None:
    for arguments, message in (
        (["--json-schema", '{"items": {"not": {}}}'], "json_schema: #/items: the keyword 'not' is not supported"),
        (["--json-schema", tmp_path / "none.json"], "--json-schema: cannot read"),
        (["--json", "--regex", "a"], "not allowed with argument"),
        (["--choice", ""], "choice: got ''"),
    ):
        result = phlite("run", "no-such-model", *arguments, "Hello")
        assert (result.returncode, result.stdout) == (2, "")
        assert message in result.stderr


def test_without_the_library_one_line_says_what_to_install(program_environment: dict[str, str]) -> None:
    code = "import sys; sys.modules['llguidance'] = None; from phlite.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-W", "default", "-c", code, "run", "no-such-model", "--json", "Hello"]
    result = subprocess.run(command, capture_output=True, text=True, env=program_environment, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert 'pip install "phlite[constrained]"' in result.stderr
    assert result.stderr.count("\n") == 1


def test_help_names_the_options(phlite: Phlite) -> None:
    shown = phlite("run", "--help").stdout
    assert all(option in shown for option in ("--json ", "--json-schema", "--regex", "--choice", "--grammar"))
