"""The bare script: AsyncOpenAI and a semaphore, as one writes it first. No queue, no database: what it does not finish is lost.

python -m bench.peers.script '{"base_url": …, "key": …, "at_once": 16}' says {"ready": true}, takes a batch a line, and for each batch
says a line when all of it has been answered. It ends when there are no more lines.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass

from openai import AsyncOpenAI

from bench.peers.peer import MODEL, PROMPT

RETRIES = 1_000


@dataclass(frozen=True)
class Chore:
    """What it is started with. key: of the upstream, or of a proxy in front of it."""

    base_url: str
    key: str
    at_once: int


@dataclass(frozen=True)
class Batch:
    """users: one call for each, in this order."""

    users: list[str]
    max_tokens: int


class Script:
    def __init__(self, chore: Chore) -> None:
        # The library obeys Retry-After; whoever wants all answers lets it go on.
        self._client = AsyncOpenAI(base_url=chore.base_url, api_key=chore.key, max_retries=RETRIES)
        self._gate = asyncio.Semaphore(chore.at_once)

    async def run(self) -> None:
        running = []
        while line := await asyncio.to_thread(sys.stdin.readline):
            running.append(asyncio.create_task(self._answer(Batch(**json.loads(line)))))
        await asyncio.gather(*running)

    async def _answer(self, batch: Batch) -> None:
        took_s = await asyncio.gather(*(self._one(user, batch.max_tokens) for user in batch.users))
        print(json.dumps({"took_s": [round(each, 6) for each in took_s]}), flush=True)

    async def _one(self, user: str, max_tokens: int) -> float:
        async with self._gate:
            began = time.perf_counter()
            asked = {"role": "user", "content": PROMPT.format(user=user)}
            await self._client.chat.completions.create(model=MODEL, max_tokens=max_tokens, messages=[asked], user=user)  # type: ignore[list-item]  # a plain dict
            return time.perf_counter() - began


async def main() -> None:
    script = Script(Chore(**json.loads(sys.argv[1])))
    print(json.dumps({"ready": True}), flush=True)
    await script.run()


if __name__ == "__main__":
    asyncio.run(main())
