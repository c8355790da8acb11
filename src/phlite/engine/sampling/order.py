"""Which steps a request asks for, in the order and by the rules of the engine it imitates.

The masks come first everywhere: -inf stays -inf under every penalty. `ORDERS` (phlite.engine.orders) lists the rest.
A tuple of the caller's own is run by llama.cpp's rules. What differs between the rules:

preset        penalties see              top-p is a part of         equal logits at top-k   temperature 0
candle        generated, last n          the whole vocabulary       the lower ids           skips the filters
transformers  prompt and generated       the tokens still in play   all stay                skips the filters
llama.cpp     prompt and generated,      the tokens still in play   the lower ids           after typical-p and XTC
              last n
openai        generated, last n          the tokens still in play   the lower ids           skips the filters

In candle and openai frequency and presence penalties count all generated tokens, whatever the window.

source: candle-transformers 0.9 generation/mod.rs and utils.rs; transformers 5 generation/utils.py and
logits_process.py; llama.cpp src/llama-sampler.cpp; OpenAI's API reference on frequency and presence penalties
"""

from __future__ import annotations

from dataclasses import dataclass

from phlite.engine.contradictions import active_samplers
from phlite.engine.orders import ORDERS
from phlite.engine.params import SamplingParams
from phlite.engine.sampling import filters, masks, mirostat, penalties, temperature
from phlite.engine.sampling.candidates import I32, Choice, Step

__all__ = ["build_steps"]


@dataclass(frozen=True, slots=True)
class Rules:
    """What a preset does differently with the same parameters; see the table above."""

    penalises_prompt: bool = False
    repeat_window: bool = True
    count_window: bool = False
    top_p_of_whole_vocabulary: bool = False
    top_k_keeps_ties: bool = False
    typical_keeps_ties: bool = False
    greedy_after_filters: bool = False

    def repeated(self, choice: Choice) -> I32:
        """Return the ids that the repeat penalty sees."""
        return choice.window(
            choice.params.repeat_last_n if self.repeat_window else -1, with_prompt=self.penalises_prompt
        )

    def counted(self, choice: Choice) -> I32:
        """Return the ids that frequency and presence penalties count."""
        return choice.window(
            choice.params.repeat_last_n if self.count_window else -1, with_prompt=self.penalises_prompt
        )


RULES = {
    "candle": Rules(top_p_of_whole_vocabulary=True),
    "transformers": Rules(penalises_prompt=True, repeat_window=False, top_k_keeps_ties=True, typical_keeps_ties=True),
    "llama.cpp": Rules(penalises_prompt=True, count_window=True, greedy_after_filters=True),
    "openai": Rules(),
}


def build_steps(params: SamplingParams) -> tuple[Step, ...]:
    """Return the steps that these parameters switch on, in order. A greedy choice needs the filters of one preset."""
    preset = params.sampler_order if isinstance(params.sampler_order, str) else "llama.cpp"
    rules = RULES[preset]
    order = ORDERS[preset] if isinstance(params.sampler_order, str) else params.sampler_order
    steps = build_masks(params)
    wanted, kept = build_changes(params, rules), build_filters(params, rules)
    # Of the filters only these two can leave the largest logit out; they see what the others left.
    if not params.is_greedy or (rules.greedy_after_filters and ("typical_p" in kept or "xtc" in kept)):
        wanted |= kept
    for name in order:
        steps += wanted.get(name, [])
    if params.mirostat:
        steps.append(mirostat.keep_by_zipf if params.mirostat == 1 else mirostat.keep_unsurprising)
    return tuple(steps)


def build_masks(params: SamplingParams) -> list[Step]:
    """Return the steps that forbid tokens. A constraint has forbidden others before the first step."""
    steps: list[Step] = []
    if params.suppress_token_ids:
        steps.append(masks.mask_ids(params.suppress_token_ids))
    if params.min_tokens or params.min_length:
        steps.append(masks.mask_stop_ids)
    if params.bad_words:
        steps.append(masks.mask_bad_words([tuple(word) for word in params.bad_words if not isinstance(word, str)]))
    if params.no_repeat_ngram_size:
        steps.append(masks.mask_repeated_ngrams)
    return steps


def build_changes(params: SamplingParams, rules: Rules) -> dict[str, list[Step]]:
    """Return the steps before the filters, by their name in an order."""
    is_on = active_samplers(params)
    repeats = params.repeat_penalty != 1.0 and params.repeat_last_n != 0
    counts = params.frequency_penalty != 0.0 or params.presence_penalty != 0.0
    counts = counts and not (rules.count_window and params.repeat_last_n == 0)
    of_repeats = [penalties.penalise_repeats_in(rules.repeated)] if repeats else []
    of_counts = [penalties.penalise_counts_in(rules.counted)] if counts else []
    breakers = [breaker for breaker in params.dry_breakers if not isinstance(breaker, str)]
    return {
        "logit_bias": [penalties.add_logit_bias] if is_on["logit_bias"] else [],
        "penalties": [*of_repeats, *of_counts],
        "dry": [penalties.penalise_dry(breakers)] if is_on["dry"] else [],
        "logits_function": [penalties.call_logits_function] if is_on["logits_function"] else [],
    }


def build_filters(params: SamplingParams, rules: Rules) -> dict[str, list[Step]]:
    """Return the temperature and the filters, by their name in an order."""
    change = temperature.divide_by_dynamic_temperature if params.dynatemp_range else temperature.divide_by_temperature
    steps: dict[str, Step] = {
        "temperature": change,
        "top_n_sigma": filters.keep_top_n_sigma,
        "top_k": filters.keep_top_k_by(with_ties=rules.top_k_keeps_ties),
        "typical_p": filters.keep_typical_by(with_ties=rules.typical_keeps_ties),
        "top_p": filters.keep_top_p_by(of_whole_vocabulary=rules.top_p_of_whole_vocabulary),
        "min_p": filters.keep_min_p,
        "xtc": filters.leave_out_top_choices,
    }
    is_on = active_samplers(params)
    wanted = {name: [step] for name, step in steps.items() if is_on[name]}
    if rules.top_p_of_whole_vocabulary:
        wanted["temperature"] = [*wanted.get("temperature", []), temperature.softmax]
    return wanted
