"""Print an answer while it is generated, then what is known about it.

python examples/stream.py
"""

import phlite

llm = phlite.load("haiku")
stream = llm.chat_stream("Write a haiku about the sea", seed=7, temperature=0.7)
for piece in stream:
    print(piece, end="", flush=True)
print()

completion = stream.completion
assert completion is not None
print(f"-- ended by {completion.finish_reason} ({completion.stop!r}) after {completion.completion_tokens} tokens")
