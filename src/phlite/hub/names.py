"""Turn what a user types into a place: an embedded model, a local path, or a file of a hub repository.

    haiku                                     the model inside this package
    phi3  phi3:mini-128k  phi3.5  phi4-mini   a name of the table below, spelled loosely
    phi3:mini-4k-q8_0                         the same with another quantisation
    owner/repo  owner/repo:Q5_K_M             a repository, and a quantisation in it
    owner/repo@revision:file.gguf             one exact file of one revision
    ./file.gguf  C:\\models\\  ~/models/phi      a file, or a folder that holds one

Names win over files of the same spelling in the working directory (write ./phi3 for the file); a relative path that
exists wins over a repository of the same spelling.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from phlite.errors import DownloadError

__all__ = ["EMBEDDED", "MEMBERS", "Member", "Source", "known_names", "name_of", "name_of_checkpoint", "resolve"]

EMBEDDED = "haiku"
DEFAULT_REVISION = "main"


@dataclass(frozen=True)
class Member:
    """One published model and the GGUF files known of it.

    base:    Microsoft's repository of the original weights
    repo:    the repository of the files in `files`; None where no GGUF is known, and the original weights are taken
    files:   quantisation -> file name; the first is the default
    others:  (repository, file name with {quant}) for quantisations that `files` lacks
    missing: what phlite lacks to run it; "" for the members that it runs
    """

    base: str
    repo: str | None = None
    files: tuple[tuple[str, str], ...] = ()
    others: tuple[str, str] | None = None
    missing: str = ""


@dataclass(frozen=True)
class Source:
    """Where a name points to. Exactly one of `path` and `repo` is set.

    path:     an embedded or local file or folder (it may not exist: `fetch` reports that)
    repo:     "owner/name" on the hub
    revision: branch, tag or commit on the hub
    file:     path of one file inside the repository, or None to choose by `quant`
    quant:    wanted quantisation, upper case ("Q4_K_M"), or None for the default
    """

    name: str
    path: Path | None = None
    repo: str | None = None
    revision: str = DEFAULT_REVISION
    file: str | None = None
    quant: str | None = None


def _community(base: str, repo: str, stem: str) -> Member:
    """A member without a first-party GGUF: all quantisations in one community repository.

    stem: file name up to the quantisation
    """
    return Member(base, repo, (("Q4_K_M", f"{stem}Q4_K_M.gguf"),), (repo, f"{stem}{{quant}}.gguf"))


# Microsoft publishes GGUF files of Phi-3-mini-4k and phi-4 only. The community files are unmodified conversions with
# the phi3 architecture; some other publishers rewrite phi-4 and Phi-4-mini to the llama architecture. No other program
# has a GGUF architecture for Phi-3-small.
MEMBERS: dict[str, Member] = {
    "phi3:mini-4k": Member(
        "microsoft/Phi-3-mini-4k-instruct",
        "microsoft/Phi-3-mini-4k-instruct-gguf",
        (("Q4_K_M", "Phi-3-mini-4k-instruct-q4.gguf"), ("F16", "Phi-3-mini-4k-instruct-fp16.gguf")),
        ("bartowski/Phi-3.1-mini-4k-instruct-GGUF", "Phi-3.1-mini-4k-instruct-{quant}.gguf"),
    ),
    "phi3:mini-128k": _community(
        "microsoft/Phi-3-mini-128k-instruct",
        "bartowski/Phi-3.1-mini-128k-instruct-GGUF",
        "Phi-3.1-mini-128k-instruct-",
    ),
    "phi3:medium-4k": _community(
        "microsoft/Phi-3-medium-4k-instruct", "bartowski/Phi-3-medium-4k-instruct-GGUF", "Phi-3-medium-4k-instruct-"
    ),
    "phi3:medium-128k": _community(
        "microsoft/Phi-3-medium-128k-instruct",
        "bartowski/Phi-3-medium-128k-instruct-GGUF",
        "Phi-3-medium-128k-instruct-",
    ),
    "phi3.5:mini": _community(
        "microsoft/Phi-3.5-mini-instruct", "bartowski/Phi-3.5-mini-instruct-GGUF", "Phi-3.5-mini-instruct-"
    ),
    "phi4": Member(
        "microsoft/phi-4",
        "microsoft/phi-4-gguf",
        (("Q4_K_M", "phi-4-q4.gguf"),),
        ("bartowski/phi-4-GGUF", "phi-4-{quant}.gguf"),
    ),
    "phi4-reasoning": _community(
        "microsoft/Phi-4-reasoning", "bartowski/microsoft_Phi-4-reasoning-GGUF", "microsoft_Phi-4-reasoning-"
    ),
    "phi4-reasoning-plus": _community(
        "microsoft/Phi-4-reasoning-plus",
        "bartowski/microsoft_Phi-4-reasoning-plus-GGUF",
        "microsoft_Phi-4-reasoning-plus-",
    ),
    "phi4-mini": _community(
        "microsoft/Phi-4-mini-instruct",
        "bartowski/microsoft_Phi-4-mini-instruct-GGUF",
        "microsoft_Phi-4-mini-instruct-",
    ),
    "phi4-mini-reasoning": _community(
        "microsoft/Phi-4-mini-reasoning",
        "bartowski/microsoft_Phi-4-mini-reasoning-GGUF",
        "microsoft_Phi-4-mini-reasoning-",
    ),
    "phi3:small-8k": Member("microsoft/Phi-3-small-8k-instruct"),
    "phi3:small-128k": Member("microsoft/Phi-3-small-128k-instruct"),
    "phi3.5:moe": _community(
        "microsoft/Phi-3.5-MoE-instruct", "bartowski/Phi-3.5-MoE-instruct-GGUF", "Phi-3.5-MoE-instruct-"
    ),
    "phi-mini-moe": _community(
        "microsoft/Phi-mini-MoE-instruct", "gabriellarson/Phi-mini-MoE-instruct-GGUF", "Phi-mini-MoE-instruct-"
    ),
    "phi-tiny-moe": Member("microsoft/Phi-tiny-MoE-instruct"),
    "phi2": _community("microsoft/phi-2", "TheBloke/phi-2-GGUF", "phi-2."),
    "phi1.5": _community("microsoft/phi-1_5", "TKDKid1000/phi-1_5-GGUF", "phi-1_5-"),
    "phi1": Member("microsoft/phi-1"),
    "phi3:vision": Member("microsoft/Phi-3-vision-128k-instruct", missing="pictures in prompts"),
    "phi3.5:vision": Member("microsoft/Phi-3.5-vision-instruct", missing="pictures in prompts"),
    "phi4-multimodal": Member("microsoft/Phi-4-multimodal-instruct", missing="pictures and sound in prompts"),
    "phi4-mini-flash-reasoning": Member("microsoft/Phi-4-mini-flash-reasoning", missing="state space layers"),
}

# Short names, and the size tags other programs use, in the loose spelling of `_key`.
SHORT_NAMES: dict[str, str] = {
    "phi3": "phi3:mini-4k",
    "phi3-mini": "phi3:mini-4k",
    "phi3-3.8b": "phi3:mini-4k",
    "phi3-medium": "phi3:medium-4k",
    "phi3-14b": "phi3:medium-4k",
    "phi3-small": "phi3:small-8k",
    "phi3-7b": "phi3:small-8k",
    "phi3-vision-128k": "phi3:vision",
    "phi3.5": "phi3.5:mini",
    "phi3.5-3.8b": "phi3.5:mini",
    "phi3.5-moe-42b": "phi3.5:moe",
    "phi4-14b": "phi4",
    "phi4-mini-3.8b": "phi4-mini",
    "phi4-mini-reasoning-3.8b": "phi4-mini-reasoning",
    "phi4-reasoning-14b": "phi4-reasoning",
    "phi": "phi2",
    "phi2.7b": "phi2",
    "phi2-2.7b": "phi2",
    "phi1-5": "phi1.5",
}

# Compiled when first used: most names need none of them.
_QUANT = r"(?i)[-:](i?q\d(?:_[a-z0-9]+)*|f16|fp16|bf16|f32)$"
_REPO = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_HUB_URL = r"(?i)(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/"


def resolve(name: str, *, checkpoint: bool = False) -> Source:
    """Say where `name` points to, without any network or file access beyond asking whether a path exists.

    checkpoint: a member's name means the repository of its original weights, not a GGUF file
    raises: DownloadError for an unknown name (with the nearest known ones), for a member that phlite does not run yet,
            and for a malformed repository or file name
    """
    name = name.strip()
    if not name:
        raise DownloadError("The model name is empty: give a name such as phi3, owner/repo, or a path.")
    if name == EMBEDDED:
        return Source(name, path=Path(__file__).parent.parent / "assets" / "haiku.gguf")
    quant = re.search(_QUANT, name)
    member = _member(name[: quant.start()] if quant and not _member(name) else name)
    if member:
        if checkpoint:
            return Source(name, repo=MEMBERS[member].base)
        return _member_source(name, member, quant.group(1) if quant else None)
    if _looks_like_path(name):
        return Source(name, path=Path(name).expanduser())
    if "/" in name:
        return _repository_source(name)
    raise DownloadError(f"Unknown model {name!r}{_suggestion(name)}")


def known_names() -> list[str]:
    """Every canonical name of a model that runs: the embedded one first, then the family in order."""
    return [EMBEDDED, *(name for name, member in MEMBERS.items() if not member.missing)]


def name_of(repo: str, file: str) -> str:
    """The shortest spelling that resolves to this file: a name of the table, else owner/repo:file."""
    for name, member in MEMBERS.items():
        if member.repo == repo and member.files and member.files[0][1] == file:
            return name
        if (repo, file) in [(member.repo, f) for _, f in member.files]:
            return f"{name}-{next(q for q, f in member.files if f == file).lower()}"
    return f"{repo}:{file}"


def name_of_checkpoint(repo: str) -> str:
    """The shortest spelling that resolves to these original weights: of a member without a GGUF, else owner/repo."""
    members = (name for name, member in MEMBERS.items() if member.base == repo)
    return next((name for name in members if not MEMBERS[name].repo and not MEMBERS[name].missing), repo)


def _key(name: str) -> str:
    """Loose spelling: Phi-3-mini-4k-instruct, phi3:mini-4k and phi3_mini_4k are one name."""
    key = re.sub(r"[:_\s-]+", "-", name.lower())
    key = key.removesuffix("-latest").replace("-instruct", "")
    return re.sub(r"^phi-(?=\d)", "phi", key)


_CANONICAL = {_key(name): name for name in MEMBERS} | SHORT_NAMES


def _member(name: str) -> str | None:
    return _CANONICAL.get(_key(name))


def _member_source(name: str, canonical: str, quant: str | None) -> Source:
    member = MEMBERS[canonical]
    if member.missing:
        raise DownloadError(
            f"{canonical} ({member.base}) is a member of the family that phlite does not run yet: it lacks "
            f"{member.missing}. It runs {', '.join(known_names())}."
        )
    if member.repo is None:
        return Source(name, repo=member.base, quant=None if quant is None else quant.upper().replace("FP16", "F16"))
    if quant is None:
        return Source(name, repo=member.repo, file=member.files[0][1])
    wanted = quant.upper().replace("FP16", "F16")
    for known, file in member.files:
        if known == wanted:
            return Source(name, repo=member.repo, file=file)
    if member.others is None:
        raise DownloadError(f"No {wanted} file of {canonical} is known; known: {[q for q, _ in member.files]}.")
    repo, pattern = member.others
    return Source(name, repo=repo, file=pattern.format(quant=wanted if "Q" in wanted else wanted.lower()))


def _looks_like_path(name: str) -> bool:
    if name.startswith((".", "/", "~", "\\")) or re.match(r"[A-Za-z]:[\\/]", name) or "\\" in name:
        return True
    if name.lower().endswith(".gguf") and ":" not in name and not re.match(_HUB_URL, name):
        return True
    return Path(name).exists()


def _repository_source(name: str) -> Source:
    """owner/repo[@revision][:file or quantisation], or an address of the hub's web pages."""
    rest = re.sub(_HUB_URL, "", name)
    from_url = re.fullmatch(r"([^/]+/[^/]+)/(?:blob|resolve)/([^/]+)/(.+?)(?:\?.*)?", rest)
    if from_url:
        repo, revision, file = from_url.groups()
    else:
        repo_and_revision, _, file = rest.rstrip("/").partition(":")
        repo, _, revision = repo_and_revision.partition("@")
    if not re.fullmatch(_REPO, repo) or ".." in repo or "--" in repo:
        raise DownloadError(
            f"{name!r} is neither an existing path nor a repository name; expected owner/repo, owner/repo:QUANT, "
            f"owner/repo:file.gguf or ./path/to/file.gguf."
        )
    revision = revision or DEFAULT_REVISION
    if not re.fullmatch(r"[\w./-]+", revision) or ".." in revision or revision.startswith("/"):
        raise DownloadError(f"{revision!r} in {name!r} is not a revision; expected a branch, tag or commit.")
    if not file:
        return Source(name, repo=repo, revision=revision)
    if not file.lower().endswith(".gguf"):
        return Source(name, repo=repo, revision=revision, quant=file.upper().replace("FP16", "F16"))
    check_file_name(file, name)
    return Source(name, repo=repo, revision=revision, file=file)


def check_file_name(file: str, where: str) -> None:
    """Refuse a repository file name that could leave its folder; `where` is named in the message.

    raises: DownloadError
    """
    parts = file.split("/")
    if any(part in ("", ".", "..") or "\\" in part or ":" in part or "\0" in part for part in parts):
        raise DownloadError(f"{file!r} in {where} is not a file name of a repository; expected folder/name.gguf.")


def _suggestion(name: str) -> str:
    import difflib

    nearest = difflib.get_close_matches(_key(name), [*_CANONICAL, EMBEDDED], n=3, cutoff=0.6)
    names = list(dict.fromkeys(key if "-" not in key else _CANONICAL[key] for key in nearest))
    if names:
        return f"; did you mean {' or '.join(names)}? A file needs a path (./{name}), a repository owner/repo."
    return f"; known: {', '.join(known_names())}; or give owner/repo, or a path such as ./{name}."
