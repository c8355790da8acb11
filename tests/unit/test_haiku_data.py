"""The text that the embedded model learns from keeps its own rules."""

import importlib
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools" / "haiku"


def load(name: str) -> ModuleType:
    """A module of tools/haiku, which is a folder of scripts and no installed package."""
    sys.path.insert(0, str(TOOLS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(TOOLS))


words, topics, compose, chat = (load(name) for name in ("words", "topics", "compose", "chat"))


def sample_topics(n: int) -> list[Any]:
    training, held_out = topics.all_topics()
    return random.Random(11).sample(training, n) + random.Random(12).sample(held_out, n)


def test_every_composed_haiku_has_five_seven_and_five_syllables() -> None:
    rng = random.Random(1)
    poems = [compose.compose_haiku(topic, rng) for topic in sample_topics(150)]
    assert [poem for poem in poems if not compose.is_575(poem)] == []


def test_every_composed_haiku_speaks_of_its_theme() -> None:
    rng = random.Random(2)
    poems = {topic.phrase: (compose.compose_haiku(topic, rng), topic) for topic in sample_topics(150)}
    assert [phrase for phrase, (poem, topic) in poems.items() if not compose.speaks_of(poem, topic)] == []


def test_held_out_topics_are_not_in_the_training_set() -> None:
    training, held_out = topics.all_topics()
    assert len(held_out) > 1000
    assert {topic.phrase for topic in training}.isdisjoint(topic.phrase for topic in held_out)


def test_conversations_never_ask_for_a_held_out_topic() -> None:
    rng = random.Random(3)
    phrases = {topic.phrase for topic in topics.all_topics()[1]}
    asked = (m["content"] for _ in range(300) for m in chat.compose_conversation(rng) if m["role"] == "user")
    endings = (text.lower().rstrip(".!?").partition(" about ")[2] for text in asked)
    assert phrases.isdisjoint(endings)


def test_ice_hockey_is_a_topic_of_training() -> None:
    assert "ice hockey" in {topic.phrase for topic in topics.all_topics()[0]}


@pytest.mark.parametrize(("key", "syllables"), [("sevens", 7), ("fives", 5)])
def test_written_lines_have_their_number_of_syllables(key: str, syllables: int) -> None:
    lines = [line for theme in words.load_themes() for line in getattr(theme, key)]
    assert [line for line in lines if words.count_syllables(line) != syllables] == []


def test_common_closings_have_five_syllables() -> None:
    closings = load("templates").COMMON_CLOSINGS
    assert [line for line in closings if words.count_syllables(line) != 5] == []


def test_a_word_outside_the_list_has_no_syllable_count() -> None:
    assert words.count_syllables("the old xylophone") is None


FIVE_FIVE_FIVE = "Snow upon more snow\nSnow upon more snow\nSnow upon more snow"


@pytest.mark.parametrize("poem", ["Frost on the window", "The old pond\nA frog jumps\nThe sound", FIVE_FIVE_FIVE])
def test_other_forms_are_not_taken_for_575(poem: str) -> None:
    assert not compose.is_575(poem)


def test_a_poem_about_tea_does_not_speak_of_ice_hockey() -> None:
    hockey = next(topic for topic in topics.all_topics()[0] if topic.phrase == "ice hockey")
    assert not compose.speaks_of(
        "Two cups, one teapot.\nSteam writes a short note, then leaves.\nThe tea cools slowly.", hockey
    )


@pytest.mark.parametrize(
    ("verb", "expected"),
    [("glide", "glides"), ("rush", "rushes"), ("fly", "flies"), ("let go", "lets go"), ("sway", "sways")],
)
def test_third_person_of_a_verb(verb: str, expected: str) -> None:
    assert words.third_person(verb) == expected


def test_small_talk_ends_with_the_answer_to_every_other_question() -> None:
    assert "What is the capital of France?" in chat.load_small_talk()[-1].says
