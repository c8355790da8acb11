"""The download cache without a network: where it is, what is in it, what removal leaves."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from phlite.errors import DownloadError
from phlite.hub import cache, cache_dir, cached_models, fetch, remove_model

REPO = "me/model"
COMMIT = "a" * 40
OTHER_COMMIT = "b" * 40
CONTENT = b"GGUF and more"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put(root: Path, file: str, content: bytes = CONTENT, commit: str = COMMIT, branch: str = "main") -> Path:
    """Store a file as huggingface_hub does; returns its path in the snapshot."""
    folder = root / "models--me--model"
    blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
    path = folder / "snapshots" / commit / file
    for parent in (blob.parent, path.parent, folder / "refs"):
        parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    path.symlink_to(Path(*[".."] * (file.count("/") + 2), "blobs", blob.name))
    (folder / "refs" / branch).write_text(commit)
    return path


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HUGGINGFACE_HUB_CACHE": "/c", "HF_HOME": "/b"}, "/c"),
        ({"HF_HOME": "/b", "XDG_CACHE_HOME": "/d"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/d"}, "/d/huggingface/hub"),
        ({"HF_HOME": "$BASE/hf", "BASE": "/e"}, "/e/hf/hub"),
        ({}, "~/.cache/huggingface/hub"),
    ],
)
def test_the_cache_is_where_huggingface_hub_has_it(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_CACHE")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_dir() == Path(expected).expanduser()


def test_a_cache_that_does_not_exist_holds_nothing() -> None:
    assert cached_models() == []


def test_models_of_other_programs_are_listed_as_unchecked(root: Path) -> None:
    path = put(root, "sub/x-Q4_0.gguf")
    put(root, "README.md", b"no model")
    (model,) = cached_models()
    assert (model.name, model.state, model.size_bytes, model.path) == (
        "me/model:sub/x-Q4_0.gguf",
        "unchecked",
        13,
        path,
    )


def test_a_verified_model_is_listed_as_ok(root: Path) -> None:
    put(root, "x.gguf")
    fetch("me/model:x.gguf", offline=True)
    assert [model.state for model in cached_models()] == ["ok"]


@pytest.mark.parametrize("damage", ["dangling", "no gguf", "shorter than recorded"])
def test_damage_is_listed(root: Path, damage: str) -> None:
    path = put(root, "x.gguf")
    fetch("me/model:x.gguf", offline=True)
    if damage == "dangling":
        path.resolve().unlink()
    else:
        path.resolve().write_bytes(b"HTML and more" if damage == "no gguf" else b"GGUF")
    assert [model.state for model in cached_models()] == ["damaged"]


def test_a_damaged_file_is_not_used_offline(root: Path) -> None:
    put(root, "x.gguf").write_bytes(b"GGUF and something else")
    with pytest.raises(DownloadError, match="its checksum is"):
        fetch("me/model:x.gguf", offline=True)


def test_a_cache_that_cannot_be_written_is_still_used(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(root, "x.gguf")
    (root / "models--me--model" / ".phlite").write_text("a file where the folder should be")
    assert fetch("me/model:x.gguf", offline=True).gguf == path


def test_a_file_that_cannot_be_read_is_not_taken_for_damaged(root: Path) -> None:
    path = put(root, "x.gguf")
    path.unlink()
    path.mkdir()
    with pytest.raises(DownloadError, match=r"x.gguf cannot be read"):
        fetch("me/model:x.gguf")
    assert path.exists()


def test_an_unreadable_record_is_as_good_as_none(root: Path) -> None:
    path = put(root, "x.gguf")
    record = cache.record_path(path.parent, "x.gguf")
    record.parent.mkdir(parents=True)
    record.write_text('{"etag": 7}')
    assert fetch("me/model:x.gguf", offline=True).gguf == path


def test_removing_the_last_model_removes_the_whole_folder(root: Path) -> None:
    put(root, "x.gguf")
    fetch("me/model:x.gguf", offline=True)
    assert remove_model(REPO, "x.gguf") == len(CONTENT)
    assert not (root / "models--me--model").exists()


def test_removing_one_model_leaves_the_others(root: Path) -> None:
    put(root, "x.gguf")
    other = put(root, "y.gguf", b"GGUF other")
    remove_model(REPO, "x.gguf")
    assert other.read_bytes() == b"GGUF other"
    assert [model.file for model in cached_models()] == ["y.gguf"]


def test_content_that_another_file_shares_stays(root: Path) -> None:
    put(root, "x.gguf")
    copy = put(root, "copy.gguf", commit=OTHER_COMMIT, branch="dev")
    assert remove_model(REPO, "x.gguf") == 0
    assert copy.read_bytes() == CONTENT


def test_all_revisions_and_parts_of_a_model_are_removed(root: Path) -> None:
    put(root, "x-00001-of-00002.gguf", b"GGUF 1")
    put(root, "x-00002-of-00002.gguf", b"GGUF 2")
    put(root, "x-00001-of-00002.gguf", b"GGUF 3", commit=OTHER_COMMIT, branch="dev")
    assert remove_model(REPO, "x-00001-of-00002.gguf") == 18
    assert cached_models() == []


def test_removing_what_is_not_there_frees_nothing() -> None:
    assert remove_model(REPO, "x.gguf") == 0


def test_a_link_out_of_the_repository_is_removed_but_not_its_target(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "precious.gguf"
    outside.write_bytes(CONTENT)
    put(root, "other.gguf", b"GGUF other").with_name("x.gguf").symlink_to(outside)
    remove_model(REPO, "x.gguf")
    assert outside.read_bytes() == CONTENT


def test_a_local_file_is_given_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(CONTENT)
    model = fetch(str(path))
    assert (model.paths, model.repo) == ((path,), None)


def test_a_local_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=f"there is no file or folder {tmp_path / 'x.gguf'}"):
        fetch(str(tmp_path / "x.gguf"))


def test_a_path_that_looks_like_a_file_on_the_hub_says_how_to_write_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DownloadError, match=r"for a file on the hub write me/model:x.gguf"):
        fetch("me/model/x.gguf")


def test_a_folder_gives_its_model(tmp_path: Path) -> None:
    for name in ("x-Q4_K_M.gguf", "x-Q8_0.gguf", "tokenizer.json"):
        (tmp_path / name).write_bytes(CONTENT)
    assert fetch(str(tmp_path)).paths == (tmp_path / "x-Q4_K_M.gguf",)


def test_a_folder_without_a_model_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(DownloadError, match=r"has no GGUF file; it has pytorch_model\.bin"):
        fetch(str(tmp_path))


def test_any_part_of_a_local_split_model_gives_all(tmp_path: Path) -> None:
    for n in (1, 2):
        (tmp_path / f"x-0000{n}-of-00002.gguf").write_bytes(CONTENT)
    model = fetch(str(tmp_path / "x-00002-of-00002.gguf"))
    assert [path.name for path in model.paths] == ["x-00001-of-00002.gguf", "x-00002-of-00002.gguf"]


def test_a_missing_part_of_a_local_split_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "x-00001-of-00002.gguf").write_bytes(CONTENT)
    with pytest.raises(DownloadError, match=r"its part .*x-00002-of-00002.gguf is missing"):
        fetch(str(tmp_path / "x-00001-of-00002.gguf"))
