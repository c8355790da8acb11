"""How many JSON schemas can be kept, how exactly, and how long compiling and masks take. No model is run.

    python benchmarks/constraints.py TOKENIZER CASES [-n 300]

TOKENIZER: a Hugging Face folder with tokenizer.json
CASES:     a folder of JSON files as MaskBench or the JSON Schema Test Suite have them: {"schema", "tests": [{"data",
           "valid"}]} or a list of such
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from phlite.constrained import Constraint
from phlite.constrained.compiler import ConstraintCompiler
from phlite.errors import RequestError
from phlite.tokenizer import Tokenizer, load_tokenizer


def cases(folder: Path, n: int) -> Iterator[dict[str, object]]:
    """Yield up to n schemas with their tests, in an order that is always the same."""
    files = sorted(folder.glob("*.json"))
    random.Random(1).shuffle(files)
    found = 0
    for path in files:
        content = json.loads(path.read_text(encoding="utf-8"))
        for case in content if isinstance(content, list) else [content]:
            if found == n:
                return
            found += 1
            yield case


def build_compiler(tokenizer: Tokenizer) -> ConstraintCompiler:
    """Return a compiler for the vocabulary, its trie built."""
    ids = range(tokenizer.vocab_size)
    tokens = [b"" if tokenizer.is_special(i) else tokenizer.token_bytes(i) for i in ids]
    compiler = ConstraintCompiler(lambda: tokens, tokenizer.encode_continuation)
    started_s = time.perf_counter()
    compiler.build_matcher(Constraint.choice(["a"]))
    print(f"{len(tokens)} tokens, trie in {(time.perf_counter() - started_s) * 1e3:.0f} ms")
    return compiler


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("cases", type=Path)
    parser.add_argument("-n", type=int, default=300)
    options = parser.parse_args()
    tokenizer = load_tokenizer(options.tokenizer)
    compiler = build_compiler(tokenizer)
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    compile_ms: list[float] = []
    mask_us: list[float] = []
    for case in cases(options.cases, options.n):
        started_s = time.perf_counter()
        try:
            start = compiler.build_matcher(Constraint.json_schema(case["schema"]))  # type: ignore[arg-type]
        except RequestError as error:
            counts["schemas refused"] += 1
            reasons[str(error).split(": ", 2)[-1][:60]] += 1
            continue
        compile_ms.append((time.perf_counter() - started_s) * 1e3)
        counts["schemas compiled"] += 1
        for test in case["tests"]:  # type: ignore[attr-defined]
            matcher, accepted = start.clone(), True
            ids = tokenizer.encode_continuation(json.dumps(test["data"], ensure_ascii=False))
            try:
                for token_id in ids[:600]:
                    started_s = time.perf_counter()
                    matcher.mask()
                    mask_us.append((time.perf_counter() - started_s) * 1e6)
                    matcher.accept(token_id)
            except RequestError:
                accepted = False
            accepted = accepted and len(ids) <= 600 and matcher.is_complete
            counts[f"{'valid' if test['valid'] else 'invalid'} {'accepted' if accepted else 'refused'}"] += 1
    print(", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    for name, values in (("compile ms", compile_ms), ("mask us", mask_us)):
        low, high, top = np.percentile(values, [50, 99, 99.9])
        print(f"{name}: median {low:.1f}, 99 % {high:.1f}, 99.9 % {top:.1f}, most {max(values):.1f}, n {len(values)}")
    print("refused for:", "; ".join(f"{reason} ({n})" for reason, n in reasons.most_common(8)))


if __name__ == "__main__":
    main()
