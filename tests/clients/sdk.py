"""openai-python, sync and async: the same calls of both, as in its README."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai

from tests.clients.calls import CHAT, EDIT, EMBED, IMAGE, MODEL, MODELS, MODERATE, PARTIALS, STREAM, Call, Seen
from tests.upstream.images import png

PICTURES = [("first.png", png("first")), ("second.png", png("second"))]
# The async client returns awaitables for the same calls.
CALLS: dict[str, Callable[[Any, Call], Any]] = {
    CHAT: lambda sdk, call: sdk.chat.completions.create(**call.chat),
    STREAM: lambda sdk, call: sdk.chat.completions.create(stream=True, **call.chat),
    IMAGE: lambda sdk, call: sdk.images.generate(model=call.model, prompt=call.say, **call.more),
    PARTIALS: lambda sdk, call: sdk.images.generate(model=call.model, prompt=call.say, stream=True, partial_images=2),
    EDIT: lambda sdk, call: sdk.images.edit(model=call.model, prompt=call.say, image=PICTURES),
    EMBED: lambda sdk, call: sdk.embeddings.create(model=call.model, input=[call.say, "second"]),
    MODERATE: lambda sdk, call: sdk.moderations.create(input=call.say),
    MODEL: lambda sdk, call: sdk.models.retrieve(call.say),
    MODELS: lambda sdk, call: sdk.models.list(),
}


def python(calls: Sequence[Call]) -> list[Seen]:
    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(_call_sync, calls))


def python_async(calls: Sequence[Call]) -> list[Seen]:
    async def gather() -> list[Seen]:
        return await asyncio.gather(*map(_call_async, calls))

    return asyncio.run(gather())


def _call_sync(call: Call) -> Seen:
    seen, began = Seen(), time.monotonic()
    with openai.OpenAI(base_url=call.base, api_key=call.key, **call.options) as sdk:
        try:
            answer = CALLS[call.kind](sdk, call)
            if call.kind in ON_CHUNK:
                for chunk in answer:
                    ON_CHUNK[call.kind](seen, chunk)
            else:
                ON_RESULT[call.kind](seen, answer)
        except openai.OpenAIError as error:
            seen.fail(error)
    seen.took_s = time.monotonic() - began
    return seen


async def _call_async(call: Call) -> Seen:
    seen, began = Seen(), time.monotonic()
    async with openai.AsyncOpenAI(base_url=call.base, api_key=call.key, **call.options) as sdk:
        try:
            answer = await CALLS[call.kind](sdk, call)
            if call.kind in ON_CHUNK:
                async for chunk in answer:
                    ON_CHUNK[call.kind](seen, chunk)
            else:
                ON_RESULT[call.kind](seen, answer)
        except openai.OpenAIError as error:
            seen.fail(error)
    seen.took_s = time.monotonic() - began
    return seen


def _chat(seen: Seen, answer: Any) -> None:
    (choice,) = answer.choices
    seen.id, seen.finish, seen.usage = answer.id, choice.finish_reason, answer.usage.to_dict()
    seen.show(choice.message.content)


def _chunk(seen: Seen, chunk: Any) -> None:
    seen.id = chunk.id
    seen.usage = chunk.usage and chunk.usage.to_dict()
    for choice in chunk.choices:
        seen.finish = choice.finish_reason or seen.finish
        if choice.delta.content:
            seen.show(choice.delta.content)


def _image(seen: Seen, answer: Any) -> None:
    seen.pictures = [picture.b64_json or picture.url for picture in answer.data]
    seen.usage = answer.usage and answer.usage.to_dict()


def _partial(seen: Seen, event: Any) -> None:
    seen.data.append(event.type)
    seen.pictures.append(event.b64_json)


def _vectors(seen: Seen, answer: Any) -> None:
    seen.data = [item.embedding for item in answer.data]
    seen.usage = answer.usage.to_dict()


def _flags(seen: Seen, answer: Any) -> None:
    seen.data = [[item.flagged, item.categories.violence] for item in answer.results]


ON_CHUNK: dict[str, Callable[[Seen, Any], None]] = {
    STREAM: _chunk,
    PARTIALS: _partial,
    MODELS: lambda seen, model: seen.data.append(model.id),
}
ON_RESULT: dict[str, Callable[[Seen, Any], None]] = {
    CHAT: _chat,
    IMAGE: _image,
    EDIT: _image,
    EMBED: _vectors,
    MODERATE: _flags,
    MODEL: lambda seen, model: seen.data.append(model.id),
}
