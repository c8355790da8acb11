"""Which of several GGUF files is meant."""

from __future__ import annotations

import pytest

from phlite.errors import DownloadError
from phlite.hub.choose import choose_model, models_among, quant_of, shards_of


@pytest.mark.parametrize(
    ("file", "quant"),
    [
        ("Phi-3-mini-4k-instruct-q4.gguf", "Q4"),
        ("phi-4-Q4_K_M.gguf", "Q4_K_M"),
        ("Phi-3-mini.Q5_K_S.gguf", "Q5_K_S"),
        ("x-IQ4_XS-00001-of-00002.gguf", "IQ4_XS"),
        ("x-fp16.gguf", "F16"),
        ("phi-4.gguf", None),
        ("Phi-3.5-mini.gguf", None),
    ],
)
def test_the_quantisation_is_read_from_the_end_of_the_name(file: str, quant: str | None) -> None:
    assert quant_of(file) == quant


def test_a_split_model_is_one_model() -> None:
    assert models_among(["b-00002-of-00002.gguf", "b-00001-of-00002.gguf", "a.gguf"]) == [
        "a.gguf",
        "b-00001-of-00002.gguf",
    ]


def test_projectors_and_matrices_are_no_models() -> None:
    assert models_among(["mmproj-x-f16.gguf", "x-imatrix.gguf", "sub/mmproj.gguf", "x.gguf", "README.md"]) == ["x.gguf"]


def test_any_part_leads_to_all_parts() -> None:
    assert shards_of("d/x-00002-of-00003.gguf") == [f"d/x-0000{n}-of-00003.gguf" for n in (1, 2, 3)]


def test_a_part_beyond_its_count_is_refused() -> None:
    with pytest.raises(DownloadError, match="shard 4 of 3"):
        shards_of("x-00004-of-00003.gguf")


@pytest.mark.parametrize(
    ("quants", "chosen"),
    [
        (["Q2_K", "Q4_K_M", "Q8_0"], "Q4_K_M"),
        (["q4", "fp16"], "q4"),
        (["Q4_0", "Q4_K_S"], "Q4_K_S"),
        (["Q8_0", "F16"], "Q8_0"),
        (["IQ1_S"], "IQ1_S"),
    ],
)
def test_the_default_is_q4_k_m_or_what_is_nearest(quants: list[str], chosen: str) -> None:
    model, others = choose_model([f"m-{quant}.gguf" for quant in quants], None, "o/r")
    assert model == f"m-{chosen}.gguf"
    assert len(others) == len(quants) - 1


def test_no_way_to_prefer_one_asks_the_user() -> None:
    with pytest.raises(
        DownloadError, match=r"o/r has 2 models and no Q4_K_M: a-IQ1_S.gguf, a-Q2_K.gguf. Choose with o/r:NAME"
    ):
        choose_model(["a-Q2_K.gguf", "a-IQ1_S.gguf"], None, "o/r")


def test_a_quantisation_that_is_not_there_lists_what_is() -> None:
    with pytest.raises(DownloadError, match=r"o/r has no Q6_K model; it has a-Q2_K.gguf"):
        choose_model(["a-Q2_K.gguf"], "Q6_K", "o/r")


def test_many_files_are_listed_in_short() -> None:
    with pytest.raises(DownloadError, match="and 12 more"):
        choose_model([f"f{n}.txt" for n in range(10, 20)] + [f"f{n}.txt" for n in range(10)], None, "o/r")
