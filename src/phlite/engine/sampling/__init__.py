"""From logits to the next token id: masks, penalties, temperature, filters and one draw, each a pure function.

`build_steps` turns parameters into steps, `choose` runs them. History that a step depends on is in its arguments.
"""

from phlite.engine.sampling.candidates import F32, Candidates, Choice, Step
from phlite.engine.sampling.choose import choose, sample, surviving
from phlite.engine.sampling.draw import uniform
from phlite.engine.sampling.logprobs import TokenLogprob, compute_logprob
from phlite.engine.sampling.mirostat import first_mu
from phlite.engine.sampling.order import build_steps

__all__ = [
    "F32",
    "Candidates",
    "Choice",
    "Step",
    "TokenLogprob",
    "build_steps",
    "choose",
    "compute_logprob",
    "first_mu",
    "sample",
    "surviving",
    "uniform",
]
