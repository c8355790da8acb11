"""Several requests from asyncio: they run in one batch, and each has the result it would have alone.

python examples/many_with_asyncio.py
"""

import asyncio

import phlite


async def write(llm: phlite.LLM, topic: str) -> str:
    """Return a haiku about the topic."""
    completion = await llm.achat(f"Write a haiku about {topic}", seed=7, temperature=0.7)
    return completion.text


async def main() -> None:
    """Write four haiku side by side."""
    llm = phlite.load("haiku")
    topics = ["ice hockey", "the moon", "a train", "bread"]
    for haiku in await asyncio.gather(*[write(llm, topic) for topic in topics]):
        print(haiku, end="\n\n")


asyncio.run(main())
