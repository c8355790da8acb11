"""Files whose container is sound and whose content is not: no value of metadata, vocabulary or weights gets through.

Each is loaded as `phlite run` would load it and asked for a few tokens. It ends in a ModelFileError or an
UnsupportedModelError, or, where the damage makes another sound model, in an answer of valid token ids.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hostile.make_corpus import TEMPLATE_BOMBS
from hostile.sound_model import HEAD_DIM, HIDDEN, TOKENS, Keys, Tensors, sound_keys, sound_tensors, write_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phlite.errors import ContextLengthError, ModelFileError, UnsupportedModelError
from phlite.gguf import ValueType
from phlite.llm import LLM

U8, U16, U32, I32, U64, I64 = (
    ValueType.UINT8,
    ValueType.UINT16,
    ValueType.UINT32,
    ValueType.INT32,
    ValueType.UINT64,
    ValueType.INT64,
)
F32, F64 = ValueType.FLOAT32, ValueType.FLOAT64
NAN, INF = float("nan"), float("inf")
REFUSALS = (ModelFileError, UnsupportedModelError)
MAX_SECONDS = 10.0

INTEGER_KEYS = [key for key, (value, _) in sound_keys().items() if key.startswith("phi3.") and type(value) is int]
SIZE_KEYS = [
    "phi3.embedding_length",
    "phi3.feed_forward_length",
    "phi3.block_count",
    "phi3.attention.head_count",
    "phi3.attention.head_count_kv",
    "phi3.rope.dimension_count",
]


def run(folder: Path, keys: Keys, tensors: Tensors) -> tuple[int, ...]:
    """Write the model, load it and return the ids of a short chat."""
    path = write_model(folder / "model.gguf", keys, tensors)
    start = time.perf_counter()
    try:
        llm = LLM.load(str(path), threads=1, offline=True)
        ids = llm.chat("ab é", max_tokens=3, seed=1).token_ids
    finally:
        assert time.perf_counter() - start < MAX_SECONDS
    assert all(0 <= token_id < len(tensors["token_embd.weight"]) for token_id in ids)
    return ids


def assert_refused(folder: Path, keys: Keys, tensors: Tensors) -> None:
    with pytest.raises(REFUSALS) as caught:
        run(folder, keys, tensors)
    assert len(str(caught.value)) < 2000


def test_the_undamaged_model_answers(tmp_path: Path) -> None:
    assert len(run(tmp_path, sound_keys(), sound_tensors())) > 0


IMPOSSIBLE = [
    (-1, I32),
    (-(2**63), I64),
    (64.0, F32),
    (NAN, F32),
    ("64", None),
    (True, None),
    ([64], U32),
    (["64"], None),
]
TOO_LARGE = [(2**32 - 1, U32), (2**64 - 1, U64)]  # but a window longer than any text is only no window


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, value) for key in INTEGER_KEYS for value in IMPOSSIBLE),
        *((key, value) for key in INTEGER_KEYS for value in TOO_LARGE if key != "phi3.attention.sliding_window"),
    ],
    ids=str,
)
def test_impossible_integers_are_refused(tmp_path: Path, key: str, value: tuple[object, ValueType | None]) -> None:
    assert_refused(tmp_path, {**sound_keys(), key: value}, sound_tensors())


@pytest.mark.parametrize("key", [key for key in INTEGER_KEYS if key != "phi3.attention.sliding_window"])
def test_zero_is_refused_where_it_means_nothing(tmp_path: Path, key: str) -> None:
    assert_refused(tmp_path, {**sound_keys(), key: (0, U32)}, sound_tensors())


@pytest.mark.parametrize("key", SIZE_KEYS)
@pytest.mark.parametrize("factor", [2, 3, 2**20, 2**25])
def test_sizes_that_contradict_the_tensors_are_refused(tmp_path: Path, key: str, factor: int) -> None:
    value = sound_keys()[key][0]
    assert isinstance(value, int)
    if key == "phi3.attention.head_count_kv" and factor == 2:
        factor = 4
    assert_refused(tmp_path, {**sound_keys(), key: (value * factor, U32)}, sound_tensors())


@pytest.mark.parametrize("key", ["phi3.rope.freq_base", "phi3.attention.layer_norm_rms_epsilon"])
@pytest.mark.parametrize("value", [NAN, INF, -INF, -1.0, -1e-30])
def test_impossible_numbers_are_refused(tmp_path: Path, key: str, value: float) -> None:
    assert_refused(tmp_path, {**sound_keys(), key: (value, F32)}, sound_tensors())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("phi3.context_length", (2**31 - 1, U32)),
        ("phi3.context_length", (4097, U64)),
        ("phi3.rope.freq_base", (3e38, F32)),
        ("phi3.rope.freq_base", (1e308, F64)),
        ("phi3.rope.freq_base", (1.0, F32)),
        ("phi3.attention.layer_norm_rms_epsilon", (1e-38, F32)),
        ("phi3.attention.sliding_window", (1, U8)),
        ("phi3.attention.sliding_window", (2**32 - 1, U32)),
        ("phi3.attention.sliding_window", (2**64 - 1, U64)),
        ("phi3.rope.dimension_count", (2, U16)),
    ],
    ids=str,
)
def test_extreme_but_possible_values_give_an_answer_or_a_refusal(
    tmp_path: Path, key: str, value: tuple[object, ValueType | None]
) -> None:
    try:
        ids = run(tmp_path, {**sound_keys(), key: value}, sound_tensors())
    except REFUSALS:
        return
    assert ids


@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident memory from /proc")
def test_a_huge_context_does_not_take_memory_before_it_is_used(tmp_path: Path) -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    keys = {**sound_keys(), "phi3.context_length": (2**31 - 1, U32)}
    path = write_model(tmp_path / "model.gguf", keys, sound_tensors())
    before = resident_bytes()
    llm = LLM.load(str(path), threads=1, offline=True)
    llm.generate("a", max_tokens=2, seed=1)
    assert resident_bytes() - before < 200 << 20


@pytest.mark.parametrize("key", [*sound_keys()])
def test_a_model_without_one_of_its_keys_is_refused_or_has_a_known_default(tmp_path: Path, key: str) -> None:
    keys = sound_keys()
    del keys[key]
    try:
        ids = run(tmp_path, keys, sound_tensors())
    except REFUSALS as error:
        assert str(tmp_path) in str(error)  # noqa: PT017
    else:
        assert ids


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("phi3.expert_count", (2, U32)),
        ("phi3.rope.scaling.type", ("yarn", None)),
        ("phi3.rope.scaling.factor", (4.0, F32)),
        ("phi3.rope.scaling.attn_factor", (NAN, F32)),
        ("phi3.vocab_size", (1, U32)),
        ("phi3.attention.key_length", (0, U32)),
        ("phi3.attention.value_length", (64, U32)),
        ("phi3." + "x" * 1000, (0, U32)),
        ("general.architecture", ("gpt2", None)),
        ("general.architecture", ("", None)),
        ("general.architecture", ("llama", None)),
        ("general.architecture", ("phi3" * 300_000, None)),
        ("general.architecture", (3, U32)),
        ("general.architecture", (["phi3"], None)),
        ("general.type", ("adapter", None)),
    ],
    ids=lambda value: str(value)[:40],
)
def test_another_architecture_or_unknown_keys_of_it_are_refused(
    tmp_path: Path, key: str, value: tuple[object, ValueType | None]
) -> None:
    assert_refused(tmp_path, {**sound_keys(), key: value}, sound_tensors())


@pytest.mark.parametrize("name", [*sound_tensors()])
def test_a_missing_tensor_is_refused_or_tied(tmp_path: Path, name: str) -> None:
    tensors = sound_tensors()
    del tensors[name]
    if name == "output.weight":
        assert run(tmp_path, sound_keys(), tensors)
    else:
        assert_refused(tmp_path, sound_keys(), tensors)


RESHAPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "one row": lambda values: values[:1],
    "half the columns": lambda values: values[..., :32],
    "twice the rows": lambda values: np.concatenate([values, values]),
    "flat": lambda values: values.reshape(-1),
    "3-d": lambda values: values.reshape(1, -1, values.shape[-1]),
    "4-d": lambda values: values.reshape(1, 1, -1, values.shape[-1]),
    "turned": lambda values: values.reshape(values.shape[-1], -1),
}


@pytest.mark.parametrize(
    ("name", "how"),
    [
        (name, how)
        for name, values in sound_tensors().items()
        for how, reshape in RESHAPES.items()
        if reshape(values).shape != values.shape
    ],
)
def test_tensors_of_another_shape_are_refused(tmp_path: Path, name: str, how: str) -> None:
    tensors = sound_tensors()
    tensors[name] = np.ascontiguousarray(RESHAPES[how](tensors[name]))
    assert_refused(tmp_path, sound_keys(), tensors)


@pytest.mark.parametrize("name", ["blk.1.attn_norm.weight", "blk.0.attn_q.weight", "blk.0.attn_qkv.bias", "x"])
def test_tensors_without_a_place_are_refused(tmp_path: Path, name: str) -> None:
    assert_refused(tmp_path, sound_keys(), {**sound_tensors(), name: np.ones(HIDDEN, np.float32)})


@pytest.mark.parametrize("name", [*sound_tensors()])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("everywhere", [True, False], ids=["everywhere", "once"])
def test_weights_that_are_not_finite_are_refused_or_never_looked_at(
    tmp_path: Path, name: str, bad: float, everywhere: bool
) -> None:
    tensors = sound_tensors()
    tensors[name].reshape(-1)[slice(None) if everywhere else slice(5, 6)] = bad
    if name == "token_embd.weight" and not everywhere:
        assert run(tmp_path, sound_keys(), tensors)  # the row of a token that the prompt does not have
    else:
        assert_refused(tmp_path, sound_keys(), tensors)


@pytest.mark.parametrize("name", [*sound_tensors()])
def test_huge_weights_give_an_answer_or_a_refusal(tmp_path: Path, name: str) -> None:
    tensors = sound_tensors()
    tensors[name] *= np.float32(1e37)
    with contextlib.suppress(*REFUSALS):
        run(tmp_path, sound_keys(), tensors)


@pytest.mark.parametrize(
    ("short", "long"),
    [
        (None, [1.0] * 16),
        ([1.0] * 16, None),
        ([1.0] * 15, [1.0] * 16),
        ([1.0] * 16, [1.0] * 32),
        ([0.0] * 16, [1.0] * 16),
        ([1.0] * 16, [-1.0] * 16),
        ([NAN] * 16, [1.0] * 16),
        ([1.0] * 16, [INF] * 16),
        ([1.0], [1.0]),
    ],
    ids=str,
)
def test_broken_rope_factors_are_refused(tmp_path: Path, short: list[float] | None, long: list[float] | None) -> None:
    assert HEAD_DIM // 2 == 16
    tensors = sound_tensors()
    for name, factors in (("rope_factors_short.weight", short), ("rope_factors_long.weight", long)):
        if factors is not None:
            tensors[name] = np.array(factors, np.float32)
    assert_refused(tmp_path, {**sound_keys(), "phi3.context_length": (131072, U32)}, tensors)


N = len(TOKENS)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", ("wordpiece", None)),
        ("model", (1, U32)),
        ("tokens", ([], ValueType.STRING)),
        ("tokens", (TOKENS[:-1], None)),
        ("tokens", ([*TOKENS, "extra"], None)),
        ("tokens", ([TOKENS[3]] * N, None)),
        ("tokens", ([""] * N, None)),
        ("tokens", (list(range(N)), I32)),
        ("tokens", ("tokens", None)),
        ("scores", ([0.0] * (N - 1), F32)),
        ("scores", ([NAN] * N, F32)),
        ("scores", ([INF] * N, F32)),
        ("scores", (["0"] * N, None)),
        ("token_type", ([1] * (N + 1), I32)),
        ("token_type", ([99] * N, I32)),
        ("token_type", ([-1] * N, I32)),
        ("token_type", ([1.0] * N, F32)),
        ("bos_token_id", (N, U32)),
        ("bos_token_id", (-1, I32)),
        ("bos_token_id", ("1", None)),
        ("eos_token_id", (2**32 - 1, U32)),
        ("eos_token_id", (2**64 - 1, U64)),
        ("unknown_token_id", (N, U32)),
        ("add_bos_token", (1, U8)),
        ("add_eos_token", (True, None)),
        ("precompiled_charsmap", ([0], U8)),
    ],
    ids=lambda value: str(value)[:40],
)
def test_broken_vocabularies_are_refused(tmp_path: Path, key: str, value: tuple[object, ValueType | None]) -> None:
    assert_refused(tmp_path, {**sound_keys(), f"tokenizer.ggml.{key}": value}, sound_tensors())


def test_a_vocabulary_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    tensors = sound_tensors()
    for name in ("token_embd.weight", "output.weight"):
        tensors[name] = np.ascontiguousarray(tensors[name][:200])
    assert_refused(tmp_path, sound_keys(), tensors)


@pytest.mark.parametrize(
    "tokens",
    [
        [*TOKENS[:259], "a" * 100_000, *TOKENS[260:]],
        [*TOKENS[:259], "\x00", "\x1b[2J", "\u202e", *TOKENS[262:]],
        [*TOKENS[:259], "a", "aa", "aaaa", "aaaaaaaa", *TOKENS[263:]],
    ],
    ids=["long", "controls", "doubling"],
)
def test_odd_tokens_give_an_answer_or_a_refusal(tmp_path: Path, tokens: list[str]) -> None:
    with contextlib.suppress(*REFUSALS):
        run(tmp_path, {**sound_keys(), "tokenizer.ggml.tokens": (tokens, None)}, sound_tensors())


BYTE_ALPHABET = [chr(value if 33 <= value <= 126 else 256 + value) for value in range(256)]
BYTE_LEVEL_TOKENS = [*BYTE_ALPHABET, "ab", *TOKENS[-5:], *(f"unused{i}" for i in range(N - 262))]


@pytest.mark.parametrize(
    "merges",
    [
        (["a b"], None),
        ([], ValueType.STRING),
        (["a b"] * 10_000, None),
        (["ab"], None),
        (["a b c"], None),
        ([" "], None),
        ([""], None),
        (["a missing"], None),
        (["a " + "b" * 100_000], None),
        ([1, 2], I32),
        ("a b", None),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("pre", ["gpt-2", "gpt-4o", "", "no such", "x" * 100_000], ids=lambda pre: pre[:10])
def test_odd_byte_level_vocabularies_give_an_answer_or_a_refusal(
    tmp_path: Path, merges: tuple[object, ValueType | None], pre: str
) -> None:
    keys = {
        **sound_keys(),
        "tokenizer.ggml.model": ("gpt2", None),
        "tokenizer.ggml.pre": (pre, None),
        "tokenizer.ggml.tokens": (BYTE_LEVEL_TOKENS, None),
        "tokenizer.ggml.token_type": ([1] * 257 + [3] * 5 + [5] * (N - 262), I32),
        "tokenizer.ggml.eos_token_id": (257, U32),
        "tokenizer.ggml.merges": merges,
    }
    try:
        run(tmp_path, keys, sound_tensors())
    except REFUSALS as error:
        message = str(error)
        assert "tokenizer.ggml" in message
        assert len(message) < 2000


@pytest.mark.parametrize("name", [*TEMPLATE_BOMBS])
def test_hostile_chat_templates_are_refused_in_time(tmp_path: Path, name: str) -> None:
    assert_refused(tmp_path, {**sound_keys(), "tokenizer.chat_template": (TEMPLATE_BOMBS[name], None)}, sound_tensors())


@pytest.mark.parametrize("value", [(1, U32), (["{{ messages }}"], None), (True, None)], ids=str)
def test_chat_templates_of_another_type_are_refused(tmp_path: Path, value: tuple[object, ValueType | None]) -> None:
    assert_refused(tmp_path, {**sound_keys(), "tokenizer.chat_template": value}, sound_tensors())


values = st.one_of(
    st.tuples(st.integers(0, 2**32 - 1), st.just(U32)),
    st.tuples(st.integers(0, 512), st.just(U32)),
    st.tuples(st.integers(-(2**31), 2**31 - 1), st.just(I32)),
    st.tuples(st.integers(0, 2**64 - 1), st.just(U64)),
    st.tuples(st.floats(width=32), st.just(F32)),
    st.tuples(st.floats(), st.just(F64)),
    st.tuples(st.text(st.characters(codec="utf-8"), max_size=20), st.none()),
    st.tuples(st.booleans(), st.none()),
    st.tuples(st.lists(st.integers(0, 255), max_size=4), st.just(U8)),
    st.tuples(st.lists(st.text(st.characters(codec="utf-8"), max_size=4), max_size=4), st.just(ValueType.STRING)),
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.dictionaries(st.sampled_from(sorted(sound_keys())), values, min_size=1, max_size=3))
def test_random_metadata_is_refused_or_answers(tmp_path: Path, changes: Keys) -> None:
    with contextlib.suppress(*REFUSALS, ContextLengthError):  # a context of two tokens is sound
        run(tmp_path, {**sound_keys(), **changes}, sound_tensors())
