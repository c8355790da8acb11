"""Messages to one prompt: a model's chat template, run as the untrusted program it is.

What people wrote is guarded before the template sees it, so that only the template's own markers become control
tokens; Tokenizer.encode_prompt takes the guards out again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from phlite.errors import ModelFileError, RequestError, UnsupportedModelError
from phlite.tokenizer.base import Tokenizer
from phlite.tokenizer.guard import SpecialTextGuard
from phlite.tokenizer.turn_formats import TURN_FORMATS, find_turn_format, name_turn_format

if TYPE_CHECKING:
    from phlite.tokenizer.template_sandbox import TemplateProgram

__all__ = ["ROLES", "ChatTemplate", "build_chat_template"]

ROLES: Final = ("system", "user", "assistant", "tool")
# Behind the last message while it is rendered, to find the place where the model goes on; a noncharacter.
_CONTINUE_MARK = "\ufdd2"
_MAX_DEPTH = 64
_MAX_INT_BITS = 64


class ChatTemplate:
    """A conversation's form. Immutable, safe to share between threads."""

    def __init__(
        self, source: str | None, *, bos_token: str = "", eos_token: str = "", special_texts: Iterable[str] = ()
    ) -> None:
        """Compile a template.

        source:               Jinja, as Hugging Face's chat templates are written; None for a model without chat
        bos_token, eos_token: texts of the variables of those names
        special_texts:        what messages must not spell; the texts of Tokenizer.special_tokens
        raises:               ModelFileError for a template that does not compile
        """
        self.source = source
        self._bos_token = bos_token
        self._eos_token = eos_token
        self._guard = SpecialTextGuard(special_texts)
        self._turns = None if source is None else find_turn_format(source)
        self._program = None if source is None or self._turns else _compile(source)

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
        tools: Sequence[Mapping[str, object]] | None = None,
    ) -> str:
        """Return the prompt of a conversation, for Tokenizer.encode_prompt.

        messages:              mappings with role (one of ROLES) and content, a string or a list of text parts; other
                               entries are the template's business
        add_generation_prompt: end with the head of the assistant's turn
        continue_final:        the last message, the assistant's, is unfinished: end in the middle of it
        tools:                 JSON schemas of functions, for templates that know them; those that look for them in
                               the system message find them there
        raises:                RequestError for messages that are malformed or that the template does not accept,
                               ModelFileError for a template that fails or asks for too much work,
                               UnsupportedModelError for a model that was not trained for chat
        """
        if self.source is None:
            raise UnsupportedModelError(
                "this model was not trained for chat: its file has no chat template and none of the special tokens of "
                "Phi's chat forms; give it a text to continue (phlite run --raw, LLM.generate). Phi-2 answers "
                "'Instruct: ...', a new line and 'Output:'"
            )
        conversation = [_plain_message(message, i, self._guard.guard) for i, message in enumerate(messages)]
        plain_tools = _plain(tools, "tools", self._guard.guard)
        if tools is not None or any("tools" in message for message in conversation):
            conversation, plain_tools = _place_tools(self.source, conversation, plain_tools)
        if not conversation:
            raise RequestError("messages: got none, expected at least one")
        if continue_final:
            add_generation_prompt = False
            _mark_end(conversation[-1])
        text = self._render(conversation, plain_tools, add_generation_prompt=add_generation_prompt)
        return _cut_at_mark(text) if continue_final else text

    def renders_role(self, role: str) -> bool:
        """Return whether the template prints the messages of a role; some drop the system's without a word."""
        probe = "phlite probes this role"
        messages = [{"role": "user", "content": "."}, {"role": "assistant", "content": "."}]
        messages.insert(0 if role == "system" else 2, {"role": role, "content": probe})
        try:
            return probe in self.render(messages)
        except (RequestError, ModelFileError, UnsupportedModelError):
            return False

    def _render(self, conversation: list[dict[str, object]], tools: object, *, add_generation_prompt: bool) -> str:
        if self._turns is not None and tools is None and all(m.keys() == {"role", "content"} for m in conversation):
            return self._turns.render(
                [(str(m["role"]), str(m["content"])) for m in conversation],
                add_generation_prompt=add_generation_prompt,
                bos_token=self._bos_token,
                eos_token=self._eos_token,
            )
        program = self._program or _compile(self.source or "")
        variables = {
            "messages": conversation,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            "bos_token": self._bos_token,
            "eos_token": self._eos_token,
        }
        return _run(program, variables)


def build_chat_template(tokenizer: Tokenizer, *, tools: bool = False, model_name: str = "") -> ChatTemplate:
    """Return a vocabulary's chat template: its file's own, else the form that its special tokens belong to.

    A model that has neither gets a template whose render() raises UnsupportedModelError.

    tools:      prefer the file's template for tool use where it has one
    model_name: what the file calls the model, which tells forms apart that share their special tokens
    raises:     ModelFileError for a template that does not compile
    """
    templates = tokenizer.chat_templates
    source = templates.get("tool_use") if tools else None
    source = source or templates.get("default")
    if source is None and (name := name_turn_format(tokenizer.special_tokens, model_name)) is not None:
        source = TURN_FORMATS[name].source
    return ChatTemplate(
        source,
        bos_token="" if tokenizer.bos_id is None else tokenizer.token_text(tokenizer.bos_id),
        eos_token="" if tokenizer.eos_id is None else tokenizer.token_text(tokenizer.eos_id),
        special_texts=tokenizer.special_tokens,
    )


def _compile(source: str) -> TemplateProgram:
    # The engine is imported only for templates that need it: its import is a good part of a program's start.
    from phlite.tokenizer.template_sandbox import TemplateProgram

    try:
        return TemplateProgram(source)
    except Exception as error:
        raise ModelFileError(f"chat template: cannot be compiled: {_explain(error)}") from error


def _run(program: TemplateProgram, variables: Mapping[str, object]) -> str:
    from phlite.tokenizer.template_sandbox import TemplateRefusalError

    try:
        return program.render(variables)
    except TemplateRefusalError as error:
        raise RequestError(f"messages: this model's chat template does not accept them: {error}") from None
    except Exception as error:
        # A template is a program from a file: whatever it raises, the file is at fault.
        raise ModelFileError(f"chat template: fails on this conversation: {_explain(error)}") from error


def _explain(error: Exception) -> str:
    line = getattr(error, "lineno", None)
    text = f"{type(error).__name__}: {str(error)[:300]}"
    return f"line {line}: {text}" if isinstance(line, int) else text


def _place_tools(
    source: str, conversation: list[dict[str, object]], tools: object
) -> tuple[list[dict[str, object]], object]:
    """Return the conversation and the variable `tools` as the template wants them."""
    from phlite.tokenizer.template_tools import place_of_tools, put_into_system_message

    place = place_of_tools(source)
    if tools is not None and place is None:
        raise RequestError("tools: this model's chat template has no place for them; leave tools out")
    return (put_into_system_message(conversation, tools), None) if place == "message" else (conversation, tools)


def _plain_message(message: Mapping[str, object], idx: int, guard: Callable[[str], str]) -> dict[str, object]:
    """Return a checked copy of a message: plain data, content as one string, text guarded."""
    where = f"messages[{idx}]"
    if not isinstance(message, Mapping):
        raise RequestError(f"{where}: got {type(message).__name__}, expected a mapping with role and content")
    role = message.get("role")
    if role not in ROLES:
        raise RequestError(f"{where}: role: got {str(role)[:40]!r}, expected one of {', '.join(ROLES)}")
    content = _text_of(message, where)
    others = {key: value for key, value in message.items() if key not in ("role", "content")}
    plain = _plain(others, where, guard)
    return {"role": role, "content": guard(content), **(plain if isinstance(plain, dict) else {})}


def _text_of(message: Mapping[str, object], where: str) -> str:
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        raise RequestError(f"{where}: content: got {type(content).__name__}, expected a string or a list of parts")
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise RequestError(f"{where}: content: got a part of type {str(kind)[:40]!r}, expected 'text'")
        texts.append(text)
    return "".join(texts)


def _plain(value: object, where: str, guard: Callable[[str], str], depth: int = 0) -> object:
    """Return a copy of JSON-like data with guarded strings, so that a template can reach nothing else."""
    if depth > _MAX_DEPTH:
        raise RequestError(f"{where}: nested more than {_MAX_DEPTH} deep")
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, str):
        return guard(value)
    if isinstance(value, int) and value.bit_length() <= _MAX_INT_BITS:
        return int(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item, where, guard, depth + 1) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {guard(key): _plain(item, where, guard, depth + 1) for key, item in value.items()}
    raise RequestError(f"{where}: got a value of type {type(value).__name__}, expected what JSON can hold")


def _mark_end(message: dict[str, object]) -> None:
    if message["role"] != "assistant":
        raise RequestError(f"continue_final: the last message is the {message['role']}'s, expected the assistant's")
    # The space shows afterwards whether the template trims its messages.
    message["content"] = f"{message['content']}{_CONTINUE_MARK} "


def _cut_at_mark(text: str) -> str:
    """Return text up to the mark, as transformers' continue_final_message does."""
    end = text.rfind(_CONTINUE_MARK)
    if end < 0:
        raise RequestError("continue_final: this model's chat template does not print the assistant's last message")
    keeps_space = text.startswith(_CONTINUE_MARK + " ", end)
    return text[:end] if keeps_space else text[:end].rstrip()
