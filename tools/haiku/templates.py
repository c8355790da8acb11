"""Line templates of the haiku, by the number of their noun, and the closing lines that fit any theme.

Slots: {n} the noun, {a} and {b} two of its adjectives, {v} and {w} two of its verbs in base form, {vs} and {ws} those
in the third person, {p} a place, {t} a time.
"""

from __future__ import annotations

OPENINGS = {
    "one": (
        "a {a} {n} {vs}", "the {a} {n} {vs}", "one {a} {n} {vs}", "{a} {n} {p}", "the {n} {vs} {p}",
        "a {n} {vs} {p}", "{t}: the {n}", "{t}; the {a} {n}", "{t}; a {n} {vs}", "{t}, one {a} {n}",
        "so {a}, the {n}", "a {n}, {a} and {b}", "{a}, {b}, the {n}", "alone, the {n} {vs}", "a {n} {p}",
        "the {n} {vs}", "a {n} {vs}", "the {a} {n}", "a {a} {n}", "the {n}", "one {n}", "the {a} {n} {p}",
        "once more the {n} {vs}",
    ),
    "many": (
        "{a} {n} {p}", "{a} {n} {v}", "{t}: {n} {v}", "{n} {v} {p}", "so many {n}", "{t}, {a} {n}",
        "the {a} {n} {v}", "{a}, {b} {n}", "{t}; {a} {n} {v}", "{n}, {a} and {b}", "all the {a} {n}", "{n} {p}",
        "the {n} {v}", "{n} {v}", "the {a} {n}", "{a} {n}",
    ),
    "mass": (
        "{a} {n} {vs} {p}", "{t}; {n} {vs}", "{n} {vs} {p}", "{a} {n} {p}", "{n}, {a} and {b}", "{t}, {a} {n}",
        "the {a} {n} {vs}", "{n} {p}", "so {a}, the {n}", "{a}, {b} {n}", "the {a} {n}",
    ),
}  # fmt: skip
"""First lines."""

ACTIONS = {
    "one": (
        "the {n} {vs} {p}", "a {a} {n} {vs} {p}", "the {a} {n} {vs} {p}", "{p}, the {n} {vs}", "{p}, a {a} {n} {vs}",
        "{p}, the {a} {n} {vs}", "i watch the {a} {n} {v}", "i see a {n} {v} {p}", "we watch the {n} {v} {p}",
        "somewhere a {n} {vs} {p}", "again the {n} {vs} {p}", "the {n} {vs}, then {ws} {p}",
        "the {a} {n} {vs} and {ws}", "slowly the {n} {vs} {p}", "no one sees the {n} {v} {p}",
        "a {n} {vs} and {ws} {p}", "one more {n} {vs} {p}", "nobody knows why the {n} {vs}",
        "the {n}, {a} and {b}, {vs}", "the {n} {vs}, {ws}", "the {n} {vs} and {ws}", "a {a} {n} {vs}, then {ws}",
    ),
    "many": (
        "{a} {n} {v} {p}", "the {n} {v} {p}", "{p}, {a} {n} {v}", "{p}, the {n} {v}", "i watch the {n} {v} {p}",
        "the {a} {n} {v} and {w}", "all the {n} {v} {p}", "{n} {v}, then {w} {p}", "{n} {v} and {w} {p}",
        "slowly the {n} {v} {p}", "we see {a} {n} {v} {p}", "nobody counts the {n} {p}", "the {a} {n} {v}, then {w}",
    ),
    "mass": (
        "{a} {n} {vs} {p}", "{p}, {n} {vs}", "{p}, {a} {n} {vs}", "{p}, the {a} {n} {vs}", "{n} {vs}, then {ws} {p}",
        "i watch the {n} {v} {p}", "slowly the {n} {vs} {p}", "the {a} {n} {vs} {p}", "{n} {vs} and {ws} {p}",
        "all day the {n} {vs} {p}", "the {a} {n} {vs}, then {ws}",
    ),
}  # fmt: skip
"""Second lines that stand alone."""

JOINED_ACTIONS = {
    "one": (
        "and the {a} {n} {vs} {p}", "and the {n} {vs} {p}", "while a {n} {vs} {p}", "as the {a} {n} {vs} {p}",
        "while the {a} {n} {vs}", "where a {a} {n} {vs}", "and a {n} {vs} and {ws}", "as a {n} {vs} {p}",
    ),
    "many": (
        "and {a} {n} {v} {p}", "while {n} {v} {p}", "as {a} {n} {v} {p}", "where {n} {v} and {w}",
        "while the {n} {v} {p}", "and the {a} {n} {v}",
    ),
    "mass": (
        "and {a} {n} {vs} {p}", "while {n} {vs} {p}", "as the {a} {n} {vs} {p}", "where {a} {n} {vs}",
        "and {n} {vs} {p}",
    ),
}  # fmt: skip
"""Second lines that go on with the first one's sentence."""

CLOSINGS = {
    "one": (
        "and still the {n} {vs}", "then only the {n}", "the {n} {vs} again", "how {a} the {n}", "and one {a} {n}",
        "no more than a {n}", "and a {n} that {vs}", "the {n} {vs}, then {ws}", "somewhere, a {n} {vs}",
        "the {n} knows the way", "only the {a} {n}", "at last, the {n} {vs}", "a {n} says goodnight",
        "the {a} {n}, too",
    ),
    "many": (
        "only {a} {n}", "the {n} {v} again", "how {a} the {n}", "so many {n} {v}", "{n} that {v}, then {w}",
        "and still the {n} {v}", "the {n} know the way", "nothing but {n}", "at last, the {n} {v}",
    ),
    "mass": (
        "nothing but {n}", "only {n} {vs}", "and {a} {n} {vs}", "how {a} the {n}", "and still the {n} {vs}",
        "{a} {n}, and time", "at last, {n} {vs}", "and {n} {p}",
    ),
}  # fmt: skip
"""Third lines."""

COMMON_CLOSINGS = (
    "the whole world listens", "and then, only breath", "nothing more to say", "how still the world is",
    "time stops for a breath", "then silence returns", "i forget my name", "my heart slows its beat",
    "the day lets me go", "nobody hurries", "and i am still here", "the moment is gone", "my breath slows as well",
    "it will not come back", "this is all i need", "then nothing, and yet", "i stay a while more",
    "the sky says nothing", "as if in a dream", "the world holds its breath",
)  # fmt: skip
"""Third lines without a slot."""

JOINING_WORDS = ("and", "while", "as", "where")
"""Words that begin a line which goes on with the sentence before it."""
