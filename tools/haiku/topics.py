"""The topics a request may name, and the fixed tenth of them that training never sees."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

from words import MODIFIERS, Group, Setting, Theme, load_settings, load_themes, split_words, with_article


@dataclass(frozen=True)
class Topic:
    """What a request asks for; `phrase` is its text, the rest says how the poem takes it up."""

    phrase: str
    theme: Theme
    noun: str | None = None
    modifier: str | None = None
    setting: Setting | None = None
    second_noun: str | None = None

    def __hash__(self) -> int:
        return hash(self.phrase)


@lru_cache(maxsize=1)
def all_topics() -> tuple[tuple[Topic, ...], tuple[Topic, ...]]:
    """The topics of training and those held out, a fixed tenth of all but the themes' own topic lists.

    A phrase belongs to one side by a hash of its words without articles, so no held-out phrase has a twin in training.
    """
    training = [Topic(phrase, theme) for theme in load_themes() for phrase in theme.topics]
    listed = {_key(topic.phrase) for topic in training}
    held_out: list[Topic] = []
    for theme in load_themes():
        for topic in _theme_topics(theme):
            key = _key(topic.phrase)
            hidden = key not in listed and hashlib.sha256(key.encode()).digest()[0] < 26
            (held_out if hidden else training).append(topic)
    return tuple(training), tuple(held_out)


def _theme_topics(theme: Theme) -> list[Topic]:
    """Every topic built from the theme's nouns: bare, with an adjective, in a setting, in pairs."""
    found: list[Topic] = []
    names = {noun: _names(noun, group) for group in theme.groups for noun in group.nouns}
    singular = {noun for group in theme.groups if group.number == "one" for noun in group.nouns}
    for noun, forms in names.items():
        found.extend(Topic(form, theme, noun) for form in forms)
        for modifier in MODIFIERS:
            phrase = f"{modifier} {noun}"
            articles = (with_article(phrase), f"the {phrase}", f"my {phrase}") if noun in singular else (phrase,)
            found.extend(Topic(form, theme, noun, modifier=modifier) for form in articles)
        found.extend(Topic(f"{form} {s.name}", theme, noun, setting=s) for s in load_settings() for form in forms)
        for second, second_forms in names.items():
            if second != noun and not set(split_words(second)) & set(split_words(noun)):
                found.append(Topic(f"{forms[0]} and {second_forms[0]}", theme, noun, second_noun=second))
    placeless = [phrase for phrase in theme.topics if " in " not in phrase]
    found.extend(Topic(f"{phrase} {s.name}", theme, setting=s) for phrase in placeless for s in load_settings())
    return found


def _names(noun: str, group: Group) -> tuple[str, ...]:
    """How a request may name the noun."""
    if group.number == "one":
        return (with_article(noun), f"the {noun}")
    return (noun, f"the {noun}") if group.number == "many" else (noun,)


def _key(phrase: str) -> str:
    """The words of a topic without articles, sorted: equal for phrases that ask for the same thing."""
    return " ".join(sorted(word for word in split_words(phrase) if word not in ("a", "an", "the", "my", "and")))
