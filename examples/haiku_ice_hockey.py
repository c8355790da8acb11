"""The program of Microsoft's tutorial "cross-platform inference with Rust and Candle", on phlite's Python interface.

    python examples/haiku_ice_hockey.py                       the embedded demonstration model
    python examples/haiku_ice_hockey.py --model phi3          Phi-3-mini, downloaded once
    python examples/haiku_ice_hockey.py --seed 1234           the same haiku again

Its parameters and their defaults are the tutorial's. The text goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import argparse
import sys

import phlite


def main() -> None:
    """Write a haiku with the tutorial's parameters."""
    parser = argparse.ArgumentParser(description="Write a haiku about ice hockey.")
    parser.add_argument("--model", default="haiku")
    parser.add_argument("--prompt", default="Write a haiku about ice hockey")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--sample-len", type=int, default=100)
    parser.add_argument("--top-p", type=float, default=None)
    parser.add_argument("--repeat-last-n", type=int, default=64)
    parser.add_argument("--repeat-penalty", type=float, default=1.2)
    parser.add_argument("--seed", type=int, default=None, help="default: a random one, which is printed")
    parser.add_argument("--device", choices=["cpu"], default="cpu")
    options = parser.parse_args()

    llm = phlite.load(options.model, progress=True)
    params = phlite.SamplingParams(
        temperature=options.temperature,
        max_tokens=options.sample_len,
        top_p=options.top_p,
        repeat_last_n=options.repeat_last_n,
        repeat_penalty=options.repeat_penalty,
        seed=options.seed,
    )
    stream = llm.chat_stream(options.prompt, params)
    print(f"model {llm.name}, device {options.device}, seed {stream.seed}", file=sys.stderr)
    for piece in stream:
        print(piece, end="", flush=True)
    print()
    if stream.completion is not None:
        timings = stream.completion.timings
        print(
            f"{stream.completion.completion_tokens} tokens, {timings.tokens_per_s:.1f} tokens/s,"
            f" prompt {timings.prefill_ms:.0f} ms, load {timings.load_ms:.0f} ms",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
