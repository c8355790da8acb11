"""From a constraint and a vocabulary to a matcher; compiled grammars are kept for the next request."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

from phlite.constrained.constraint import Constraint
from phlite.constrained.matcher import GrammarMatcher
from phlite.constrained.schema import places_of, with_exact_formats
from phlite.constrained.vocabulary import GrammarVocabulary, import_llguidance
from phlite.errors import RequestError

__all__ = ["ConstraintCompiler"]

MOST_GRAMMARS = 32
STACK_BYTES = 256 << 20

# JSON as json.dumps writes it: one line, so that a model cannot fill its answer with white space, and the
# punctuation between values is forced. Without \u escapes, since with them the library (1.9.1) lets a key that a schema
# names come a second time in another spelling, with a value of another type.
_JSON_LAYOUT = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "json_allowed_escapes": 'nrbtf\\"',
}

# The library's messages name no place. Signs in them, and the keyword that each is about.
_KEYWORD_OF_MESSAGE = (
    *(("oneOf", "oneOf"), ("patternProperty", "patternProperties"), ("allOf", "allOf"), ("multipleOf", "multipleOf")),
    *(("minProperties", "minProperties"), ("maxProperties", "maxProperties"), ("regex", "pattern")),
)


class ConstraintCompiler:
    """Compiles constraints for one model. Safe to share between threads.

    The vocabulary's trie is built at the first use, and the MOST_GRAMMARS grammars used last are kept.
    """

    def __init__(self, build_token_bytes: Callable[[], Sequence[bytes]], encode: Callable[[str], list[int]]) -> None:
        """Take over what GrammarVocabulary takes, the token bytes as a function that is called when needed."""
        self.build_token_bytes = build_token_bytes
        self.encode = encode
        self.lock = threading.Lock()
        self.vocabulary: GrammarVocabulary | None = None
        self.grammars: OrderedDict[tuple[Constraint, bool], GrammarMatcher] = OrderedDict()

    def build_matcher(self, constraint: Constraint, *, leading_space: bool = False) -> GrammarMatcher:
        """Return a matcher at the beginning of the text.

        leading_space: one space precedes the text, which the decoder drops (the rule of SentencePiece vocabularies)
        raises:        BackendUnavailableError without the library, RequestError for what cannot be compiled
        """
        key = (constraint, leading_space)
        with self.lock:
            if key not in self.grammars:
                if self.vocabulary is None:
                    import_llguidance()
                    self.vocabulary = GrammarVocabulary(self.build_token_bytes(), self.encode)
                vocabulary = self.vocabulary
                self.grammars[key] = with_deep_stack(
                    lambda: compile_constraint(constraint, vocabulary, leading_space=leading_space)
                )
                if len(self.grammars) > MOST_GRAMMARS:
                    self.grammars.popitem(last=False)
            self.grammars.move_to_end(key)
            return self.grammars[key].clone()


def with_deep_stack(work: Callable[[], GrammarMatcher]) -> GrammarMatcher:
    """Return what work returns, or raise what it raises, run by a thread with a stack of STACK_BYTES.

    The library descends into schemas by recursion and would end the process where the stack is full: about 5 KB a
    level, and there are no more levels than parts of the largest schema.
    """
    results: list[GrammarMatcher | BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            results.append(error)

    size_before = threading.stack_size(STACK_BYTES)
    try:
        thread = threading.Thread(target=run, name="phlite-grammar", daemon=True)
        thread.start()
    finally:
        threading.stack_size(size_before)
    thread.join()
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


def compile_constraint(constraint: Constraint, vocabulary: GrammarVocabulary, *, leading_space: bool) -> GrammarMatcher:
    """Return the matcher of a constraint at its beginning; arguments and errors as `build_matcher`."""
    library = import_llguidance()
    grammars: list[dict[str, object]] = [body_grammar(constraint)]
    if leading_space:
        grammars = [{"lark_grammar": 'start: " " @text'}, {"name": "text", **grammars[0]}]
    limits = library.LLParserLimits(verbose_errors=False)
    matcher = library.LLMatcher(vocabulary.trie, json.dumps({"grammars": grammars}), log_level=0, limits=limits)
    if matcher.is_error():
        raise RequestError(f"{constraint.kind}: {explained(matcher.get_error(), constraint)}")
    built = GrammarMatcher(matcher, vocabulary)
    try:
        can_begin = built.is_complete or bool(built.mask().any())
    except RequestError as error:
        raise RequestError(f"{constraint.kind}: it is too complex, or no text can satisfy it: {error}") from None
    if not can_begin:
        raise RequestError(f"{constraint.kind}: no text of this vocabulary can satisfy it")
    return built


def body_grammar(constraint: Constraint) -> dict[str, object]:
    """Return the constraint as one grammar in the library's own notation."""
    if constraint.kind == "json_schema":
        schema = with_exact_formats(json.loads(constraint.source))
        return {"json_schema": {**schema, "x-guidance": _JSON_LAYOUT}}
    if constraint.kind == "choice":
        return {"lark_grammar": "start: " + " | ".join(map(json.dumps, json.loads(constraint.source)))}
    if constraint.kind == "regex":
        compiled = import_llguidance().LLMatcher.grammar_from_regex(constraint.source)
        return {"lark_grammar": json.loads(compiled)["grammars"][0]["lark_grammar"]}
    return {"lark_grammar": lark_of(constraint.source)}


def lark_of(text: str) -> str:
    """Return a grammar in Lark's syntax; GBNF is rewritten."""
    import_llguidance()
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return any_to_lark(text)
    except Exception as error:  # the library raises Exception itself
        raise RequestError(f"grammar: the GBNF text is not understood: {error}") from None


def explained(message: str, constraint: Constraint) -> str:
    """Return the library's message on one line, with the places of the keyword that it is about."""
    text = " ".join(message.split())[:600]
    if constraint.kind != "json_schema":
        return text
    keyword = next((word for sign, word in _KEYWORD_OF_MESSAGE if sign in text), None)
    places = [] if keyword is None else places_of(json.loads(constraint.source), keyword)
    if not places:
        return text
    text = (
        "its schemas must exclude each other plainly (by type, const or enum); use anyOf"
        if keyword == "oneOf"
        else text
    )
    return f"{', '.join(places[:5])}: the keyword {keyword!r} cannot be kept exactly here: {text}"
