"""Where a chat template wants the descriptions of functions: in a variable of its own, or inside the system message.

source: tokenizer_config.json of microsoft/Phi-4-mini-instruct, whose template prints message['tools'], a JSON text
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from phlite.errors import RequestError

__all__ = ["place_of_tools", "put_into_system_message"]

Place = Literal["variable", "message"]

_BRACES = re.compile(r"\{[{%]|[%}]\}")
_STRING = re.compile(r"'[^']*'|\"[^\"]*\"")
_VARIABLE = re.compile(r"(?<![.\w])tools\b")
_ENTRY = re.compile(r"""\w+\s*(?:\[\s*(['"])tools\1\s*\]|\.\s*tools\b)""")


def place_of_tools(source: str) -> Place | None:
    """Return where a Jinja template reads tools: the variable `tools`, an entry of messages, or None: nowhere."""
    blocks = list(_blocks(source))
    if any(_VARIABLE.search(_STRING.sub("''", block)) for block in blocks):
        return "variable"
    return "message" if any(_ENTRY.search(block) for block in blocks) else None


def put_into_system_message(conversation: Sequence[Mapping[str, object]], tools: object) -> list[dict[str, object]]:
    """Return the conversation with tools as the JSON text of its first system message's entry `tools`.

    A conversation without a system message gets an empty one. Functions wrapped as {"type": "function", "function":
    {...}} are unwrapped, since the model was trained on their descriptions alone.

    tools:  JSON-like list of descriptions, or None: only lists that messages hold already become text
    raises: RequestError where the message has tools of its own and more are given
    """
    messages = [dict(message) for message in conversation]
    for message in messages:
        if isinstance(message.get("tools"), (list, dict)):
            message["tools"] = _json(message["tools"])
    if tools is None:
        return messages
    system = next((message for message in messages if message["role"] == "system"), None)
    if system is None:
        system = {"role": "system", "content": ""}
        messages.insert(0, system)
    if system.get("tools") is not None:
        raise RequestError("tools: the system message has tools already; give them in one place")
    system["tools"] = _json(tools)
    return messages


def _blocks(source: str) -> Iterator[str]:
    start: int | None = None
    for braces in _BRACES.finditer(source):
        opens = braces.group()[0] == "{"
        if opens and start is None:
            start = braces.end()
        elif not opens and start is not None:
            yield source[start : braces.start()]
            start = None


def _json(tools: object) -> str:
    plain = [_unwrapped(tool) for tool in tools] if isinstance(tools, list) else tools
    return json.dumps(plain, ensure_ascii=False)


def _unwrapped(tool: object) -> object:
    if isinstance(tool, dict) and tool.get("type") == "function" and isinstance(tool.get("function"), dict):
        return tool["function"]
    return tool
