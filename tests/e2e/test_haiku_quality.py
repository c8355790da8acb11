"""The embedded model does its main job: on topics that its training never saw, haiku of 5-7-5 that speak of them."""

import importlib
import random
import sys
from pathlib import Path
from types import ModuleType

import phlite

TOOLS = Path(__file__).resolve().parents[2] / "tools" / "haiku"


def load(name: str) -> ModuleType:
    """A module of tools/haiku, which is a folder of scripts and no installed package."""
    sys.path.insert(0, str(TOOLS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(TOOLS))


def test_held_out_topics_get_haiku_in_form_and_on_theme() -> None:
    compose, topics, chat = load("compose"), load("topics"), load("chat")
    rng = random.Random(7)
    _, held_out = topics.all_topics()
    requests = [(topic, chat.request(topic, rng)) for topic in rng.sample(held_out, 100)]
    llm = phlite.load("haiku")
    poems = llm.generate(
        [llm.chat_ids(prompt) for _, prompt in requests],
        phlite.SamplingParams(temperature=0.7, repeat_penalty=1.0, max_tokens=100, seed=7),
    )
    texts = [completion.text for completion in poems]
    in_form = sum(compose.is_575(text) for text in texts)
    on_theme = sum(compose.speaks_of(text, topic) for text, (topic, _) in zip(texts, requests, strict=True))
    assert in_form >= 90
    assert on_theme >= 80
