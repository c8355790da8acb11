"""Chat templates of the published tokenizers against transformers, text and ids, and their guard."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from phlite.tokenizer import ChatTemplate, Tokenizer, build_chat_template, load_tokenizer
from phlite.tokenizer.guard import unguard

chat_template_utils = pytest.importorskip(
    "transformers.utils.chat_template_utils", reason="transformers is not installed"
)

FOLDERS = ["phi-3-mini", "phi-3-mini-april-2024", "phi-3-vision", "phi-4-base", "phi-4-mini"]
WITH_VOCABULARY = FOLDERS[:3]
CONTENTS = st.sampled_from(
    ["", "Hello", " Hi there ", "two\n\nlines\n", "\n", "é🦙 {{ x }}", "{% if %}", "'\"\\n", "> <"]
)
TURNS = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), CONTENTS), min_size=1, max_size=6)


def data(name: str) -> Path:
    path = Path(os.environ.get("PHLITE_TEST_DATA", "PHLITE_TEST_DATA")) / "tokenizers" / name
    if not path.exists():
        pytest.skip(f"{path} is missing; set PHLITE_TEST_DATA to the folder of test data")
    return path


@lru_cache
def config(name: str) -> dict[str, Any]:
    return json.loads((data(name) / "tokenizer_config.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


@lru_cache
def template(name: str, suffix: str = "") -> ChatTemplate:
    values = config(name)
    texts = [token["content"] for token in values["added_tokens_decoder"].values()]
    return ChatTemplate(
        values["chat_template"] + suffix,
        bos_token=values["bos_token"],
        eos_token=values["eos_token"],
        special_texts=texts,
    )


@lru_cache
def ours(name: str) -> Tokenizer:
    return load_tokenizer(data(name))


@lru_cache
def library(name: str) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(data(name) / "tokenizer.json"))


def by_transformers(name: str, messages: list[dict[str, Any]], **options: Any) -> str:
    rendered, _ = chat_template_utils.render_jinja_template(
        conversations=[messages],
        chat_template=config(name)["chat_template"],
        bos_token=config(name)["bos_token"],
        eos_token=config(name)["eos_token"],
        **options,
    )
    return rendered[0]  # type: ignore[no-any-return]


def messages_of(turns: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


@pytest.mark.parametrize("name", FOLDERS)
# A comment behind the published template makes it one that is not recognised, so that Jinja runs it.
@pytest.mark.parametrize("suffix", ["", "{# #}"], ids=["from data", "by Jinja"])
@settings(max_examples=40, deadline=None)
@given(turns=TURNS, add_generation_prompt=st.booleans())
def test_rendering_equals_transformers(
    name: str, suffix: str, turns: list[tuple[str, str]], add_generation_prompt: bool
) -> None:
    messages = messages_of(turns)
    expected = by_transformers(name, messages, add_generation_prompt=add_generation_prompt)
    rendered = template(name, suffix).render(messages, add_generation_prompt=add_generation_prompt)
    assert unguard(rendered) == expected


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("content", ["Once", "Once upon a time, ", "two\nlines\n"])
def test_going_on_with_an_answer_equals_transformers(name: str, content: str) -> None:
    messages = messages_of([("user", "Tell me."), ("assistant", content)])
    expected = by_transformers(name, messages, continue_final_message=True)
    assert template(name).render(messages, continue_final=True) == expected


def test_phi4_minis_tools_equal_transformers() -> None:
    messages = [{"role": "system", "content": "S", "tools": '[{"name": "f"}]'}, {"role": "user", "content": "U"}]
    expected = by_transformers("phi-4-mini", messages, add_generation_prompt=True)
    assert template("phi-4-mini").render(messages) == expected


@pytest.mark.parametrize("name", WITH_VOCABULARY)
@settings(max_examples=40, deadline=None)
@given(turns=TURNS)
def test_ids_of_a_conversation_equal_the_librarys(name: str, turns: list[tuple[str, str]]) -> None:
    messages = messages_of(turns)
    tokenizer = ours(name)
    expected = library(name).encode(by_transformers(name, messages, add_generation_prompt=True)).ids
    assert tokenizer.encode_prompt(build_chat_template(tokenizer).render(messages)) == expected


@pytest.mark.parametrize("name", WITH_VOCABULARY)
@settings(max_examples=40, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(
            [
                "<|end|>",
                "<|user|>",
                "<|system|>",
                "<|endoftext|>",
                "</s>",
                "<s>",
                "<|en",
                "d|>",
                ">",
                "<",
                "\n",
                " ",
                "Hi",
            ]
        ),
        max_size=8,
    )
)
def test_a_message_cannot_add_a_control_token(name: str, parts: list[str]) -> None:
    tokenizer = ours(name)
    chat = build_chat_template(tokenizer)
    hostile = tokenizer.encode_prompt(chat.render([{"role": "user", "content": "".join(parts)}]))
    harmless = tokenizer.encode_prompt(chat.render([{"role": "user", "content": "Hi"}]))
    control = frozenset(tokenizer.special_tokens.values())
    assert [i for i in hostile if i in control] == [i for i in harmless if i in control]


@pytest.mark.parametrize("name", WITH_VOCABULARY)
def test_a_message_that_spells_a_marker_comes_back_as_text(name: str) -> None:
    tokenizer = ours(name)
    chat = build_chat_template(tokenizer)
    ids = tokenizer.encode_prompt(chat.render([{"role": "user", "content": "Say <|end|> and </s>!"}]))
    assert "Say <|end|> and </s>!" in tokenizer.decode(ids)
