import math

import pytest

from phlite.engine import SamplingParams
from phlite.errors import RequestError


def test_the_defaults_are_the_tutorials():
    params = SamplingParams()
    assert (params.temperature, params.max_tokens, params.top_p) == (1.0, 100, None)
    assert (params.repeat_last_n, params.repeat_penalty, params.seed) == (64, 1.2, None)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("temperature", -0.1, "got -0.1, expected a number >= 0"),
        ("temperature", math.nan, "got nan"),
        ("temperature", math.inf, "got inf"),
        ("temperature", "hot", "got 'hot'"),
        ("temperature", True, "got True"),
        ("top_k", -1, "got -1, expected an integer >= 0 or None"),
        ("top_k", 1.5, "got 1.5, expected an integer"),
        ("top_p", 0.0, "got 0.0, expected a number > 0 and <= 1 or None"),
        ("top_p", 1.01, "got 1.01"),
        ("min_p", -0.01, "got -0.01"),
        ("min_p", 1.5, "got 1.5"),
        ("repeat_penalty", 0.0, "got 0.0, expected a number > 0"),
        ("repeat_last_n", -2, "got -2, expected an integer >= -1"),
        ("frequency_penalty", 2.1, "got 2.1, expected a number >= -2 and <= 2"),
        ("presence_penalty", -2.1, "got -2.1"),
        ("seed", -1, "got -1"),
        ("seed", 2**64, "expected an integer >= 0 and <= 18446744073709551615 or None"),
        ("max_tokens", 0, "got 0, expected an integer >= 1 or None"),
        ("logprobs", -1, "got -1"),
        ("stop", ["ok", ""], "got '', expected non-empty strings"),
        ("stop", [3], "got 3"),
        ("stop_token_ids", [-5], "got -5"),
        ("logit_bias", {1: math.nan}, r"logit_bias\[1\]: got nan"),
        ("logit_bias", {1: math.inf}, "got inf"),
        ("logit_bias", {-1: 0.0}, "got -1"),
        ("logit_bias", [1], "got list, expected a mapping"),
        ("logits_function", 3, "got 3, expected a callable"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field, value, message):
    with pytest.raises(RequestError, match=message) as raised:
        SamplingParams(**{field: value})
    assert str(raised.value).startswith(field)


def test_one_stop_string_is_a_tuple_of_one():
    assert SamplingParams(stop="END").stop_strings == ("END",)


def test_the_bias_cannot_be_changed_from_outside():
    bias = {1: 2.0}
    params = SamplingParams(logit_bias=bias)
    bias[1] = 9.0
    assert dict(params.logit_bias) == {1: 2.0}


def test_with_seed_changes_the_seed_only():
    params = SamplingParams(top_p=0.5, logit_bias={1: 2.0}, stop=["a", "b"], seed=None)
    assert params.with_seed(3) == SamplingParams(top_p=0.5, logit_bias={1: 2.0}, stop=["a", "b"], seed=3)
