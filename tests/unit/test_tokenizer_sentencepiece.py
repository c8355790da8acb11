"""Merging, byte fallback, special tokens and spaces of SentencePiece vocabularies, on one small enough to read."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phlite.errors import ModelFileError, RequestError
from phlite.tokenizer import Tokenizer, build_tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
# Best first, as training finds them: "he" before "el", so "hel" is "he" + "l".
PIECES = ["he", "ll", "hell", "hello", "▁hello", "▁he", "el", "or", "wor", "▁wor", "ld", "▁world", "▁▁", "▁▁▁", "s>"]
# With "<", "s>" and "s" merging could spell the control token "<s>".
LETTERS = ["▁", "h", "e", "l", "o", "w", "r", "d", "<", "s", ">"]
SPECIALS = ["<|endoftext|>", "<|user|>", "<|end|>", "<|assistant|>"]


def small_metadata(**changes: object) -> dict[str, object]:
    rows = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", USER_DEFINED)]
    rows += [(f"<0x{byte:02X}>", BYTE) for byte in range(256)]
    rows += [(piece, NORMAL) for piece in PIECES + LETTERS]
    rows += [(text, CONTROL) for text in SPECIALS] + [("[PAD1]", UNUSED)]
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(PIECES + LETTERS))] + [-1000.0] * (len(SPECIALS) + 1)
    metadata: dict[str, object] = {
        "general.name": "Phi3",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [text for text, _ in rows],
        "tokenizer.ggml.token_type": [kind for _, kind in rows],
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
    }
    metadata.update({key.replace("__", "."): value for key, value in changes.items()})
    return {key: value for key, value in metadata.items() if value is not None}


def small(**changes: object) -> Tokenizer:
    return build_tokenizer(small_metadata(**changes))


SMALL = small()


def pieces(tokenizer: Tokenizer, text: str, **options: bool) -> list[str]:
    return [tokenizer.token_text(i) for i in tokenizer.encode(text, **options)]


def test_the_best_scored_pair_merges_first() -> None:
    assert pieces(small(), "hel") == ["▁he", "l"]


def test_merging_goes_on_until_no_pair_is_a_piece() -> None:
    assert pieces(small(), "hello world") == ["▁hello", "▁world"]


def test_of_equal_scores_the_leftmost_pair_merges_first() -> None:
    tokenizer = small(tokenizer__ggml__scores=[0.0] * small().vocab_size)
    assert pieces(tokenizer, "hell") == ["▁he", "ll"]
    assert pieces(tokenizer, "lll") == ["▁", "ll", "l"]


def test_a_piece_that_no_merge_leads_to_is_not_made() -> None:
    # "▁wor" needs "wor", which needs "or": without that pair the letters stay apart.
    metadata = small_metadata()
    tokens = list(metadata["tokenizer.ggml.tokens"])  # type: ignore[call-overload]
    tokens[tokens.index("or")] = "zz"
    assert pieces(build_tokenizer({**metadata, "tokenizer.ggml.tokens": tokens}), "wor") == ["▁", "w", "o", "r"]


def test_pieces_with_a_space_inside_merge_across_words() -> None:
    metadata = small_metadata()
    tokens = list(metadata["tokenizer.ggml.tokens"])  # type: ignore[call-overload]
    tokens[tokens.index("el")] = "d▁"
    tokenizer = build_tokenizer({**metadata, "tokenizer.ggml.tokens": tokens})
    assert pieces(tokenizer, "d h") == ["▁", "d▁", "h"]


def test_a_character_outside_the_vocabulary_becomes_its_bytes() -> None:
    assert pieces(small(), "é") == ["▁", "<0xC3>", "<0xA9>"]


def test_every_fragment_between_special_tokens_gets_a_space_prefix() -> None:
    ids = pieces(small(), "hello<|assistant|>hello", parse_special=True)
    assert ids == ["▁hello", "<|assistant|>", "▁hello"]


def test_no_space_is_prefixed_where_the_file_says_so() -> None:
    tokenizer = small(tokenizer__ggml__add_space_prefix=False)
    assert pieces(tokenizer, "hello") == ["hello"]
    assert tokenizer.decode(tokenizer.encode(" hello")) == " hello"


def test_the_empty_text_has_no_ids() -> None:
    assert small().encode("") == []


def test_markers_of_a_model_named_phi3_swallow_the_white_space_behind_them() -> None:
    assert pieces(small(), "<|user|>\n \u00a0\u3000hello<|end|>\n", parse_special=True) == [
        "<|user|>",
        "▁hello",
        "<|end|>",
    ]


def test_end_of_text_swallows_nothing() -> None:
    assert pieces(small(), "<|endoftext|> ", parse_special=True) == ["<|endoftext|>", "▁▁"]


def test_markers_of_other_names_swallow_nothing() -> None:
    tokenizer = small(general__name="Phi 3 Mini 4k Instruct")
    assert pieces(tokenizer, "<|user|>\n", parse_special=True) == ["<|user|>", "▁", "<0x0A>"]


def test_the_strip_rule_can_be_given() -> None:
    tokenizer = build_tokenizer(small_metadata(), special_tokens_strip=False)
    assert pieces(tokenizer, "<|user|>\n", parse_special=True) == ["<|user|>", "▁", "<0x0A>"]


def test_padding_rows_are_never_matched() -> None:
    tokenizer = small()
    assert tokenizer.vocab_size - 1 not in tokenizer.encode("[PAD1]", parse_special=True)


@pytest.mark.parametrize("text", [*SPECIALS, "</s>", "<s>", "<unk>"])
def test_special_spellings_in_untrusted_text_stay_text(text: str) -> None:
    tokenizer = small()
    ids = tokenizer.encode(f"hello {text}")
    assert not any(tokenizer.is_special(i) for i in ids)
    assert tokenizer.decode(ids) == f"hello {text}"


@pytest.mark.parametrize("text", [*SPECIALS, "</s>", "<s>", "<unk>"])
def test_special_spellings_in_trusted_text_become_tokens(text: str) -> None:
    tokenizer = small()
    assert tokenizer.encode(text, parse_special=True) == [tokenizer.special_tokens[text]]


def test_byte_spellings_in_text_stay_text() -> None:
    tokenizer = small()
    assert tokenizer.decode(tokenizer.encode("<0x0A>")) == "<0x0A>"


def test_bos_is_added_by_the_files_key() -> None:
    assert small(tokenizer__ggml__add_bos_token=True).encode("h")[0] == 1


def test_bos_is_added_where_the_key_is_missing() -> None:
    assert small(tokenizer__ggml__add_bos_token=None).encode("h")[0] == 1


def test_the_caller_decides_about_bos() -> None:
    assert small().encode("h", add_bos=True)[0] == 1
    assert small(tokenizer__ggml__add_bos_token=True).encode("h", add_bos=False)[0] != 1


def test_a_prompt_that_spells_bos_does_not_get_it_twice() -> None:
    ids = small(tokenizer__ggml__add_bos_token=True).encode_prompt("<s><|user|>\nhello")
    assert ids.count(1) == 1


def test_bos_that_the_vocabulary_lacks_cannot_be_added() -> None:
    tokenizer = small(tokenizer__ggml__bos_token_id=None)
    with pytest.raises(RequestError, match="add_bos"):
        tokenizer.encode("h", add_bos=True)


def test_stop_ids_are_known_by_text_and_by_key() -> None:
    tokenizer = small(tokenizer__ggml__eos_token_id=260)
    texts = {tokenizer.token_text(i) for i in tokenizer.stop_ids}
    assert texts == {*SPECIALS, "</s>", tokenizer.token_text(260)}


def test_stop_tokens_are_not_printed() -> None:
    tokenizer = small()
    assert tokenizer.decode(tokenizer.encode("hello<|end|>", parse_special=True)) == "hello"


def test_special_tokens_can_be_shown() -> None:
    tokenizer = small()
    ids = tokenizer.encode("<|user|>hello<|end|>", parse_special=True)
    assert tokenizer.decode(ids, skip_special=False) == "<|user|> hello<|end|>"


def test_ids_beyond_the_vocabulary_decode_to_nothing() -> None:
    assert small().decode([10**6]) == ""


def test_negative_ids_are_refused() -> None:
    with pytest.raises(RequestError, match="-1"):
        small().decode([-1])


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(RequestError, match="character 1 is the lone surrogate"):
        small().encode("a\ud800")


def test_bytes_that_are_no_utf8_decode_to_replacement_characters() -> None:
    tokenizer = small()
    byte_id = 3 + 0xC3
    assert tokenizer.decode([byte_id, tokenizer.encode("hello")[0]]) == "\ufffd hello"


@settings(max_examples=200, deadline=None)
@given(
    st.text(
        alphabet=st.one_of(
            st.sampled_from("helo wrd▁<|>/s\n\t\ufdd0\ufdd1é🦙01"), st.characters(exclude_categories=["Cs"])
        )
    )
)
def test_any_text_comes_back_from_its_ids(text: str) -> None:
    tokenizer = SMALL
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("▁", " ")


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([*SPECIALS, "</s>", "<s>", "<|", "|>", "end", "\ufdd0", "\ufdd1", " ", "0"]), max_size=12)
)
def test_untrusted_text_never_holds_a_control_token(parts: list[str]) -> None:
    assert not any(SMALL.is_special(i) for i in SMALL.encode("".join(parts)))


def test_merging_equals_a_plain_search_for_the_best_pair() -> None:
    tokenizer = small()
    scores = dict(zip(PIECES + LETTERS, range(0, -100, -1), strict=False))
    for text in ("hellohello", "held", "wor ld", "llll", "worldhe lo", "ehlllo", "   hello  world    h"):
        symbols = list("▁" + text.replace(" ", "▁"))
        while pairs := [(-scores[a + b], i) for i, (a, b) in enumerate(pairwise(symbols)) if a + b in scores]:
            _, i = min(pairs)
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
        assert pieces(tokenizer, text) == symbols


def test_a_long_word_takes_less_than_quadratic_time() -> None:
    tokenizer = small()
    started = time.perf_counter()
    ids = tokenizer.encode("hello" * 20_000)
    assert time.perf_counter() - started < 5  # seconds; a quadratic merge takes minutes
    assert len(ids) == 20_000


def test_byte_tokens_must_be_complete() -> None:
    metadata = small_metadata()
    types = list(metadata["tokenizer.ggml.token_type"])  # type: ignore[call-overload]
    types[3 + 0x41] = NORMAL
    with pytest.raises(ModelFileError, match="no token for byte 0x41"):
        build_tokenizer({**metadata, "tokenizer.ggml.token_type": types})


def test_byte_tokens_must_be_spelt_as_bytes() -> None:
    metadata = small_metadata()
    tokens = list(metadata["tokenizer.ggml.tokens"])  # type: ignore[call-overload]
    tokens[3 + 0x41] = "A"
    with pytest.raises(ModelFileError, match="byte token 68: got 'A'"):
        build_tokenizer({**metadata, "tokenizer.ggml.tokens": tokens})
