"""A job's stream on its way from its worker to whoever reads it: a Redis stream per job, kept for a while for those who come late.

Redis may lose it at any moment. What is not here any more is in the job's transcript, event by event the same, when it has ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

import redis

from models.telemetry import metrics
from workers.channels import notify

# How long a stream may be silent.
TTL_S = 600
# After its end: whoever reads it is a moment behind at most, and who comes later has the transcript.
ENDED_TTL_S = 30


@dataclass(frozen=True)
class Chunk:
    """One event of the stream. n counts from 0 within its call; event is the whole of it, in ASCII, with its empty line."""

    dispatch_id: UUID
    n: int
    event: bytes


def channel(job_id: UUID) -> str:
    """Where it is said that this job's stream has grown; the message itself says nothing."""
    return f"ns:chunks:{job_id}"


def append(chunks: Sequence[Chunk], *, job_id: UUID) -> None:
    """These events, in order, can be read; whoever waits for them is told. Raises redis.RedisError: none of them can, and none later.

    What is here is always the beginning of the stream without a gap: one that Redis lost is not begun again in its middle.
    """
    key = _key(job_id)
    pipe = notify.client().pipeline(transaction=True)
    for chunk in chunks:
        pipe.xadd(key, {"d": chunk.dispatch_id.bytes, "n": chunk.n, "e": chunk.event}, nomkstream=chunk.n > 0)
    pipe.expire(key, TTL_S)
    pipe.publish(channel(job_id), b"")
    if None in pipe.execute():
        raise redis.ResponseError("Redis has lost the stream")


def shorten_ttl(job_id: UUID) -> None:
    """The job has ended and its transcript is stored: the stream will soon be gone. Raises redis.RedisError."""
    notify.client().expire(_key(job_id), ENDED_TTL_S)


def read_after(after: Mapping[UUID, str]) -> dict[UUID, tuple[str, list[Chunk]]]:
    """Of each of these jobs what came after the given place ("": from its beginning): the new place, and the events.

    One round trip for all of them; jobs without news are absent. Raises redis.RedisError.
    """
    pipe = notify.client().pipeline(transaction=False)
    for job_id, place in after.items():
        pipe.xrange(_key(job_id), min=f"({place}" if place else "-")
    found: dict[UUID, tuple[str, list[Chunk]]] = {}
    for job_id, entries in zip(after, pipe.execute(), strict=True):
        try:
            if entries:
                found[job_id] = (entries[-1][0].decode(), [_chunk(fields) for _, fields in entries])
        except (KeyError, ValueError):
            # As a newer version may write it: this job's readers get the transcript when it has ended.
            metrics.ignored.labels("ns:stream").inc()
    return found


def _key(job_id: UUID) -> str:
    return f"ns:stream:{job_id}"


def _chunk(fields: Mapping[bytes, bytes]) -> Chunk:
    return Chunk(dispatch_id=UUID(bytes=fields[b"d"]), n=int(fields[b"n"]), event=fields[b"e"])
