"""Composes haiku from templates, and judges them: the form 5-7-5 and the theme.

A topic is a phrase such as "an old puck at dawn". It names a theme, and may name a noun of it, an adjective, a setting
or a second noun. The poem takes them up: an opening of five syllables, an action of seven, a turn of five.
"""

from __future__ import annotations

import random
import re
from functools import lru_cache

from templates import ACTIONS, CLOSINGS, COMMON_CLOSINGS, JOINED_ACTIONS, JOINING_WORDS, OPENINGS
from topics import Topic
from words import Group, capitalise_names, count_syllables, load_themes, split_words, third_person, word_set

FORM = (5, 7, 5)
ATTEMPTS = 1000

FUNCTION_WORDS = word_set(
    "a an the and of in on at to my from for with no by into i we it is its this that then only so as while where all "
    "one more still again not how but nothing through under over along down up out me once between behind beside upon "
    "beyond across past among inside after before"
)
"""Words that may come twice in a poem; any other may not."""


def compose_haiku(topic: Topic, rng: random.Random) -> str:
    """Three lines of 5, 7 and 5 syllables about the topic, with capitals and punctuation.

    The last attempts no longer ask for the topic's adjective or setting: long nouns leave no room for them.
    """
    for attempt in range(ATTEMPTS):
        lines = _draw_lines(topic, rng, strict=attempt < ATTEMPTS // 4)
        if lines is None:
            continue
        words = [w for line in lines for w in split_words(line) if w not in FUNCTION_WORDS]
        if len(words) == len(set(words)) and [count_syllables(line) for line in lines] == list(FORM):
            return _punctuate(lines, rng)
    raise ValueError(f"no haiku fits the topic {topic.phrase!r}: its nouns leave no room in the templates")


def _draw_lines(topic: Topic, rng: random.Random, *, strict: bool) -> list[str] | None:
    """One attempt at three bare lines; None where some line could not be filled."""
    theme = topic.theme
    nouns = [topic.noun or rng.choice(theme.nouns), topic.second_noun or rng.choice(theme.nouns)]
    if rng.random() < 0.4:
        nouns.reverse()
    nouns.append(rng.choice(theme.nouns))
    if len(set(nouns)) < 3:
        return None
    draw = _LineDrawer(topic, rng, strict=strict and rng.random() < 0.75)
    opening = draw.line(OPENINGS, nouns[0], 5)
    if nouns[1] not in (topic.noun, topic.second_noun) and rng.random() < 0.35:
        action: str | None = rng.choice(theme.sevens)
    else:
        joined = rng.random() < 0.3
        action = draw.line(JOINED_ACTIONS if joined else ACTIONS, nouns[1], 7)
    kind = rng.random()
    if kind < 0.4:
        closing: str | None = rng.choice(theme.fives)
    elif kind < 0.55:
        closing = rng.choice(COMMON_CLOSINGS)
    else:
        closing = draw.line(CLOSINGS, nouns[2], 5)
    if opening is None or action is None or closing is None or not draw.took_up_the_topic():
        return None
    return [opening, action, closing]


class _LineDrawer:
    """Fills templates; remembers whether the topic's adjective and setting have been used."""

    def __init__(self, topic: Topic, rng: random.Random, *, strict: bool) -> None:
        self.topic = topic
        self.rng = rng
        self.strict = strict
        self.lines: list[str] = []

    def took_up_the_topic(self) -> bool:
        """Whether the poem speaks of the topic's adjective or setting (only if strict)."""
        text = " ".join(self.lines)
        wanted: list[str] = [self.topic.modifier] if self.topic.modifier else []
        if self.topic.setting:
            wanted.extend(self.topic.setting.places + self.topic.setting.times)
        return not self.strict or not wanted or any(phrase in text for phrase in wanted)

    def line(self, templates: dict[str, tuple[str, ...]], noun: str, syllables: int) -> str | None:
        """A template with this noun filled to the wanted number of syllables, or None after some failed draws."""
        group = next(group for group in self.topic.theme.groups if noun in group.nouns)
        for _ in range(40):
            text = self._fill(self.rng.choice(templates[group.number]), group, noun)
            if count_syllables(text) == syllables:
                self.lines.append(text)
                return text
        return None

    def _fill(self, template: str, group: Group, noun: str) -> str:
        rng, topic, theme = self.rng, self.topic, self.topic.theme
        verb, other_verb = rng.sample(group.verbs, 2)
        adjectives = rng.sample(group.adjectives, 2)
        places, times = theme.places, theme.times
        if topic.modifier and noun == topic.noun and rng.random() < 0.7:
            adjectives[0] = topic.modifier
        if topic.setting and rng.random() < 0.6:
            places, times = list(topic.setting.places), list(topic.setting.times)
        text = template.format(
            n=noun,
            a=adjectives[0],
            b=adjectives[1],
            v=verb,
            w=other_verb,
            vs=third_person(verb),
            ws=third_person(other_verb),
            p=rng.choice(places),
            t=rng.choice(times),
        )
        return re.sub(r"\ba (?=[aeiou])", "an ", text)


def _punctuate(lines: list[str], rng: random.Random) -> str:
    """The poem with line ends that fit the grammar: a joined second line never follows a full stop."""
    opening, action, closing = lines
    if action.split()[0] in JOINING_WORDS:
        first_end = rng.choice(("", ","))
    elif _is_clause(opening):
        first_end = rng.choice((".", ";", "."))
    else:
        first_end = rng.choice((" —", ",", " —"))
    if closing.split()[0] in ("and", "then", "as", "how"):
        second_end = rng.choice((",", ";", ","))
    else:
        second_end = rng.choice((".", ".", ";", " —"))
    text = (opening + first_end, action + second_end, closing + ".")
    return "\n".join(line[0].upper() + line[1:] for line in map(capitalise_names, text))


@lru_cache(maxsize=1)
def _verbs() -> frozenset[str]:
    """The first words of all verbs in both forms."""
    verbs = [verb for theme in load_themes() for group in theme.groups for verb in group.verbs]
    return frozenset(form.split()[0] for verb in verbs for form in (verb, third_person(verb)))


def _is_clause(line: str) -> bool:
    """Whether a line drawn from the openings holds a verb; nouns that are verbs too ("dew drops") pass as one."""
    return not _verbs().isdisjoint(split_words(line))


def is_575(poem: str) -> bool:
    """Whether the text is exactly three lines of 5, 7 and 5 syllables; a word outside the list fails."""
    return [count_syllables(line) for line in poem.strip().split("\n")] == list(FORM)


def speaks_of(poem: str, topic: Topic) -> bool:
    """Whether some line holds a word of the topic's theme (of any theme with that noun or topic)."""
    wanted: set[str] = set()
    for theme in load_themes():
        if theme is topic.theme or (topic.noun and topic.noun in theme.nouns):
            wanted |= theme.words()
    return not wanted.isdisjoint(split_words(poem))
