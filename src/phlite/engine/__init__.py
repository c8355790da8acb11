"""The token loop: sequences, scheduling over cache blocks, sampling. Ids in, ids out; no text."""

from phlite.engine.beam_search import Hypothesis
from phlite.engine.constraint import TokenConstraint
from phlite.engine.engine import Engine, StepOutput
from phlite.engine.params import LogitsFunction, SamplingParams
from phlite.engine.sampling import TokenLogprob
from phlite.engine.sequence import FinishReason, Sequence, Timings

__all__ = [
    "Engine",
    "FinishReason",
    "Hypothesis",
    "LogitsFunction",
    "SamplingParams",
    "Sequence",
    "StepOutput",
    "Timings",
    "TokenConstraint",
    "TokenLogprob",
]
