"""The model's own SentencePiece-style vocabulary: byte-pair pieces in merge order, then Phi-3's special tokens."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chat import Message, compose_conversation
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SPACE = "\u2581"
SPECIAL_TOKENS = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
N_RESERVED = 3 + 256
"""`<unk>`, `<s>`, `</s>` and the byte tokens come before the pieces."""


@dataclass(frozen=True)
class Vocabulary:
    """Pieces by id, and the merges that build them, best first."""

    pieces: tuple[str, ...]
    merges: tuple[tuple[str, str], ...]

    def id_of(self, piece: str) -> int:
        """The id of a piece or special token."""
        return self.pieces.index(piece)


def train_vocabulary(n_pieces: int, *, n_conversations: int = 20000, seed: int = 1) -> Vocabulary:
    """A vocabulary of at most `n_pieces`, special tokens included, learnt from composed conversations.

    Words, punctuation and line breaks are kept apart while merges are learnt, so that none spans two of them. Encoding
    needs no such split: where no merge crosses a border, merging the whole text gives the same pieces.
    """
    rng = random.Random(seed)
    texts = (m["content"] for _ in range(n_conversations) for m in compose_conversation(rng))
    learner = Tokenizer(models.BPE())
    learner.normalizer = _normalizer()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(f"{SPACE}?[A-Za-z']+|{SPACE}?[0-9]|{SPACE}?[^{SPACE}A-Za-z0-9]"), "isolated")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=n_pieces - N_RESERVED - len(SPECIAL_TOKENS),
        initial_alphabet=[chr(c) for c in range(32 + 1, 127)] + [SPACE, "\n"],
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    learnt = _model_state(learner)
    letters = sorted(piece for piece in learnt["vocab"] if len(piece) == 1)
    merges = tuple((left, right) for left, right in learnt["merges"])
    merged = list(dict.fromkeys(left + right for left, right in merges))
    reserved = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    return Vocabulary((*reserved, *merged, *letters, *SPECIAL_TOKENS), merges)


def save_vocabulary(vocabulary: Vocabulary, folder: Path) -> None:
    """Write `folder/vocabulary.json`."""
    (folder / "vocabulary.json").write_text(json.dumps(asdict(vocabulary)), encoding="utf-8")


def load_vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary that save_vocabulary wrote."""
    saved = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
    return Vocabulary(tuple(saved["pieces"]), tuple((left, right) for left, right in saved["merges"]))


def build_tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """The `tokenizers` form with Phi-3's pipeline: every marker swallows the white space after it."""
    ids = {piece: i for i, piece in enumerate(vocabulary.pieces)}
    tokenizer = Tokenizer(
        models.BPE(ids, list(vocabulary.merges), unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = _normalizer()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    plain = ("<unk>", "<s>", "<|endoftext|>")
    tokenizer.add_special_tokens(
        [AddedToken(t, rstrip=t not in plain, normalized=False) for t in ("<unk>", "<s>", "</s>", *SPECIAL_TOKENS)]
    )
    return tokenizer


def render(messages: Iterable[Message], *, add_generation_prompt: bool) -> str:
    """The text of Phi-3's chat template for these messages."""
    text = "".join(f"<|{m['role']}|>\n{m['content']}<|end|>\n" for m in messages)
    return text + ("<|assistant|>\n" if add_generation_prompt else "<|endoftext|>")


def _normalizer() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])


def _model_state(tokenizer: Tokenizer) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return state
