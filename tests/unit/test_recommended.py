"""What a model file recommends for sampling, as the engine's parameters."""

import logging

import numpy as np
import pytest

from phlite.engine import SamplingParams
from phlite.errors import ModelFileError
from phlite.gguf import Metadata
from phlite.recommended import recommended_fields, recommended_params


def metadata(**sampling):
    values = {f"general.sampling.{name}": value for name, value in sampling.items()}
    return Metadata({"general.architecture": "phi3", **values}, source="tiny.gguf")


def test_a_file_without_recommendations_gives_the_usual_parameters(caplog):
    assert recommended_params(metadata()) == SamplingParams()
    assert recommended_fields(metadata()) == {}
    assert caplog.records == []


def test_every_known_key_becomes_its_field():
    params = recommended_params(
        metadata(temp=0.5, top_k=40, top_p=0.95, min_p=0.05, penalty_repeat=1.1, penalty_last_n=32)
    )
    assert params == SamplingParams(
        temperature=0.5, top_k=40, top_p=0.95, min_p=0.05, repeat_penalty=1.1, repeat_last_n=32
    )


def test_a_number_of_single_precision_reads_as_it_was_written():
    assert recommended_fields(metadata(temp=float(np.float32(0.7)))) == {"temperature": 0.7}


def test_top_k_below_zero_is_off():
    assert recommended_fields(metadata(top_k=-1)) == {"top_k": 0}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temp", -1.0),
        ("temp", float("nan")),
        ("temp", "warm"),
        ("top_k", 1.5),
        ("top_p", 0.0),
        ("top_p", 2.0),
        ("min_p", -0.1),
        ("penalty_repeat", 0.0),
        ("penalty_last_n", -2),
        ("penalty_last_n", True),
        ("mirostat", 3),
        ("xtc_threshold", 1.5),
    ],
)
def test_a_value_without_sense_is_refused_by_its_key(key, value):
    with pytest.raises(ModelFileError, match=rf"tiny\.gguf: metadata key 'general\.sampling\.{key}': .*got"):
        recommended_params(metadata(**{key: value}))


def test_mirostat_stands_instead_of_the_filters_as_in_llama_cpp():
    params = recommended_params(
        metadata(mirostat=2, mirostat_tau=4.0, mirostat_eta=0.2, top_k=40, top_p=0.9, xtc_probability=0.5)
    )
    assert params == SamplingParams(mirostat=2, mirostat_tau=4.0, mirostat_eta=0.2)


def test_xtc_is_taken_over():
    assert recommended_params(metadata(xtc_probability=0.5, xtc_threshold=0.2)) == SamplingParams(
        xtc_probability=0.5, xtc_threshold=0.2
    )


def test_values_that_contradict_each_other_are_refused():
    with pytest.raises(ModelFileError, match="mirostat: got temperature 0"):
        recommended_params(metadata(mirostat=2, temp=0.0))


@pytest.mark.parametrize("sampling", [{"sequence": "kpm"}, {"new": 1.0}])
def test_a_sampler_that_does_not_exist_here_is_named_in_a_warning(sampling, caplog):
    recommended_params(metadata(**sampling))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"general.sampling.{next(iter(sampling))}" in record.getMessage()


def test_other_samplers_that_are_off_need_no_warning(caplog):
    recommended_params(metadata(mirostat=0, mirostat_tau=5.0, mirostat_eta=0.1, xtc_probability=0.0, xtc_threshold=0.1))
    assert caplog.records == []
