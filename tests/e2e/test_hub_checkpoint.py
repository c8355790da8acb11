"""Safetensors repositories on a hub of this machine: which files are taken, resume, damage, offline, list and rm."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
from e2e.hub_server import HubServer
from tiny_models import random_checkpoint, tiny_config, write_hf_folder
from tiny_models.phi import random_phi_checkpoint, tiny_phi_config

import phlite as package
from phlite.errors import DownloadError
from phlite.hub import cache as hub_cache
from phlite.hub import cached_models, download, fetch, remove_model

REPO = "someone/Tiny-instruct"
NOT_TAKEN = {
    "README.md": b"hello",
    "modeling_phi3.py": b"import os",
    "pytorch_model.bin": b"\x80",
    ".gitattributes": b"",
}


@pytest.fixture(autouse=True)
def environment(hub_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_SYMLINKS", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in hub_environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(download, "RETRY_WAITS_S", (0.0, 0.0))
    yield
    if hasattr(huggingface_hub, "close_session"):  # since 1.0
        huggingface_hub.close_session()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a sharded checkpoint."""
    config = tiny_config(max_position_embeddings=512, original_max_position_embeddings=512)
    folder = tmp_path_factory.mktemp("files") / "model"
    write_hf_folder(folder, random_checkpoint(config, "BF16"), n_shards=2, generation_config={"eos_token_id": [3, 5]})
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def repository(hub: HubServer, files: dict[str, bytes]) -> HubServer:
    hub.add(REPO, {**files, **NOT_TAKEN, "sub/config.json": b"{}"})
    return hub


def received(hub: HubServer) -> list[str]:
    return [request.path.partition("?")[0].split("/", 3)[3] for request in hub.content_requests()]


def test_the_whole_checkpoint_arrives_and_nothing_else(repository: HubServer, files: dict[str, bytes]) -> None:
    model = fetch(REPO)
    assert model.folder is not None
    assert {path.name: path.read_bytes() for path in model.folder.iterdir()} == files
    assert sorted(received(repository)) == sorted(files)
    assert model.revision == repository.repositories[REPO].commit


def test_a_downloaded_checkpoint_answers_without_any_request(repository: HubServer) -> None:
    fetch(REPO)
    repository.requests.clear()
    llm = package.load(REPO, threads=1)
    assert llm.generate("the thing", seed=1, max_tokens=4).completion_tokens > 0
    assert {3, 5} <= llm.tokenizer.stop_ids
    assert repository.requests == []


def test_an_interrupted_checkpoint_is_continued_and_never_taken_for_whole(
    repository: HubServer, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first files arrive; the third breaks off, and then the hub is gone.
    repository.faults = [("none",), ("none",), ("cut", 10), *[("status", 503)] * 3]
    with pytest.raises(DownloadError, match="HTTP 503"):
        fetch(REPO)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="not in the cache"):
        fetch(REPO)
    assert [(model.file, model.state) for model in cached_models()] == [("*.safetensors", "partial")]
    monkeypatch.delenv("HF_HUB_OFFLINE")
    repository.requests.clear()
    model = fetch(REPO)
    assert model.folder is not None
    assert {path.name for path in model.folder.iterdir()} == set(files)
    assert len(received(repository)) == len(files) - 2  # those that arrived are not asked for again
    assert repository.content_requests()[0].headers["range"] == "bytes=10-"


def test_an_empty_file_of_a_checkpoint_arrives_too(repository: HubServer) -> None:
    repository.repositories[REPO].files["added_tokens.json"] = b""
    folder = fetch(REPO).folder
    assert folder is not None
    assert (folder / "added_tokens.json").read_bytes() == b""


def test_a_damaged_shard_is_fetched_again(repository: HubServer, files: dict[str, bytes]) -> None:
    folder = fetch(REPO).folder
    assert folder is not None
    shard = folder / "model-00002-of-00002.safetensors"
    os.truncate(shard, 1000)
    repository.requests.clear()
    fetch(REPO)
    assert received(repository) == [shard.name]
    assert shard.read_bytes() == files[shard.name]


def test_a_gguf_file_in_the_repository_goes_first_unless_the_checkpoint_is_asked_for(
    repository: HubServer, files: dict[str, bytes]
) -> None:
    repository.repositories[REPO].files["model-Q4_K_M.gguf"] = b"GGUF"
    assert fetch(REPO).gguf.name == "model-Q4_K_M.gguf"
    checkpoint = fetch(REPO, checkpoint=True)
    assert checkpoint.folder is not None
    assert {path.name for path in checkpoint.paths} == set(files)
    assert fetch(REPO).gguf.name == "model-Q4_K_M.gguf"


def test_a_checkpoint_from_another_program_works_offline(
    repository: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(REPO)
    shutil.rmtree(hub_cache.repo_dir(REPO) / ".phlite")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert package.load(REPO, threads=1).generate("a", max_tokens=2).completion_tokens > 0


def test_a_repository_that_lacks_a_shard_is_refused_before_anything_is_received(repository: HubServer) -> None:
    del repository.repositories[REPO].files["model-00002-of-00002.safetensors"]
    with pytest.raises(DownloadError, match=r"incomplete checkpoint: it lacks model-00002-of-00002\.safetensors"):
        fetch(REPO)
    assert received(repository) == []


def test_a_quantisation_of_a_checkpoint_names_the_option(repository: HubServer) -> None:
    with pytest.raises(DownloadError, match=r"no Q4_K_M model, but a safetensors checkpoint.*--quant Q4_K_M"):
        fetch(f"{REPO}:Q4_K_M")


def test_pickled_weights_alone_are_no_model(hub: HubServer) -> None:
    hub.add(REPO, {"config.json": b"{}", "pytorch_model.bin": b"\x80"})
    with pytest.raises(DownloadError, match="has no GGUF file"):
        fetch(REPO)
    with pytest.raises(DownloadError, match=r"no model\.safetensors"):
        fetch(REPO, checkpoint=True)


def test_a_checkpoint_is_listed_once_and_removed_whole(repository: HubServer, files: dict[str, bytes]) -> None:
    fetch(REPO)
    (model,) = cached_models()
    n_bytes = sum(map(len, files.values()))
    assert (model.name, model.state, model.size_bytes, model.total_bytes) == (REPO, "ok", n_bytes, n_bytes)
    assert remove_model(REPO, model.file) == n_bytes
    assert cached_models() == []
    assert not hub_cache.repo_dir(REPO).exists()


def test_a_member_without_a_gguf_runs_from_its_original_weights(
    hub: HubServer, phlite: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    config = tiny_phi_config(torch_dtype="float16", architectures=["PhiForCausalLM"])
    folder = write_hf_folder(tmp_path / "phi-1", random_phi_checkpoint(config, "F16"))
    hub.add("microsoft/phi-1", {path.name: path.read_bytes() for path in folder.iterdir()})
    env = {"HF_ENDPOINT": hub.endpoint}
    answer = phlite("run", "phi1", "--raw", "-n", "3", "the thing", env=env)
    assert answer.returncode == 0, answer.stderr
    (line,) = (line for line in phlite("list", "--all", env=env).stdout.splitlines() if line.startswith("phi1 "))
    assert " ok " in line
    assert phlite("rm", "phi1", env=env).returncode == 0


def test_the_program_pulls_shows_runs_converts_and_removes_a_checkpoint(
    repository: HubServer, phlite: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    env = {"HF_ENDPOINT": repository.endpoint}
    assert f"{REPO} is ready" in phlite("pull", REPO, env=env).stderr
    assert "phi3" in phlite("show", REPO, env=env).stdout
    assert REPO in phlite("list", env=env).stdout
    answer = phlite("run", REPO, "-n", "6", "--seed", "1", "the thing", env=env)
    assert answer.returncode == 0
    converted = phlite("convert", REPO, tmp_path / "out.gguf", env=env)
    assert converted.returncode == 0, converted.stderr
    again = phlite("run", tmp_path / "out.gguf", "-n", "6", "--seed", "1", "the thing", env=env)
    assert again.stdout == answer.stdout
    assert "Tiny-instruct" in phlite("show", tmp_path / "out.gguf", env=env).stdout
    assert phlite("rm", REPO, env=env).returncode == 0
    assert REPO not in phlite("list", env=env).stdout
