"""Measures the haiku model on topics held out from training: the form 5-7-5, and whether it speaks of the theme.

    python tools/haiku/evaluate.py [--model haiku] [--samples 100] [--temperature 0.7]

Samples through phlite; `--llama-cpp` runs a GGUF file through llama-cpp-python instead.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable

from chat import request
from compose import is_575, speaks_of
from topics import Topic, all_topics

Answer = Callable[[str, int], str]


def held_out_requests(n: int, seed: int) -> list[tuple[Topic, str]]:
    """`n` topics that training never saw, each with a request for it."""
    rng = random.Random(seed)
    _, held_out = all_topics()
    return [(topic, request(topic, rng)) for topic in rng.sample(held_out, n)]


def phlite_answers(model: str, temperature: float, repeat_penalty: float) -> Answer:
    """Answers by phlite's own engine."""
    import phlite

    llm = phlite.load(model)

    def answer(prompt: str, seed: int) -> str:
        params = phlite.SamplingParams(
            temperature=temperature, repeat_penalty=repeat_penalty, max_tokens=100, seed=seed
        )
        return str(llm.chat(prompt, params).text)

    return answer


def llama_cpp_answers(path: str, temperature: float, repeat_penalty: float) -> Answer:
    """Answers by llama.cpp, sampled from the whole distribution."""
    from llama_cpp import Llama

    llm = Llama(path, n_ctx=512, n_threads=1, verbose=False)

    def answer(prompt: str, seed: int) -> str:
        reply = llm.create_chat_completion(
            [{"role": "user", "content": prompt}],
            temperature=temperature,
            repeat_penalty=repeat_penalty,
            top_k=0,
            top_p=1.0,
            min_p=0.0,
            max_tokens=100,
            seed=seed,
        )
        if not isinstance(reply, dict):
            raise TypeError("llama.cpp streamed an answer that was asked for whole")
        return str(reply["choices"][0]["message"]["content"])

    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="haiku", help="a name phlite knows, or a GGUF file")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--repeat-penalty", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--show", type=int, default=5, help="print so many poems, and all that miss")
    parser.add_argument("--llama-cpp", action="store_true", help="run the file through llama-cpp-python")
    args = parser.parse_args()
    answers = (llama_cpp_answers if args.llama_cpp else phlite_answers)(
        args.model, args.temperature, args.repeat_penalty
    )
    n_form = n_theme = 0
    for i, (topic, prompt) in enumerate(held_out_requests(args.samples, args.seed)):
        poem = answers(prompt, args.seed + i).strip()
        form, theme = is_575(poem), speaks_of(poem, topic)
        n_form += form
        n_theme += theme
        if i < args.show or not (form and theme):
            print(f"{prompt}  [form {'ok' if form else 'MISSED'}, theme {'ok' if theme else 'MISSED'}]\n{poem}\n")
    print(f"5-7-5: {100 * n_form / args.samples:.1f} %   theme: {100 * n_theme / args.samples:.1f} %")


if __name__ == "__main__":
    main()
