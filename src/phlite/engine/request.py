"""Whether a request fits the model and its cache; checked before anything is queued."""

from __future__ import annotations

import os

from phlite.engine.beam_cache import most_blocks
from phlite.engine.blocks import BLOCK_SIZE
from phlite.engine.params import SamplingParams
from phlite.errors import ContextLengthError, RequestError

__all__ = ["check_request", "random_seed"]


def check_request(
    ids: list[int], params: SamplingParams, *, vocab_size: int, n_ctx: int, longest: int, cache_tokens: int
) -> None:
    """Raise unless the prompt and the ids in the parameters fit the model.

    longest: the model's longest context, of which n_ctx positions are used
    """
    if not ids:
        raise RequestError("prompt: got no tokens, expected at least one")
    if len(ids) >= n_ctx:
        raise ContextLengthError(
            f"the prompt has {len(ids)} tokens and the context n_ctx is {n_ctx}: at least one token must be"
            " left for the answer; shorten the prompt or load the model with a larger n_ctx (its longest is"
            f" {longest})"
        )
    if params.max_length is not None and len(ids) >= params.max_length:
        raise RequestError(
            f"max_length: got {params.max_length}, expected more than the {len(ids)} tokens of the prompt"
        )
    check_room_for_beams(ids, params, n_ctx=n_ctx, cache_tokens=cache_tokens)
    for name, values in (("prompt", ids), *params.token_ids()):
        for token_id in values:
            if not 0 <= token_id < vocab_size:
                raise RequestError(f"{name}: got token id {token_id}, expected 0 to {vocab_size - 1}")


def check_room_for_beams(ids: list[int], params: SamplingParams, *, n_ctx: int, cache_tokens: int) -> None:
    """Raise RequestError when the cache could not hold all beams at their full length."""
    n_ids = params.most_ids(len(ids), n_ctx)
    n_blocks = most_blocks(len(ids), n_ids, params.num_beams)
    if params.num_beams > 1 and n_blocks * BLOCK_SIZE > cache_tokens:
        raise RequestError(
            f"num_beams: {params.num_beams} beams of up to {n_ids} tokens take {n_blocks * BLOCK_SIZE} positions of the"
            f" cache, which has {cache_tokens}; lower num_beams or max_tokens, or load the model with a smaller n_ctx"
            " (an Engine: with larger cache_tokens)"
        )


def random_seed() -> int:
    """Return a seed from the operating system, short enough to be typed again: 0 .. 2**32 - 1."""
    return int.from_bytes(os.urandom(4), "little")
