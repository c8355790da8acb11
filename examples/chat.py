"""A conversation: every turn is rendered with the model's own chat template.

python examples/chat.py
"""

import phlite

llm = phlite.load("haiku")
params = phlite.SamplingParams(seed=7, temperature=0.7, repeat_penalty=1.0)
messages: list[phlite.Message] = []
for question in ["Who are you?", "Write a haiku about winter"]:
    messages.append({"role": "user", "content": question})
    answer = llm.chat(messages, params).text
    messages.append({"role": "assistant", "content": answer})
    print(f"> {question}\n{answer}\n")
