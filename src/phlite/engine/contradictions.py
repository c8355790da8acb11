"""Fields of SamplingParams that are right by themselves and wrong together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from phlite.errors import RequestError

if TYPE_CHECKING:
    from phlite.engine.params import SamplingParams

__all__ = ["active_samplers", "check_together"]

FILTERS = ("top_n_sigma", "top_k", "typical_p", "top_p", "min_p", "xtc")


def check_together(params: SamplingParams) -> None:
    """Raise RequestError where fields that are right by themselves contradict each other."""
    is_on = active_samplers(params)
    if params.mirostat:
        if params.is_greedy:
            raise RequestError("mirostat: got temperature 0, expected one above 0, since mirostat draws")
        others = [name for name in FILTERS if is_on[name]]
        if others:
            raise RequestError(f"mirostat: got {', '.join(others)} too, which it replaces; switch one or the other off")
    check_beams(params, is_on)
    if params.dynatemp_range and params.is_greedy:
        raise RequestError("dynatemp_range: got temperature 0, expected one above 0 that it can move")
    for name, low, limit, high in (
        ("min_tokens", params.min_tokens, "max_tokens", params.max_tokens),
        ("min_length", params.min_length, "max_length", params.max_length),
    ):
        if high is not None and low > high:
            raise RequestError(f"{name}: got {low}, expected at most {limit} = {high}")
    if params.sampler_order == "transformers" and params.repeat_last_n not in (-1, 0, 64):
        raise RequestError(
            f"repeat_last_n: got {params.repeat_last_n}, but the order 'transformers' penalises the whole text;"
            " leave it out or choose another sampler_order"
        )
    if isinstance(params.sampler_order, tuple):
        missing = [name for name, on in is_on.items() if on and name not in params.sampler_order]
        if missing:
            raise RequestError(
                f"sampler_order: {', '.join(missing)} would have an effect but has no place in it; name it there or"
                " switch it off (penalties: repeat_penalty=1)"
            )


def check_beams(params: SamplingParams, is_on: Mapping[str, bool]) -> None:
    """Raise RequestError for what beam search cannot do."""
    if params.num_return_sequences > params.num_beams:
        raise RequestError(
            f"num_return_sequences: got {params.num_return_sequences}, expected at most num_beams = {params.num_beams};"
            " for several sampled answers give the prompt several times"
        )
    if params.num_beams == 1:
        return
    if not params.is_greedy:
        raise RequestError(
            f"num_beams: got {params.num_beams} with temperature {params.temperature:g}; beams are compared, not drawn:"
            " set temperature=0 (SamplingParams.beam_search does), or num_beams=1"
        )
    filters = [name for name in FILTERS if is_on[name]]
    if filters:
        raise RequestError(f"num_beams: got {', '.join(filters)} too, which are for sampled answers; switch them off")
    if params.logprobs is not None:
        raise RequestError("logprobs: got num_beams above 1, for which there are none; leave logprobs out")
    if params.constraint is not None:
        raise RequestError("constraint: got num_beams above 1, which cannot keep it; leave one of them out")


def active_samplers(params: SamplingParams) -> dict[str, bool]:
    """Return for each sampler of an order whether these parameters give it something to do."""
    draws = not params.is_greedy
    repeats = params.repeat_penalty != 1.0 and params.repeat_last_n != 0
    return {
        "logit_bias": params.logit_bias is not None,
        "penalties": repeats or params.frequency_penalty != 0.0 or params.presence_penalty != 0.0,
        "dry": params.dry_multiplier > 0.0,
        "logits_function": params.logits_function is not None,
        "temperature": draws and (params.temperature != 1.0 or params.dynatemp_range > 0.0),
        "top_n_sigma": params.top_n_sigma is not None,
        "top_k": bool(params.top_k),
        "typical_p": params.typical_p is not None and params.typical_p < 1.0,
        "top_p": params.top_p is not None and params.top_p < 1.0,
        "min_p": bool(params.min_p),
        "xtc": params.xtc_probability > 0.0,
    }
