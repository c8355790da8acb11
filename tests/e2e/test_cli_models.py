"""pull, list, show, rm: a model's life on this machine, through the real program and a hub on this machine."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from e2e.hub_server import HubServer
from tiny_models import random_checkpoint, tiny_config, write_gguf, write_hf_folder
from tiny_models.phi import random_phi_checkpoint, tiny_phi_config, write_phi_gguf
from tiny_models.phimoe import random_phimoe_checkpoint, tiny_phimoe_config

from phlite.gguf import GGMLType, GGUFWriter, ValueType

Phlite = Callable[..., "subprocess.CompletedProcess[str]"]

REPO = "someone/Tiny-GGUF"
FILE = "tiny-Q4_K_M.gguf"
NAME = f"{REPO}:{FILE}"


@pytest.fixture
def online(hub: HubServer, phlite: Phlite, endless_model: Path) -> Phlite:
    """The program with a hub that has one model."""
    hub.add(REPO, {FILE: endless_model.read_bytes()})
    return lambda *arguments, **options: phlite(*arguments, env={"HF_ENDPOINT": hub.endpoint}, **options)


def test_a_model_is_pulled_listed_used_and_removed(online: Phlite, hub: HubServer, tmp_path: Path) -> None:
    pulled = online("pull", REPO)
    assert (pulled.returncode, pulled.stdout) == (0, "")
    assert f"{REPO} is ready: {tmp_path}" in pulled.stderr
    assert NAME in online("list").stdout.split()
    hub.requests.clear()
    assert online("run", REPO, "-n", "3", "hello").returncode == 0
    assert hub.requests == []
    removed = online("rm", REPO)
    assert (removed.returncode, removed.stderr.startswith(f"deleted {REPO}, ")) == (0, True)
    assert "tiny" not in online("list").stdout
    assert list((tmp_path / "hf" / "hub").glob("models--*")) == []


def test_run_downloads_what_is_not_there(online: Phlite) -> None:
    result = online("run", REPO, "-n", "3", "hello")
    assert result.returncode == 0
    assert f"Downloading {FILE}" in result.stderr
    assert "Downloading" not in result.stdout


def test_an_interrupted_pull_goes_on_where_it_ended(
    online: Phlite, hub: HubServer, hub_environment: dict[str, str]
) -> None:
    hub.faults = [("stall", 1 << 16)]
    command = [sys.executable, "-m", "phlite", "pull", REPO]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=hub_environment) as process:
        assert hub.stalled.wait(30)
        wait_for_partial_file(Path(hub_environment["HF_HUB_CACHE"]), 1 << 16)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr.decode().splitlines()[-1] == "interrupted"
    assert "% of" in online("list").stdout
    hub.requests.clear()
    assert online("pull", REPO).returncode == 0
    assert [request.headers.get("range") for request in hub.content_requests()] == [f"bytes={1 << 16}-"]


def test_two_pulls_at_once_fetch_a_file_once(online: Phlite, hub: HubServer, hub_environment: dict[str, str]) -> None:
    hub.faults = [("pause", 1 << 16)]
    command = [sys.executable, "-m", "phlite", "pull", REPO]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=hub_environment) as first:
        assert hub.stalled.wait(30)
        with subprocess.Popen(command, stderr=subprocess.PIPE, env=hub_environment) as second:
            assert second.stderr
            assert b"Another program is downloading" in second.stderr.readline()
            hub.resume.set()
            second.stderr.read()
            assert (first.wait(30), second.wait(30)) == (0, 0)
    assert len(hub.content_requests()) == 1


def wait_for_partial_file(cache: Path, size: int) -> None:
    """Return when the program has written what the server sent."""
    deadline_s = time.monotonic() + 30
    while sum(path.stat().st_size for path in cache.glob("*/blobs/*.incomplete")) < size:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_pull_says_what_the_repository_lacks(online: Phlite) -> None:
    result = online("pull", f"{REPO}:other.gguf")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert f"has no file 'other.gguf'; it has {FILE}" in result.stderr


def test_downloads_go_through_a_proxy(phlite: Phlite, hub: HubServer, endless_model: Path) -> None:
    hub.add(REPO, {FILE: endless_model.read_bytes()})
    env = {"HF_ENDPOINT": "http://hub.invalid", "HTTP_PROXY": hub.endpoint, "NO_PROXY": ""}
    assert phlite("pull", REPO, env=env).returncode == 0
    assert all(request.path.startswith("http://") for request in hub.requests)


def test_pull_repairs_a_damaged_file(online: Phlite, tmp_path: Path) -> None:
    online("pull", REPO)
    (blob,) = (tmp_path / "hf" / "hub").glob("*/blobs/*")
    content = blob.read_bytes()
    blob.write_bytes(content[:-1])
    assert "damaged" in online("list").stdout
    assert "is fetched again" in online("pull", REPO).stderr
    assert blob.read_bytes() == content


def test_list_as_json_has_one_object_per_model(online: Phlite) -> None:
    online("pull", REPO)
    (model,) = (json.loads(line) for line in online("list", "--json").stdout.splitlines())
    assert (model["name"], model["state"], model["repo"]) == (NAME, "ok", REPO)


def test_list_all_shows_what_can_be_downloaded(phlite: Phlite) -> None:
    shown = phlite("list", "--all").stdout
    assert "phi3:mini-128k" in shown
    assert "not downloaded" in shown


def test_rm_of_what_is_not_there_says_what_is(phlite: Phlite) -> None:
    result = phlite("rm", "phi3")
    assert (result.returncode, result.stderr) == (2, "phlite: phi3 is not downloaded; there is nothing.\n")


@pytest.mark.parametrize("name", ["haiku", "MODEL"])
def test_rm_never_deletes_what_was_not_downloaded(phlite: Phlite, endless_model: Path, name: str) -> None:
    result = phlite("rm", endless_model if name == "MODEL" else name)
    assert result.returncode == 2
    assert "is no downloaded model" in result.stderr
    assert endless_model.exists()


def test_show_describes_a_file(phlite: Phlite, endless_model: Path) -> None:
    shown = phlite("show", endless_model).stdout
    for text in ("phi3", "million", "2 layers, 128 wide", "131072 tokens", "SentencePiece BPE, 4096 tokens", "F16"):
        assert text in shown


def test_show_describes_a_member_without_a_chat_template(phlite: Phlite, tmp_path: Path) -> None:
    path = write_phi_gguf(tmp_path / "phi-2.gguf", random_phi_checkpoint(tiny_phi_config(), fused=True))
    shown = phlite("show", path).stdout
    assert "phi2, that of Phi-1, Phi-1.5, Phi-2" in shown
    assert "2 layers, 320 wide, 4 heads (4 for keys and values), MLP 1280" in shown
    assert re.search(r"chat template none of its own; the form phi3, by its special tokens\n", shown)
    assert re.search(r"stops at +<\|endoftext\|> </s> ", shown)


def test_show_counts_the_experts_that_a_token_uses(phlite: Phlite, tmp_path: Path) -> None:
    path = tmp_path / "moe.gguf"
    with GGUFWriter(path) as writer:
        writer.add("general.architecture", "phimoe")
        for key, value in {"expert_count": 16, "expert_used_count": 2, "feed_forward_length": 32}.items():
            writer.add(f"phimoe.{key}", value, ValueType.UINT32)
        zeros = np.zeros(16 * 10_000 * 32, np.float32)
        writer.add_tensor("blk.0.ffn_up_exps.weight", (16, 10_000, 32), GGMLType.F32, zeros)
        writer.add_tensor("output_norm.weight", (100_000,), GGMLType.F32, zeros[:100_000].copy())
    shown = phlite("show", path).stdout
    assert "5.22 million, 0.74 million of them for each token" in shown
    assert "16 experts of MLP 32, 2 for each token" in shown


def test_show_describes_checkpoint_folders_in_the_same_words(phlite: Phlite, tmp_path: Path) -> None:
    write_hf_folder(tmp_path / "phi", random_phi_checkpoint(tiny_phi_config()))
    shown = phlite("show", tmp_path / "phi").stdout
    assert "phi, that of Phi-1, Phi-1.5, Phi-2" in shown
    assert "2 layers, 320 wide, 4 heads (4 for keys and values), MLP 1280" in shown
    assert re.search(r"stops at +</s> <\|endoftext\|> <\|assistant\|> ", shown)

    config = tiny_phimoe_config()
    write_hf_folder(tmp_path / "moe", random_phimoe_checkpoint(config))
    shown = phlite("show", tmp_path / "moe").stdout
    n_experts = config["num_local_experts"]
    assert f"{n_experts} experts of MLP {config['intermediate_size']}, 2 for each token" in shown
    all_weights, active = map(float, re.findall(r"([\d.]+) million", shown)[:2])
    n_of_experts = config["num_hidden_layers"] * 3 * config["intermediate_size"] * config["hidden_size"] * n_experts
    assert all_weights - active == pytest.approx(n_of_experts * (1 - 2 / n_experts) / 1e6, abs=0.02)


def test_show_tells_which_architecture_cannot_run(phlite: Phlite, tmp_path: Path) -> None:
    with GGUFWriter(tmp_path / "x.gguf") as writer:
        writer.add("general.architecture", "gpt2")
    assert "gpt2, which phlite does not run; it runs phi2, phi3" in phlite("show", tmp_path / "x.gguf").stdout


def test_show_tells_how_to_sample(phlite: Phlite, endless_model: Path, tmp_path: Path) -> None:
    sampling: dict[str, int | float] = {"temp": 0.7, "penalty_last_n": 32}
    path = write_gguf(tmp_path / "tiny.gguf", random_checkpoint(tiny_config(), "Q8_0"), sampling=sampling)
    assert re.search(r"sampling +temperature 0.7, repeat last n 32\n", phlite("show", path).stdout)
    assert re.search(r"sampling +no recommendation\n", phlite("show", endless_model).stdout)


def test_show_verbose_lists_metadata_and_tensors(phlite: Phlite, endless_model: Path) -> None:
    shown = phlite("show", "-v", endless_model).stdout
    assert "phi3.attention.head_count " in shown
    assert "blk.1.ffn_down.weight" in shown
