"""The engine step by step: ids in, ids out, many sequences in each forward pass.

python examples/step_loop.py
"""

import phlite

llm = phlite.load("haiku")
engine = llm.engine
params = phlite.SamplingParams(seed=7, temperature=0.7, repeat_penalty=1.0)
sequences = [engine.add(llm.chat_ids(f"Write a haiku about {topic}"), params) for topic in ("ice hockey", "rain")]

n_steps = 0
while engine.has_unfinished:
    n_steps += 1
    for output in engine.step():
        if output.finish_reason is not None:
            print(f"step {n_steps}: a sequence of {len(output.sequence.output_ids)} ids ends ({output.finish_reason})")

for sequence in sequences:
    print(llm.tokenizer.decode(sequence.output_ids), end="\n\n")
