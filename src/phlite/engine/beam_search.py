"""Beam search: the most likely texts, found by continuing the best few prefixes. Pure: logits in, the next state out.

Every step adds the log-probabilities of the next token to each beam's score and takes the best continuations of all.
Those that end, among the first num_beams of them, are hypotheses with the score sum / length ** length_penalty; the
best others are the next beams. The search ends when num_beams hypotheses are there and early_stopping finds it enough.

source: transformers 5 generation/utils.py _beam_search, for one prompt
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from phlite.engine.params import SamplingParams
from phlite.engine.sampling import F32, Choice, Step, surviving
from phlite.engine.sampling.candidates import finite_max, largest_rows

__all__ = ["BeamSearch", "Hypothesis", "begin_search"]

I32 = NDArray[np.int32]
F64 = NDArray[np.float64]

# Score of a beam that is there in number only: all beams are the prompt at first, and one of them is enough.
NO_SCORE = -1e9


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One result of beam search.

    token_ids: the generated ids; the stop id that ended it is the last
    score:     sum of the natural log-probabilities, after penalties, over length ** length_penalty
    """

    token_ids: tuple[int, ...]
    score: float
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class BeamSearch:
    """The state between two steps.

    ids:      int32[num_beams, n], prompt and output of each beam, best first
    scores:   float64[num_beams], sums of log-probabilities
    parents:  for each beam, which of the step before it continues
    finished: the best hypotheses so far, best first, at most num_beams
    """

    params: SamplingParams
    stop_ids: frozenset[int]
    n_prompt: int
    max_ids: int
    ids: I32
    scores: F64
    parents: tuple[int, ...]
    finished: tuple[Hypothesis, ...] = ()
    is_done: bool = False

    @property
    def n_ids(self) -> int:
        """Length of each beam, prompt included."""
        return int(self.ids.shape[1])

    @property
    def best(self) -> tuple[Hypothesis, ...]:
        """The num_return_sequences best hypotheses."""
        return self.finished[: self.params.num_return_sequences]

    def advanced(self, logits: F32, steps: tuple[Step, ...]) -> BeamSearch:
        """Return the state after one more token.

        logits: float32[num_beams, V], of each beam
        raises: what a caller's logits_function raises
        """
        n_beams, n_vocab = logits.shape
        sums = np.empty((n_beams, n_vocab))
        for row, one in enumerate(logits):
            sums[row] = self.scores[row] + self.log_probabilities(row, one, steps).astype(np.float64)
        # As many that no choice of stop ids can leave fewer than num_beams that go on.
        n_kept = min(max(2, 1 + len(self.stop_ids)) * n_beams, sums.size)
        flat = sums.ravel()
        best = largest_rows(flat, n_kept)
        best = best[np.argsort(-flat[best], kind="stable")]
        parents, tokens, scores = best // n_vocab, (best % n_vocab).astype(np.int32), flat[best]
        is_last = self.n_ids + 1 >= self.max_ids
        ends = np.isin(tokens, np.fromiter(self.stop_ids, np.int32)) | is_last
        finished = self.merged([row for row in range(min(n_beams, n_kept)) if ends[row]], parents, tokens, scores)
        going = np.argsort(-(scores + ends * NO_SCORE), kind="stable")[:n_beams]
        following = replace(
            self,
            ids=np.concatenate([self.ids[parents[going]], tokens[going, None]], axis=1),
            scores=scores[going] + ends[going] * NO_SCORE,
            parents=tuple(parents[going].tolist()),
            finished=finished,
        )
        return replace(following, is_done=bool(ends.all()) or following.is_enough())

    def log_probabilities(self, row: int, logits: F32, steps: tuple[Step, ...]) -> F32:
        """Return float32[V], the log-probabilities of the next token of a beam, changed by penalties and masks."""
        shifted = logits - finite_max(logits)
        logprobs = shifted - np.float32(np.log(np.exp(shifted).sum(dtype=np.float64)))
        if not steps:
            return logprobs
        choice = Choice(self.params, self.ids[row], self.n_prompt, stop_ids=self.stop_ids)
        return surviving(logprobs, choice, steps).logits

    def merged(self, rows: list[int], parents: NDArray[np.int64], tokens: I32, scores: F64) -> tuple[Hypothesis, ...]:
        """Return the best num_beams of the old hypotheses and of the continuations in these rows."""
        length = self.n_ids + 1 - self.n_prompt
        new = [
            Hypothesis(
                token_ids=(*self.ids[parents[row], self.n_prompt :].tolist(), int(tokens[row])),
                score=float(scores[row]) / length**self.params.length_penalty,
                finish_reason="stop" if int(tokens[row]) in self.stop_ids else "length",
            )
            for row in rows
        ]
        ranked = sorted([*self.finished, *new], key=lambda hypothesis: -hypothesis.score)
        return tuple(ranked[: len(self.scores)])

    def is_enough(self) -> bool:
        """Whether the hypotheses are as many as wanted, and no beam is expected to become better than the worst."""
        params = self.params
        if len(self.finished) < len(self.scores):
            return False
        if params.early_stopping is True:
            return True
        longest = params.early_stopping == "never" and params.length_penalty > 0
        length = (self.max_ids if longest else self.n_ids) - self.n_prompt
        best_possible = float(self.scores[0]) / float(length**params.length_penalty)
        return best_possible <= self.finished[-1].score


def begin_search(
    prompt_ids: list[int], params: SamplingParams, *, stop_ids: frozenset[int], max_ids: int
) -> BeamSearch:
    """Return the state before the first token; its logits are the same row for every beam."""
    n_beams = params.num_beams
    return BeamSearch(
        params=params,
        stop_ids=stop_ids,
        n_prompt=len(prompt_ids),
        max_ids=max_ids,
        ids=np.tile(np.array(prompt_ids, np.int32), (n_beams, 1)),
        scores=np.array([0.0] + [NO_SCORE] * (n_beams - 1)),
        parents=(0,) * n_beams,
    )
