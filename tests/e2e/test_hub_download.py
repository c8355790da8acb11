"""Downloads against a hub on this machine: what goes over the wire, and what every failure ends in."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from e2e.hub_server import HubServer

from phlite.errors import DownloadError
from phlite.hub import cache as hub_cache
from phlite.hub import cached_models, download, fetch

REPO = "someone/Model-GGUF"
FILE = "model-Q4_K_M.gguf"
PIECE = 1 << 16  # what the HTTP library of huggingface_hub before 1.0 reads at once
CONTENT = b"GGUF" + bytes(range(256)) * 2000


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


@pytest.fixture
def repository(hub: HubServer) -> HubServer:
    hub.add(REPO, {FILE: CONTENT, "README.md": b"hello"})
    return hub


class Notes:
    """A progress that remembers what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.titles: list[str] = []
        self.counted_bytes = 0

    def note(self, message: str) -> None:
        self.notes.append(message)

    def start(self, title: str, total_bytes: int | None, done_bytes: int = 0) -> None:
        self.titles.append(title)
        self.counted_bytes = done_bytes

    def advance(self, n_bytes: int) -> None:
        self.counted_bytes += n_bytes

    def finish(self) -> None:
        pass


def ranges(hub: HubServer) -> list[str | None]:
    return [request.headers.get("range") for request in hub.content_requests()]


def partial_file(repo: str = REPO) -> Path:
    (partial,) = (hub_cache.repo_dir(repo) / "blobs").glob("*.incomplete")
    return partial


def test_a_file_arrives_whole_in_the_layout_of_the_hubs_own_cache(repository: HubServer) -> None:
    model = fetch(f"{REPO}:{FILE}")
    assert model.gguf.read_bytes() == CONTENT
    assert model.revision == repository.repositories[REPO].commit
    # huggingface_hub itself finds it, without a request
    found = huggingface_hub.try_to_load_from_cache(REPO, FILE, cache_dir=hub_cache.cache_dir())
    assert found == str(model.gguf)


def test_a_cached_model_is_used_without_any_request(repository: HubServer) -> None:
    fetch(f"{REPO}:{FILE}")
    repository.requests.clear()
    assert fetch(f"{REPO}:{FILE}").gguf.read_bytes() == CONTENT
    assert repository.requests == []


def test_a_cut_connection_is_continued_where_it_ended(repository: HubServer) -> None:
    repository.faults = [("cut", 3 * PIECE)]
    assert fetch(f"{REPO}:{FILE}").gguf.read_bytes() == CONTENT
    assert ranges(repository) == [None, f"bytes={3 * PIECE}-"]


def test_a_download_continues_in_a_later_call(repository: HubServer) -> None:
    repository.faults = [("cut", 2 * PIECE), ("status", 503), ("status", 503), ("status", 503)]
    with pytest.raises(DownloadError, match=r"HTTP 503.* 131 kB of 512 kB are kept.*again to continue"):
        fetch(f"{REPO}:{FILE}")
    repository.requests.clear()
    notes = Notes()
    assert fetch(f"{REPO}:{FILE}", progress=notes).gguf.read_bytes() == CONTENT
    assert ranges(repository) == [f"bytes={2 * PIECE}-"]
    assert notes.counted_bytes == len(CONTENT)


def test_a_silent_server_is_given_up_and_asked_again(repository: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "1")
    repository.faults = [("stall", PIECE)]
    assert fetch(f"{REPO}:{FILE}").gguf.read_bytes() == CONTENT
    assert ranges(repository) == [None, f"bytes={PIECE}-"]


def test_a_server_that_ignores_ranges_costs_a_new_start_but_no_wrong_byte(repository: HubServer) -> None:
    repository.faults = [("cut", 100_000), ("no range",)]
    notes = Notes()
    assert fetch(f"{REPO}:{FILE}", progress=notes).gguf.read_bytes() == CONTENT
    assert notes.counted_bytes == len(CONTENT)


def test_a_partial_file_longer_than_the_whole_is_dropped(repository: HubServer) -> None:
    repository.faults = [("cut", 1000), ("status", 500), ("status", 500), ("status", 500)]
    with pytest.raises(DownloadError):
        fetch(f"{REPO}:{FILE}")
    partial_file().write_bytes(CONTENT + b"more")
    assert fetch(f"{REPO}:{FILE}").gguf.read_bytes() == CONTENT


def test_wrong_content_is_refused_and_nothing_of_it_is_kept(repository: HubServer) -> None:
    repository.faults = [("corrupt",)]
    with pytest.raises(DownloadError, match="arrived with checksum"):
        fetch(f"{REPO}:{FILE}")
    assert list((hub_cache.repo_dir(REPO) / "blobs").iterdir()) == []
    assert fetch(f"{REPO}:{FILE}").gguf.read_bytes() == CONTENT


def test_a_corrupt_beginning_that_was_continued_is_fetched_anew(repository: HubServer) -> None:
    repository.faults = [("cut", 1000), ("status", 500), ("status", 500), ("status", 500)]
    with pytest.raises(DownloadError):
        fetch(f"{REPO}:{FILE}")
    partial_file().write_bytes(b"x" * 1000)
    notes = Notes()
    assert fetch(f"{REPO}:{FILE}", progress=notes).gguf.read_bytes() == CONTENT
    assert "starting over" in notes.notes[0]


@pytest.mark.parametrize(("last_byte", "sound"), [(b"\n", True), (b"!", False)])
def test_small_files_are_verified_by_their_git_checksum(hub: HubServer, last_byte: bytes, sound: bool) -> None:
    announced = hashlib.sha1(b"blob 5\0GGUF\n").hexdigest()
    hub.add(REPO, {FILE: b"GGUF" + last_byte}, announced={FILE: announced})
    with contextlib.nullcontext() if sound else pytest.raises(DownloadError, match="checksum"):
        fetch(f"{REPO}:{FILE}")


def test_a_truncated_cached_file_is_repaired(repository: HubServer) -> None:
    path = fetch(f"{REPO}:{FILE}").gguf
    os.truncate(path, 1000)
    notes = Notes()
    assert fetch(f"{REPO}:{FILE}", progress=notes).gguf.read_bytes() == CONTENT
    assert "it has 1000 of 512004 bytes" in notes.notes[0]


def test_changed_bytes_in_a_cached_file_are_repaired(repository: HubServer) -> None:
    path = fetch(f"{REPO}:{FILE}").gguf
    with path.open("r+b") as content:
        content.seek(5000)
        content.write(b"oops")
    notes = Notes()
    assert fetch(f"{REPO}:{FILE}", progress=notes).gguf.read_bytes() == CONTENT
    (note,) = notes.notes
    assert "its checksum is" in note


def test_a_dangling_link_in_the_cache_is_repaired(repository: HubServer) -> None:
    path = fetch(f"{REPO}:{FILE}").gguf
    path.resolve().unlink()
    assert fetch(f"{REPO}:{FILE}").gguf.read_bytes() == CONTENT


def test_a_file_from_another_program_is_verified_once(repository: HubServer) -> None:
    path = fetch(f"{REPO}:{FILE}").gguf
    shutil.rmtree(hub_cache.repo_dir(REPO) / ".phlite")
    first, second = Notes(), Notes()
    assert fetch(f"{REPO}:{FILE}", progress=first).gguf == path
    assert fetch(f"{REPO}:{FILE}", progress=second).gguf == path
    assert first.titles == [f"Checking {FILE}"]
    assert second.titles == []


def test_a_corrupt_file_from_another_program_is_repaired(repository: HubServer) -> None:
    path = fetch(f"{REPO}:{FILE}").gguf
    shutil.rmtree(hub_cache.repo_dir(REPO) / ".phlite")
    path.write_bytes(CONTENT[:-1] + b"?")
    assert fetch(f"{REPO}:{FILE}").gguf.read_bytes() == CONTENT


def test_damage_is_an_error_offline(repository: HubServer) -> None:
    os.truncate(fetch(f"{REPO}:{FILE}").gguf, 1000)
    with pytest.raises(DownloadError, match=r"damaged \(it has 1000 of 512004 bytes\), and offline"):
        fetch(f"{REPO}:{FILE}", offline=True)


def test_offline_finds_what_is_cached_and_sends_nothing(repository: HubServer) -> None:
    fetch(f"{REPO}:{FILE}")
    repository.requests.clear()
    assert fetch(REPO, offline=True).gguf.name == FILE
    assert repository.requests == []


def test_offline_without_the_file_says_what_to_do(repository: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match=f"not in the cache .*`phlite pull {REPO}` once"):
        fetch(REPO)
    assert repository.requests == []


def test_no_network_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match=r"cannot reach http://127.0.0.1:9 for .*refused.*HTTPS_PROXY") as caught:
        fetch(f"{REPO}:{FILE}")
    assert "\n" not in str(caught.value)


def test_an_unknown_repository_says_so(hub: HubServer) -> None:
    with pytest.raises(DownloadError, match=r"there is no repository no/such .*HTTP 401.*private"):
        fetch("no/such")


def test_an_unknown_file_lists_what_there_is(repository: HubServer) -> None:
    with pytest.raises(DownloadError, match=f"no file 'other.gguf'; it has {FILE}"):
        fetch(f"{REPO}:other.gguf")


def test_an_unknown_revision_says_so(repository: HubServer) -> None:
    with pytest.raises(DownloadError, match="no revision 'v9'"):
        fetch(f"{REPO}@v9:{FILE}")


def test_a_gated_repository_says_how_to_get_in(hub: HubServer) -> None:
    hub.add(REPO, {FILE: CONTENT}, gated=True)
    with pytest.raises(DownloadError, match=f"gated .HTTP 403.: accept its terms at {hub.endpoint}/{REPO}"):
        fetch(f"{REPO}:{FILE}")


def test_the_token_opens_a_private_repository_and_is_not_shown_to_the_content_server(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, {FILE: CONTENT}, token="hf_secret")
    with pytest.raises(DownloadError, match="HF_TOKEN"):
        fetch(f"{REPO}:{FILE}")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert fetch(f"{REPO}:{FILE}").gguf.read_bytes() == CONTENT
    assert all("authorization" not in request.headers for request in hub.content_requests())


def test_a_server_that_is_no_hub_is_recognised(repository: HubServer) -> None:
    repository.is_a_hub = False
    with pytest.raises(DownloadError, match=r"does not answer as a hub .*Check HF_ENDPOINT and the proxy"):
        fetch(f"{REPO}:{FILE}")


@pytest.mark.parametrize("etag", ["../../../../escape", "a/b", ".."])
def test_an_etag_that_would_leave_the_cache_is_refused(hub: HubServer, etag: str) -> None:
    hub.add(REPO, {FILE: CONTENT}, announced={FILE: etag})
    with pytest.raises(DownloadError, match="does not answer as a hub"):
        fetch(f"{REPO}:{FILE}")


def test_a_disk_without_room_is_noticed_before_anything_is_fetched(
    repository: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(DownloadError, match=r"needs 512 kB more, .* has 1 kB free; .*HF_HOME"):
        fetch(f"{REPO}:{FILE}")
    assert repository.content_requests() == []


@pytest.mark.skipif(os.name == "nt", reason="needs a file size limit of the operating system")
def test_a_disk_that_fills_up_keeps_what_came_and_says_what_to_do(repository: HubServer) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        with pytest.raises(DownloadError, match=f"cannot write .*: {os.strerror(errno.EFBIG)}"):
            fetch(f"{REPO}:{FILE}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    repository.requests.clear()
    assert fetch(f"{REPO}:{FILE}").gguf.read_bytes() == CONTENT
    assert ranges(repository)[0] is not None


def test_all_parts_of_a_split_model_are_fetched_from_one_commit(hub: HubServer) -> None:
    parts = {f"m-Q4_K_M-0000{n}-of-00003.gguf": CONTENT + bytes([n]) for n in (1, 2, 3)}
    hub.add(REPO, parts)
    model = fetch(REPO)
    assert [path.read_bytes() for path in model.paths] == list(parts.values())
    assert model.gguf.name == "m-Q4_K_M-00001-of-00003.gguf"
    lookups = [request.path for request in hub.requests if request.server == "hub" and request.method == "HEAD"]
    assert [path.split("/")[4] for path in lookups] == ["main", model.revision, model.revision]


def test_a_missing_part_of_a_cached_split_model_is_fetched(hub: HubServer) -> None:
    parts = {f"m-Q4_K_M-0000{n}-of-00002.gguf": CONTENT + bytes([n]) for n in (1, 2)}
    hub.add(REPO, parts)
    fetch(REPO).paths[1].unlink()
    assert [path.read_bytes() for path in fetch(REPO).paths] == list(parts.values())


def test_of_several_models_q4_k_m_is_chosen_and_the_others_are_named(hub: HubServer) -> None:
    hub.add(REPO, {f"m-{quant}.gguf": CONTENT for quant in ("Q2_K", "Q4_K_M", "Q8_0")})
    notes = Notes()
    assert fetch(REPO, progress=notes).gguf.name == "m-Q4_K_M.gguf"
    assert notes.notes == [f"{REPO} has 3 models; chose m-Q4_K_M.gguf. Others: m-Q2_K.gguf, m-Q8_0.gguf"]


def test_a_quantisation_can_be_asked_for(hub: HubServer) -> None:
    hub.add(REPO, {f"m-{quant}.gguf": CONTENT for quant in ("Q2_K", "Q4_K_M", "Q8_0")})
    assert fetch(f"{REPO}:q8_0").gguf.name == "m-Q8_0.gguf"


def test_a_repository_without_gguf_says_what_it_has(hub: HubServer) -> None:
    hub.add("microsoft/Phi-9", {"consolidated.safetensors": b"", "config.json": b"{}"})
    with pytest.raises(DownloadError, match=r"no GGUF file; it has config.json, consolidated.*Phi-9-GGUF"):
        fetch("microsoft/Phi-9")


def test_refresh_finds_a_new_revision_and_keeps_equal_content(repository: HubServer) -> None:
    first = fetch(f"{REPO}:{FILE}")
    repository.repositories[REPO].files["LICENSE"] = b"MIT"
    repository.requests.clear()
    second = fetch(f"{REPO}:{FILE}", refresh=True)
    assert second.revision != first.revision
    assert second.gguf.resolve() == first.gguf.resolve()
    assert repository.content_requests() == []


def test_force_fetches_again(repository: HubServer) -> None:
    fetch(f"{REPO}:{FILE}")
    repository.requests.clear()
    fetch(f"{REPO}:{FILE}", force=True)
    assert ranges(repository) == [None]


def test_a_failed_forced_download_leaves_the_old_file(repository: HubServer) -> None:
    fetch(f"{REPO}:{FILE}")
    repository.faults = [("corrupt",)]
    with pytest.raises(DownloadError):
        fetch(f"{REPO}:{FILE}", force=True)
    assert fetch(f"{REPO}:{FILE}", offline=True).gguf.read_bytes() == CONTENT


def test_without_symbolic_links_the_file_itself_is_in_the_snapshot(
    repository: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_SYMLINKS", "1")
    path = fetch(f"{REPO}:{FILE}").gguf
    assert not path.is_symlink()
    os.truncate(path, 1000)
    assert fetch(f"{REPO}:{FILE}").gguf.read_bytes() == CONTENT


def test_a_bad_timeout_setting_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "soon")
    with pytest.raises(DownloadError, match="HF_HUB_DOWNLOAD_TIMEOUT is 'soon'; expected a whole number"):
        fetch(f"{REPO}:{FILE}")


def test_an_interrupted_download_is_listed_as_partial(repository: HubServer) -> None:
    repository.faults = [("cut", PIECE), ("status", 500), ("status", 500), ("status", 500)]
    with pytest.raises(DownloadError):
        fetch(f"{REPO}:{FILE}")
    (model,) = cached_models()
    assert (model.state, model.size_bytes, model.total_bytes) == ("partial", PIECE, len(CONTENT))
