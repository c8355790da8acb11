"""What each spelling of a model name points to."""

from __future__ import annotations

from pathlib import Path

import pytest

from phlite.errors import DownloadError
from phlite.hub import known_names, resolve
from phlite.hub.names import MEMBERS, SHORT_NAMES, name_of

COMMIT = "5eef2ce24766d31909c0b269fe90c817a8f263fb"
MINI = ("microsoft/Phi-3-mini-4k-instruct-gguf", "Phi-3-mini-4k-instruct-q4.gguf")


@pytest.fixture(autouse=True)
def empty_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "name", ["phi3", "phi3:mini", "phi3:mini-4k", "PHI3", "phi-3", "phi3:3.8b", "phi3:latest", "Phi-3-mini-4k-instruct"]
)
def test_many_spellings_mean_phi3_mini(name: str) -> None:
    source = resolve(name)
    assert (source.repo, source.file) == MINI


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("phi3:mini-128k", "Phi-3.1-mini-128k-instruct-Q4_K_M.gguf"),
        ("phi3:medium", "Phi-3-medium-4k-instruct-Q4_K_M.gguf"),
        ("phi3:medium-128k", "Phi-3-medium-128k-instruct-Q4_K_M.gguf"),
        ("phi3.5", "Phi-3.5-mini-instruct-Q4_K_M.gguf"),
        ("phi3.5:mini", "Phi-3.5-mini-instruct-Q4_K_M.gguf"),
        ("phi4", "phi-4-q4.gguf"),
        ("phi4-mini", "microsoft_Phi-4-mini-instruct-Q4_K_M.gguf"),
        ("phi4:mini", "microsoft_Phi-4-mini-instruct-Q4_K_M.gguf"),
        ("phi4-mini-reasoning", "microsoft_Phi-4-mini-reasoning-Q4_K_M.gguf"),
        ("phi4-reasoning", "microsoft_Phi-4-reasoning-Q4_K_M.gguf"),
        ("phi3.5:moe", "Phi-3.5-MoE-instruct-Q4_K_M.gguf"),
        ("Phi-3.5-MoE-instruct", "Phi-3.5-MoE-instruct-Q4_K_M.gguf"),
        ("phi-mini-moe", "Phi-mini-MoE-instruct-Q4_K_M.gguf"),
        ("phi2", "phi-2.Q4_K_M.gguf"),
        ("phi", "phi-2.Q4_K_M.gguf"),
        ("phi:2.7b", "phi-2.Q4_K_M.gguf"),
        ("phi-1_5", "phi-1_5-Q4_K_M.gguf"),
    ],
)
def test_each_member_has_its_file(name: str, file: str) -> None:
    assert resolve(name).file == file


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("phi3:mini-4k-q8_0", "Phi-3.1-mini-4k-instruct-Q8_0.gguf"),
        ("phi3:mini-4k-instruct-q4_K_M", "Phi-3-mini-4k-instruct-q4.gguf"),
        ("phi3:fp16", "Phi-3-mini-4k-instruct-fp16.gguf"),
        ("phi3.5:q5_k_m", "Phi-3.5-mini-instruct-Q5_K_M.gguf"),
        ("phi4-iq4_xs", "phi-4-IQ4_XS.gguf"),
        ("phi2:q8_0", "phi-2.Q8_0.gguf"),
        ("phi3.5-f16", "Phi-3.5-mini-instruct-f16.gguf"),
    ],
)
def test_a_quantisation_can_be_added_to_a_name(name: str, file: str) -> None:
    assert resolve(name).file == file


@pytest.mark.parametrize(
    ("name", "repo", "revision", "file", "quant"),
    [
        ("me/my-GGUF", "me/my-GGUF", "main", None, None),
        ("me/my-GGUF:Q8_0", "me/my-GGUF", "main", None, "Q8_0"),
        ("me/my-GGUF:q5_k_m", "me/my-GGUF", "main", None, "Q5_K_M"),
        ("me/my-GGUF:a/b-q4.gguf", "me/my-GGUF", "main", "a/b-q4.gguf", None),
        ("me/my@v1.2:b.gguf", "me/my", "v1.2", "b.gguf", None),
        (f"me/my@{COMMIT}", "me/my", COMMIT, None, None),
        ("hf.co/me/my:Q4_0", "me/my", "main", None, "Q4_0"),
        ("https://huggingface.co/me/my/", "me/my", "main", None, None),
        ("https://huggingface.co/me/my/resolve/v2/x/y.gguf?download=true", "me/my", "v2", "x/y.gguf", None),
        ("https://huggingface.co/me/my/blob/main/y.gguf", "me/my", "main", "y.gguf", None),
    ],
)  # fmt: skip
def test_repositories(name: str, repo: str, revision: str, file: str | None, quant: str | None) -> None:
    source = resolve(name)
    assert (source.repo, source.revision, source.file, source.quant) == (repo, revision, file, quant)


@pytest.mark.parametrize(
    "name", ["./phi3", "/models/x.gguf", "../x", "x.gguf", "models/x.gguf", "C:\\models\\x", "a\\b"]
)
def test_paths_are_recognised_by_their_form(name: str) -> None:
    assert resolve(name).path == Path(name)


def test_a_tilde_is_the_home_folder() -> None:
    assert resolve("~/x.gguf").path == Path.home() / "x.gguf"


def test_an_existing_relative_path_wins_over_a_repository(tmp_path: Path) -> None:
    (tmp_path / "me").mkdir()
    (tmp_path / "me" / "model").write_bytes(b"GGUF")
    assert resolve("me/model").path == Path("me/model")


def test_a_name_wins_over_a_file_of_the_same_spelling(tmp_path: Path) -> None:
    (tmp_path / "phi3").write_bytes(b"GGUF")
    assert resolve("phi3").repo == MINI[0]


def test_the_embedded_model_lies_in_the_package() -> None:
    path = resolve("haiku").path
    assert path is not None
    assert path.parts[-3:] == ("phlite", "assets", "haiku.gguf")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("phi3.5:minni", "phi3.5:mini"),
        ("haikku", "haiku"),
        ("ph4", "phi4"),
        ("phi3:mediun", "phi3:medium-4k"),
        ("phi3.5-moee", "phi3.5:moe"),
        ("phi5", "phi"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(DownloadError, match=f"Unknown model '{typed}'; did you mean .*{meant}"):
        resolve(typed)


def test_a_name_near_nothing_lists_all() -> None:
    with pytest.raises(DownloadError, match="known: haiku, phi3:mini-4k"):
        resolve("zzzzzz")


@pytest.mark.parametrize(
    ("name", "lacks"),
    [
        ("phi3-vision", "pictures"),
        ("phi3.5:vision", "pictures"),
        ("phi4-multimodal", "pictures and sound"),
        ("phi4-mini-flash-reasoning", "state space layers"),
    ],
)
def test_a_member_that_cannot_run_yet_says_what_it_lacks(name: str, lacks: str) -> None:
    with pytest.raises(DownloadError, match=f"does not run yet: it lacks {lacks}.*It runs haiku, phi3:mini-4k"):
        resolve(name)


@pytest.mark.parametrize(
    ("name", "repo"),
    [
        ("phi3:small", "microsoft/Phi-3-small-8k-instruct"),
        ("phi3-small-128k", "microsoft/Phi-3-small-128k-instruct"),
        ("phi-tiny-moe", "microsoft/Phi-tiny-MoE-instruct"),
        ("phi1", "microsoft/phi-1"),
    ],
)
def test_a_member_without_a_gguf_means_the_original_weights(name: str, repo: str) -> None:
    source = resolve(name)
    assert (source.repo, source.file, source.quant) == (repo, None, None)
    assert resolve(f"{name}-q8_0").quant == "Q8_0"


@pytest.mark.parametrize(
    "name", ["", "  ", "a/b/c", "a/b:../../etc/x.gguf", "a/b:/x.gguf", "a/b@../x:y.gguf", "a--b/c"]
)
def test_malformed_names_are_refused(name: str) -> None:
    with pytest.raises(DownloadError):
        resolve(name)


def test_names_of_the_table_resolve_to_themselves_and_back() -> None:
    for name in known_names()[1:]:
        source = resolve(name)
        assert source.repo is not None
        if MEMBERS[name].repo is not None:
            assert source.file is not None
            assert name_of(source.repo, source.file) == name


def test_every_short_name_leads_into_the_table() -> None:
    assert set(SHORT_NAMES.values()) <= set(MEMBERS)


def test_a_file_outside_the_table_is_spelled_in_full() -> None:
    assert name_of("me/my", "x.gguf") == "me/my:x.gguf"
    assert name_of(MINI[0], "Phi-3-mini-4k-instruct-fp16.gguf") == "phi3:mini-4k-f16"
