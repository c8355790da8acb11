"""Prompt lookup on and off, in turn: what it brings where an answer repeats its prompt, and what it costs where not.

python benchmarks/lookup.py -m haiku -t 1
python benchmarks/lookup.py -m Phi-3-mini-4k-instruct-q4.gguf -t 2

Answers are dictated by a logits_function, so that files of random weights can be measured too: only which tokens come
decides how often a guess is right. "summary" takes sentences of its prompt over, "edit" returns the prompt with a few
words changed, "free" shares no phrase with it.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

import phlite

ARTICLE = """The lake froze early that winter, and by the first week of December the children of the village were \
skating on it every afternoon. Old Marta, who had kept the boats for forty years, walked along the shore each morning \
and drilled three holes with her brace to measure the ice. She wrote the numbers on a board beside the path: ten \
centimetres near the reeds, fourteen at the jetty, nine where the stream comes in. Nobody skated where the stream \
comes in. When the inspector from the city arrived with his new instrument, he measured for two days and filled in \
four forms. His numbers were the same as hers. The council thanked him, and asked Marta to go on."""
SUMMARY = """The lake froze early that winter. Old Marta, who had kept the boats for forty years, drilled three holes \
with her brace to measure the ice and wrote the numbers on a board beside the path. When the inspector from the city \
arrived with his new instrument, his numbers were the same as hers, and the council asked Marta to go on."""
EDITED = ARTICLE.replace("December", "January").replace("forty", "thirty").replace("Marta", "Greta")
FREE = """A good loaf begins the evening before. Mix flour, water and a spoonful of last week's dough, cover the bowl \
and leave it alone until breakfast. Small bubbles tell you that it is alive. Fold it gently, wait, fold it again; \
patience does more here than strength. Heat the oven as far as it will go, with a pan of stones at the bottom, and \
throw a cup of cold water onto them when the bread goes in."""


def tokens_per_s(llm: phlite.LLM, prompt: str, answer: list[int], n_guessed: int) -> float:
    """Return the speed at which a dictated answer is decoded."""
    ids = llm.chat_ids(f"Work on this text.\n\n{prompt}")
    n_vocab = llm.engine.model.config.vocab_size

    def dictate(history: np.ndarray, logits: np.ndarray) -> np.ndarray:
        forced = np.full(n_vocab, -np.inf, np.float32)
        forced[answer[len(history) - len(ids)]] = 0
        return forced

    params = phlite.SamplingParams(
        temperature=0,
        repeat_penalty=1,
        max_tokens=len(answer),
        ignore_eos=True,
        logits_function=dictate,
        prompt_lookup_num_tokens=n_guessed,
    )
    sequence = llm.engine.add(ids, params)
    while not sequence.output_ids:
        llm.engine.step()
    started_s, n_before = time.perf_counter(), len(sequence.output_ids)
    while sequence.finish_reason is None:
        llm.engine.step()
    assert sequence.output_ids == answer
    return (len(answer) - n_before) / (time.perf_counter() - started_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="haiku")
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("-n", "--tokens", type=int, default=10**6, help="cut answers to so many tokens")
    parser.add_argument("-k", "--guessed", type=int, default=15, help="most tokens guessed at a time")
    parser.add_argument("--cases", default="summary,edit,free")
    options = parser.parse_args()
    llm = phlite.load(options.model, n_ctx=1024, threads=options.threads)
    texts = {"summary": SUMMARY, "edit": EDITED, "free": FREE}
    for name in options.cases.split(","):
        answer = llm.tokenizer.encode(texts[name], add_bos=False)[: options.tokens]
        speeds: dict[int, list[float]] = {0: [], options.guessed: []}
        for _ in range(options.rounds):
            for n_guessed, samples in speeds.items():
                samples.append(tokens_per_s(llm, ARTICLE, answer, n_guessed))
        off, on = (statistics.median(samples) for samples in speeds.values())
        ratio = statistics.median(b / a for a, b in zip(*speeds.values(), strict=True))
        print(f"{name:<8} {len(answer):>4} tokens  off {off:8.1f}  on {on:8.1f} tokens/s  on / off {ratio:.2f}")


if __name__ == "__main__":
    main()
