"""Applies a behaviour to the connection of one call. Everything that the behaviour does not set stays normal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from tests.upstream.answer import END_OF_CHUNKS, Answer, chunk, event
from tests.upstream.behaviour import Behaviour
from tests.upstream.errors import faked, shaped
from tests.upstream.garbage import spoil
from tests.upstream.journal import CUT, ERROR, HANG, RESET
from tests.upstream.packing import pack
from tests.upstream.surplus import leave, overflow
from tests.upstream.usages import with_usage
from tests.upstream.wire import Connection

HOLD_S = 60
PIECE_BYTES = 65_536
DRIP_STEP_S = 0.02
FLUSH_S = 0.02  # bytes written before a reset need this time to arrive before it


class Held:
    """Calls that wait for a release, oldest first."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[None], None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self._waiting[future] = None
        try:
            await asyncio.wait([future], timeout=HOLD_S)
        finally:
            self._waiting.pop(future, None)

    def release(self, *, most: int | None = None) -> int:
        released = list(self._waiting)[:most]
        for future in released:
            del self._waiting[future]
            future.set_result(None)
        return len(released)


@dataclass(slots=True)
class Turn:
    """A call that is being answered.

    end: records the outcome. head_lines: the headers of every response to this call.
    """

    connection: Connection
    held: Held
    end: Callable[[str], None]
    mark: Callable[[str], None]
    head_lines: Callable[[], str]
    answer: Callable[[], Answer]


async def perform(how: Behaviour, turn: Turn, *, delay_s: float) -> None:
    if how.hold:
        await turn.held.wait()
    if delay_s:
        await asyncio.sleep(delay_s)
    if how.informational:
        turn.connection.write(f"HTTP/1.1 {how.informational} Early\r\nx-early: 1\r\n\r\n".encode())
    if how.reset == "before":
        turn.end(RESET)
        return turn.connection.abort()
    if how.hang == "before":
        return await _hang(turn)
    answer = _answer(how, turn)
    if how.garbage:
        turn.end(str(answer.status))
        return spoil(answer, how.garbage, turn.connection, turn.head_lines())
    if how.surplus:
        turn.end(str(answer.status))
        return await overflow(answer, how.surplus, turn.connection, turn.head_lines())
    await _send(answer, how, turn)
    if how.leaves:
        leave(turn.connection, how.leaves)


async def _send(answer: Answer, how: Behaviour, turn: Turn) -> None:
    turn.connection.write(answer.head(turn.head_lines()))
    if how.hang:
        return await _hang(turn)
    if how.reset:
        return await _reset(answer, turn)
    if answer.events is None:
        return await _body(answer, how, turn)
    await _events(answer.events, answer.status, how, turn)


def _answer(how: Behaviour, turn: Turn) -> Answer:
    if how.redirect:
        return Answer(how.status or 307, b"", headers=f"location: {how.redirect}\r\n")
    if how.shape:
        return shaped(how, turn.answer())
    if how.status and how.status >= 400:
        return faked(how)
    answer = turn.answer()
    if how.usage:
        answer = with_usage(answer, how.usage)
    if how.huge_mb:
        padding = b'{"x_padding":"' + b"x" * int(how.huge_mb * 1_000_000) + b'",'
        answer.body = answer.body.replace(b"{", padding, 1)
        if answer.events:
            answer.events[0] = answer.events[0].replace(b"{", padding, 1)
    if how.picture_mb:
        more = b'"b64_json":"' + b"A" * (4 * int(how.picture_mb * 250_000))
        answer.body = answer.body.replace(b'"b64_json":"', more)
        answer.events = answer.events and [event.replace(b'"b64_json":"', more) for event in answer.events]
    return pack(answer, how.packed) if how.packed else answer


async def _hang(turn: Turn) -> None:
    turn.mark(HANG)
    await asyncio.get_running_loop().create_future()


async def _reset(answer: Answer, turn: Turn) -> None:
    half = chunk(answer.events[0]) if answer.events else answer.body[: len(answer.body) // 2]
    turn.connection.write(half)
    await asyncio.sleep(FLUSH_S)
    turn.end(RESET)
    turn.connection.abort()


async def _body(answer: Answer, how: Behaviour, turn: Turn) -> None:
    """Record the end in the journal just before the last chunk is written."""
    outcome = ERROR if how.shape in ("in_200", "in_200_list") else str(answer.status)
    size = max(1, int(how.drip * DRIP_STEP_S)) if how.drip else PIECE_BYTES
    starts = range(0, len(answer.body), size) or range(1)
    for start in starts:
        if start == starts[-1]:
            turn.end(outcome)
        turn.connection.write(answer.body[start : start + size])
        await turn.connection.drain()
        if how.drip:
            await asyncio.sleep(size / how.drip)


async def _events(events: list[bytes], status: int, how: Behaviour, turn: Turn) -> None:
    for index, sent in enumerate(events):
        if index == how.hold_after:
            await turn.held.wait()
        if how.cut_after == index:
            turn.end(CUT)
            return turn.connection.close()
        if how.error_after == index:
            events = [event({"error": {"message": "The server had an error.", "type": "server_error", "param": None, "code": None}})]
            turn.end(ERROR)
            break
        if how.garble_after == index:
            events = [sent[: len(sent) // 2] + b"\n\n"]
            break
        if how.end_after == index:
            turn.end(str(status))
            return turn.connection.write(END_OF_CHUNKS)
        if how.chunk_delay is not None:
            await asyncio.sleep(how.chunk_delay)
        if index + 1 < len(events):
            turn.connection.write(chunk(sent))
            await turn.connection.drain()
    turn.end(str(status))
    turn.connection.write(chunk(events[-1]) + END_OF_CHUNKS)
