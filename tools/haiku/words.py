"""The word lists of the haiku model: themes, syllable counts, and the settings a topic may carry.

They are read from text files beside this module: `themes.txt` (what can be written about), `settings.txt` (when and
where) and `syllables.txt` (every word of the corpus under its number of syllables).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

HERE = Path(__file__).resolve().parent


def word_set(words: str) -> frozenset[str]:
    """The set of the words of a line."""
    return frozenset(words.split())


PROPER_NAMES = word_set(
    "january february april june july august september october november december monday sunday "
    "tokyo paris mars saturn fuji buddha stanley france"
)
"""Words always written with a capital letter; "march" and "may" are more often verbs."""

STOP_WORDS = word_set(
    "a an the of and in on at to my from for with no by into first last end new going lost good deep growing old white "
    "red black thin warm long small green empty tiny wet tall full great steep fresh bare dry half home play power "
    "cold cup note"
)
"""Words of a topic or a noun that do not make a line speak of the theme."""

MODIFIERS = (
    "old", "quiet", "lonely", "lost", "forgotten", "broken", "distant", "strange", "tired", "happy", "tiny",
    "beautiful", "hidden", "gentle",
)  # fmt: skip
"""Adjectives that a topic may put before any noun ("a lonely puck")."""


@dataclass(frozen=True)
class Group:
    """Nouns that share their verbs and adjectives, so that subject, verb and adjective always fit."""

    number: str
    nouns: tuple[str, ...]
    verbs: tuple[str, ...]
    adjectives: tuple[str, ...]


@dataclass(frozen=True)
class Setting:
    """A time or place that a topic may add ("at dawn"), and the phrases in which a haiku speaks of it."""

    name: str
    places: tuple[str, ...]
    times: tuple[str, ...]


@dataclass
class Theme:
    """One section of themes.txt."""

    name: str
    topics: list[str] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    times: list[str] = field(default_factory=list)
    sevens: list[str] = field(default_factory=list)
    fives: list[str] = field(default_factory=list)

    @property
    def nouns(self) -> list[str]:
        """All nouns of the theme, in file order."""
        return [noun for group in self.groups for noun in group.nouns]

    def words(self) -> set[str]:
        """Words that make a line speak of this theme: those of its nouns and topics, bare of fillers."""
        found = {word for phrase in self.nouns + self.topics for word in split_words(phrase)}
        adjectives = {word for theme in load_themes() for group in theme.groups for word in group.adjectives}
        return found - STOP_WORDS - set(MODIFIERS) - adjectives


def split_words(text: str) -> list[str]:
    """The words of `text` in lower case, without punctuation."""
    return re.findall(r"[a-z']*[a-z]", text.lower())


@lru_cache(maxsize=1)
def load_themes() -> tuple[Theme, ...]:
    """All themes of themes.txt in file order."""
    themes: list[Theme] = []
    for line in (HERE / "themes.txt").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            themes.append(Theme(line.strip("[]")))
            continue
        key, _, value = line.partition(":")
        theme = themes[-1]
        if key in ("one", "many", "mass"):
            nouns, verbs, adjectives = (tuple(w.strip() for w in part.split(",")) for part in value.split("|"))
            theme.groups.append(Group(key, nouns, verbs, adjectives))
        else:
            getattr(theme, key).extend(phrase.strip() for phrase in value.split(";"))
    return tuple(themes)


@lru_cache(maxsize=1)
def load_settings() -> tuple[Setting, ...]:
    """All settings of settings.txt in file order."""
    settings: list[Setting] = []
    for line in (HERE / "settings.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, phrases = line.partition(":")
            places, times = (tuple(phrase.strip() for phrase in part.split(";")) for part in phrases.split("|"))
            settings.append(Setting(name, places, times))
    return tuple(settings)


@lru_cache(maxsize=1)
def load_syllables() -> dict[str, int]:
    """Syllables of every word the composer may use, from lines of the form `2: autumn, frozen, ...`."""
    counts: dict[str, int] = {}
    for line in (HERE / "syllables.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            count, _, words = line.partition(":")
            counts.update(dict.fromkeys(words.replace(",", " ").split(), int(count)))
    return counts


def count_syllables(text: str) -> int | None:
    """Syllables of `text` by syllables.txt, or None if it holds a word that the list lacks."""
    counts = load_syllables()
    total = 0
    for word in split_words(text):
        if word not in counts:
            return None
        total += counts[word]
    return total


def third_person(verb: str) -> str:
    """The third person singular of a verb phrase in base form: `let go` gives `lets go`."""
    head, _, rest = verb.partition(" ")
    if head.endswith(("s", "sh", "ch", "x", "z")):
        head += "es"
    elif head.endswith("y") and head[-2] not in "aeiou":
        head = head[:-1] + "ies"
    else:
        head += "s"
    return f"{head} {rest}" if rest else head


def with_article(noun: str) -> str:
    """The noun phrase with `a` or `an` before it."""
    return ("an " if noun[0] in "aeiou" and not noun.startswith(("unicorn", "one")) else "a ") + noun


def capitalise_names(text: str) -> str:
    """`text` with months, days, cities and the word I in capitals."""
    text = re.sub(r"\bi\b", "I", text)
    text = re.sub(r"[a-z]+", lambda m: m.group().capitalize() if m.group() in PROPER_NAMES else m.group(), text)
    for name in ("New York", "Mount Fuji", "early March"):
        text = re.sub(name, name, text, flags=re.IGNORECASE)
    return text
