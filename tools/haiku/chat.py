"""Composes the conversations the model learns from: requests for haiku, small talk about itself, other questions."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import lru_cache

from compose import compose_haiku
from topics import Topic, all_topics
from words import HERE, capitalise_names, load_themes

Message = dict[str, str]

REQUESTS = (
    "Write a haiku about {}", "Write a haiku about {}", "Write a haiku about {}", "Please write a haiku about {}",
    "Write me a haiku about {}", "Can you write a haiku about {}?", "Could you write a haiku about {}?",
    "Compose a haiku about {}", "Haiku about {}", "A haiku about {}, please", "Give me a haiku about {}",
    "Tell me a haiku about {}", "I would like a haiku about {}", "I want a haiku about {}", "Make a haiku about {}",
    "Write a short poem about {}", "Write a poem about {}", "A poem about {}", "Create a haiku on {}",
    "Write a haiku on the theme of {}", "Show me a haiku about {}", "Let me hear a haiku about {}", "How about {}?",
    "Write a beautiful haiku about {}", "Write a haiku for me about {}", "Describe {} in a haiku", "{}",
    "Generate a haiku about {}", "Do you know a haiku about {}?", "Write three lines about {}", "My topic is {}",
)  # fmt: skip
FREE_REQUESTS = (
    "Write a haiku", "Write me a haiku", "A haiku, please", "Please write a haiku", "Can you write a haiku?",
    "Write a poem", "Surprise me", "Write something", "Write a haiku about anything", "Tell me a poem",
    "Give me a haiku", "Haiku",
)  # fmt: skip
MORE = (
    "Another one, please", "Another one", "One more", "Again", "Write another one", "One more, please", "Once more",
    "Next", "Nice, another one?", "Can you write another?",
)  # fmt: skip
FOLLOW_UPS = (
    "Now one about {}", "And one about {}", "Now about {}", "And {}?", "Now write one about {}", "What about {}?",
)  # fmt: skip
SYSTEM = (
    "You are a helpful assistant.", "You are a helpful AI assistant.", "You are a poet.", "Be brief.",
    "You write haiku.",
    "You are a helpful digital assistant. Please provide safe and accurate information to the user.",
)  # fmt: skip


@dataclass
class SmallTalk:
    """What a user may say, and what the model may answer."""

    says: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)


@lru_cache(maxsize=1)
def load_small_talk() -> tuple[SmallTalk, ...]:
    """The entries of small_talk.txt; the last one answers every question that is not about haiku or the model."""
    entries: list[SmallTalk] = []
    for block in (HERE / "small_talk.txt").read_text(encoding="utf-8").split("\n\n")[1:]:
        entry = SmallTalk()
        for line in block.splitlines():
            key, _, value = line.partition(":")
            getattr(entry, key).extend(phrase.strip() for phrase in value.split("|"))
        entries.append(entry)
    return tuple(entries)


def compose_conversation(rng: random.Random) -> list[Message]:
    """A conversation in Phi-3's roles that ends with the assistant; only training topics occur."""
    kind = rng.random()
    messages: list[Message] = []
    if rng.random() < 0.06:
        messages.append({"role": "system", "content": rng.choice(SYSTEM)})
    if kind < 0.80:
        messages += _haiku_turn(_draw_topic(rng), rng)
    elif kind < 0.86:
        topic = _draw_topic(rng)
        messages += _haiku_turn(topic, rng) + _reply_turn(topic, rng)
    elif kind < 0.95:
        messages += _small_talk_turn(rng)
    else:
        messages += _small_talk_turn(rng)
        messages += _haiku_turn(_draw_topic(rng), rng) if rng.random() < 0.5 else _small_talk_turn(rng)
    return messages


def request(topic: Topic, rng: random.Random) -> str:
    """A request for a haiku about the topic, in one of several phrasings, capitals and punctuation."""
    return _phrase(rng.choice(REQUESTS), topic, rng)


def _phrase(form: str, topic: Topic, rng: random.Random) -> str:
    phrase = capitalise_names(topic.phrase) if rng.random() < 0.85 else topic.phrase
    if rng.random() < 0.03:
        phrase = phrase.title()
    text = form.format(phrase)
    text = text[0].upper() + text[1:]
    if rng.random() < 0.10:
        text = text.lower()
    if text[-1] not in "?!" and rng.random() < 0.4:
        text += rng.choice((".", ".", ".", "!"))
    return text


def _draw_topic(rng: random.Random) -> Topic:
    """A training topic; the themes' own lists, short and likely to be asked, come up in a third of the draws."""
    training, _ = all_topics()
    n_listed = sum(len(theme.topics) for theme in load_themes())
    return training[rng.randrange(n_listed)] if rng.random() < 0.33 else rng.choice(training)


def _turn(says: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": says}, {"role": "assistant", "content": answer}]


def _haiku_turn(topic: Topic, rng: random.Random) -> list[Message]:
    says = request(topic, rng)
    if rng.random() < 0.03:
        says = rng.choice(FREE_REQUESTS) + rng.choice(("", ".", "!"))
    return _turn(says, compose_haiku(topic, rng))


def _reply_turn(topic: Topic, rng: random.Random) -> list[Message]:
    """A turn after a haiku: one about another topic, another one about the same, or thanks."""
    kind = rng.random()
    if kind < 0.35:
        other = _draw_topic(rng)
        return _turn(_phrase(rng.choice(FOLLOW_UPS), other, rng), compose_haiku(other, rng))
    if kind < 0.60:
        return _turn(rng.choice(MORE) + rng.choice(("", ".", "!")), compose_haiku(topic, rng))
    return _small_talk_turn(rng)


def _small_talk_turn(rng: random.Random) -> list[Message]:
    entries = load_small_talk()
    talk = rng.choice(entries) if rng.random() < 0.7 else entries[-1]
    says = rng.choice(talk.says)
    if rng.random() < 0.15:
        says = says.lower()
    if rng.random() < 0.2:
        says = says.rstrip("?")
    elif says[-1] not in "?!" and rng.random() < 0.3:
        says += rng.choice((".", "!"))
    return _turn(says, rng.choice(talk.answers))
