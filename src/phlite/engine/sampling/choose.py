"""From logits to the next token id: pure functions, the same result for the same arguments always."""

from __future__ import annotations

import math

import numpy as np

from phlite.engine.params import SamplingParams
from phlite.engine.sampling.candidates import F32, I32, Candidates, Choice, Step, no_token_error
from phlite.engine.sampling.draw import draw
from phlite.engine.sampling.mirostat import first_mu, next_mu
from phlite.engine.sampling.order import build_steps

__all__ = ["choose", "sample", "surviving"]


def sample(
    logits: F32,
    params: SamplingParams,
    ids: I32,
    *,
    n_prompt: int,
    u: float,
    steps: tuple[Step, ...] | None = None,
) -> int:
    """Return the next token id of a sequence without constraint, stop ids and mirostat history.

    logits:   float32[V], left unchanged
    ids:      int32[n], all ids of the sequence so far, prompt first; generated ones begin at n_prompt
    u:        the draw, 0 <= u < 1 (see `uniform`); unused when greedy
    steps:    build_steps(params), when the caller has kept it
    raises:   RequestError when the caller's bias or function left no token or made a NaN
    """
    choice = Choice(params, ids, n_prompt, u, mu=first_mu(params))
    return choose(logits, choice, build_steps(params) if steps is None else steps)


def choose(logits: F32, choice: Choice, steps: tuple[Step, ...]) -> int:
    """Return the next token id, and leave mirostat's next bound in choice.mu.

    logits:   float32[V], left unchanged
    steps:    build_steps(choice.params)
    raises:   RequestError when the request left no token or made a NaN
    """
    params = choice.params
    greedy = params.is_greedy
    if greedy and not steps:
        return int(logits.argmax())
    candidates = surviving(logits, choice, steps)
    if greedy:
        row = int(candidates.logits.argmax())
        if not math.isfinite(candidates.logits[row]):
            raise no_token_error(float(candidates.logits[row]))
        return candidates.id_of(row)
    weights = candidates.softmax()
    row = draw(weights, choice.u)
    if params.mirostat:
        choice.mu = next_mu(params, choice.mu, float(weights[row]) / float(weights.sum(dtype=np.float64)))
    return candidates.id_of(row)


def surviving(logits: F32, choice: Choice, steps: tuple[Step, ...]) -> Candidates:
    """Return the tokens that may be drawn, after all steps."""
    candidates = Candidates(logits.copy())
    # Forbidden tokens may be -inf or the most negative float: differences then overflow to -inf, as they should.
    with np.errstate(over="ignore"):
        for step in steps:
            step(candidates, choice)
    return candidates
