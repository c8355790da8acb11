"""The family's own chat formats: published templates by name, and the same turns as plain data.

A vocabulary without a template gets one of these by its special tokens. And a file whose template is one of them, as
most are, needs no template engine to render a conversation, which saves its import at the start of a program.

source: tokenizer_config.json of the microsoft/Phi-* repositories
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["TURN_FORMATS", "TurnFormat", "find_turn_format", "name_turn_format"]


@dataclass(frozen=True)
class TurnFormat:
    """How each role's message is wrapped, and what ends the prompt.

    source:      the Jinja template that says the same
    turns:       role to the text before and after its content; other roles are left out
    generation:  head of the assistant's turn, put last when an answer is wanted
    bos_first, eos_last: begin-of-text's text comes first; end-of-text's comes last when no answer is wanted
    optional:    roles whose message is left out when its content is empty
    opening:     a system turn that is always there and comes first: its text, and what ends it; the contents of
                 system messages stand between, each after a space
    """

    source: str
    turns: Mapping[str, tuple[str, str]]
    generation: str
    bos_first: bool = False
    eos_last: bool = False
    optional: frozenset[str] = field(default=frozenset())
    opening: tuple[str, str] | None = None

    def render(
        self, messages: Sequence[tuple[str, str]], *, add_generation_prompt: bool, bos_token: str, eos_token: str
    ) -> str:
        """Return the prompt for pairs of role and content."""
        parts = [bos_token] if self.bos_first else []
        if self.opening is not None:
            head, tail = self.opening
            parts += (head, *(f" {content}" for role, content in messages if role == "system"), tail)
        for role, content in messages:
            if role in self.turns and (content or role not in self.optional):
                head, tail = self.turns[role]
                parts += (head, content, tail)
        if add_generation_prompt:
            parts.append(self.generation)
        elif self.eos_last:
            parts.append(eos_token)
        return "".join(parts)


def name_turn_format(special_tokens: Container[str], model_name: str = "") -> str | None:
    """Return the key in TURN_FORMATS that a vocabulary with these special tokens was trained on, or None.

    model_name: general.name of the file; only Phi-4-mini's reasoning variant is told from its sibling by it
    """
    if "<|im_start|>" in special_tokens and "<|im_sep|>" in special_tokens:
        return "phi4"
    if "<|assistant|>" in special_tokens and "<|end|>" in special_tokens:
        if "<|tool_call|>" in special_tokens:
            return "phi4-mini-reasoning" if "reasoning" in model_name.lower() else "phi4-mini"
        return "phi3-small" if "<|fim_prefix|>" in special_tokens else "phi3"
    return None


def find_turn_format(source: str) -> TurnFormat | None:
    """Return the format whose published template is exactly source, or None."""
    return next((turns for turns in TURN_FORMATS.values() if turns.source == source), None)


def _wrap_roles(head: str, tail: str) -> dict[str, tuple[str, str]]:
    return {role: (head.format(role), tail) for role in ("system", "user", "assistant")}


def _phi3_source(system_condition: str) -> str:
    return (
        "{% for message in messages %}{% if message['role'] == 'system'" + system_condition + " %}"
        "{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}"
        "{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}"
        "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
    )


_MEDIUM_SOURCE = (
    "{% for message in messages %}{% if (message['role'] == 'user') %}"
    "{{'<|user|>' + '\n' + message['content'] + '<|end|>' + '\n' + '<|assistant|>' + '\n'}}"
    "{% elif (message['role'] == 'assistant') %}{{message['content'] + '<|end|>' + '\n'}}{% endif %}{% endfor %}"
)
_SMALL_SOURCE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{'<|' + message['role'] + '|>' + '\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
_PHI4_SOURCE = (
    "{% for message in messages %}{% if (message['role'] == 'system') %}"
    "{{'<|im_start|>system<|im_sep|>' + message['content'] + '<|im_end|>'}}"
    "{% elif (message['role'] == 'user') %}{{'<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>'}}"
    "{% elif (message['role'] == 'assistant') %}"
    "{{'<|im_start|>assistant<|im_sep|>' + message['content'] + '<|im_end|>'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
_PHI4_FIRST_SOURCE = (
    "{% for message in messages %}{% if (message['role'] == 'system') %}"
    "{{'<|im_start|>system<|im_sep|>' + message['content'] + '<|im_end|>'}}"
    "{% elif (message['role'] == 'user') %}"
    "{{'<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|><|im_start|>assistant<|im_sep|>'}}"
    "{% elif (message['role'] == 'assistant') %}{{message['content'] + '<|im_end|>'}}{% endif %}{% endfor %}"
)
_PHI4_MINI_SOURCE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' + '<|end|>' }}"
    "{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)
_MATH_EXPERT = "<|system|>Your name is Phi, an AI math expert developed by Microsoft."
_PHI4_MINI_REASONING_SOURCE = (
    "{{ '" + _MATH_EXPERT + "' }}"
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ ' ' + message['content'] }}"
    "{% if 'tools' in message and message['tools'] is not none %}"
    "{{ '<|tool|>' + message['tools'] + '<|/tool|>' }}{% endif %}{% endif %}{% endfor %}{{ '<|end|>' }}"
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)
_USER_OPENS_ANSWER = {"user": ("<|user|>\n", "<|end|>\n<|assistant|>\n"), "assistant": ("", "<|end|>\n")}

TURN_FORMATS: Mapping[str, TurnFormat] = {
    "phi3": TurnFormat(
        source=_phi3_source(""),
        turns=_wrap_roles("<|{}|>\n", "<|end|>\n"),
        generation="<|assistant|>\n",
        eos_last=True,
    ),
    "phi3.5": TurnFormat(
        source=_phi3_source(" and message['content']"),
        turns=_wrap_roles("<|{}|>\n", "<|end|>\n"),
        generation="<|assistant|>\n",
        eos_last=True,
        optional=frozenset(["system"]),
    ),
    # The first release, still in the widely used first GGUF file: no system turn, and a user's turn opens the answer.
    "phi3-april-2024": TurnFormat(
        source="{{ bos_token }}" + _MEDIUM_SOURCE,
        turns=_USER_OPENS_ANSWER,
        generation="",
        bos_first=True,
    ),
    "phi3-medium": TurnFormat(source=_MEDIUM_SOURCE, turns=_USER_OPENS_ANSWER, generation=""),
    "phi3-small": TurnFormat(
        source=_SMALL_SOURCE,
        turns={**_wrap_roles("<|{}|>\n", "<|end|>\n"), "tool": ("<|tool|>\n", "<|end|>\n")},
        generation="<|assistant|>\n",
        bos_first=True,
        eos_last=True,
    ),
    "phi4": TurnFormat(
        source=_PHI4_SOURCE,
        turns=_wrap_roles("<|im_start|>{}<|im_sep|>", "<|im_end|>"),
        generation="<|im_start|>assistant<|im_sep|>",
    ),
    # Still in Microsoft's own GGUF file.
    "phi4-first-release": TurnFormat(
        source=_PHI4_FIRST_SOURCE,
        turns={
            "system": ("<|im_start|>system<|im_sep|>", "<|im_end|>"),
            "user": ("<|im_start|>user<|im_sep|>", "<|im_end|><|im_start|>assistant<|im_sep|>"),
            "assistant": ("", "<|im_end|>"),
        },
        generation="",
    ),
    "phi4-mini": TurnFormat(
        source=_PHI4_MINI_SOURCE,
        turns={**_wrap_roles("<|{}|>", "<|end|>"), "tool": ("<|tool|>", "<|end|>")},
        generation="<|assistant|>",
        eos_last=True,
    ),
    "phi4-mini-reasoning": TurnFormat(
        source=_PHI4_MINI_REASONING_SOURCE,
        turns={role: (f"<|{role}|>", "<|end|>") for role in ("user", "assistant", "tool")},
        generation="<|assistant|>",
        eos_last=True,
        opening=(_MATH_EXPERT, "<|end|>"),
    ),
}
