"""Token streams: one Redis stream of SSE events per job, written by its worker and read by the API.

Redis may lose a stream at any moment. After the job's end its transcript in Postgres holds the same events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

import redis

from models.telemetry import metrics
from workers.channels import notify

# A stream without a new event expires after this time.
TTL_S = 600
# After the job's end: readers are a moment behind at most, and later ones read the transcript.
ENDED_TTL_S = 30


@dataclass(frozen=True)
class Chunk:
    """One event of the stream. n counts from 0 within its call; event: the whole SSE event in ASCII, with its empty line."""

    dispatch_id: UUID
    n: int
    event: bytes


def channel(job_id: UUID) -> str:
    """Returns the pub/sub channel that is notified of new events; its messages are empty."""
    return f"ns:chunks:{job_id}"


def append(chunks: Sequence[Chunk], *, job_id: UUID) -> None:
    """Appends events in order and notifies the readers. Raises redis.RedisError: then none was appended, and no later one can be.

    A stream always holds its events from the first one on without a gap: a stream that Redis lost is not restarted in the middle.
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
    """Lets the stream of an ended job expire soon; its transcript is stored. Raises redis.RedisError."""
    notify.client().expire(_key(job_id), ENDED_TTL_S)


def read_after(after: Mapping[UUID, str]) -> dict[UUID, tuple[str, list[Chunk]]]:
    """Returns the events of each job after the given position ("": from the first), with the new position.

    One round trip for all jobs; jobs without new events are absent. Raises redis.RedisError.
    """
    pipe = notify.client().pipeline(transaction=False)
    for job_id, position in after.items():
        pipe.xrange(_key(job_id), min=f"({position}" if position else "-")
    streams: dict[UUID, tuple[str, list[Chunk]]] = {}
    for job_id, entries in zip(after, pipe.execute(), strict=True):
        try:
            if entries:
                streams[job_id] = (entries[-1][0].decode(), [_chunk(fields) for _, fields in entries])
        except (KeyError, ValueError):
            # A newer version may write other fields: then readers get the transcript after the job's end.
            metrics.ignored.labels("ns:stream").inc()
    return streams


def _key(job_id: UUID) -> str:
    return f"ns:stream:{job_id}"


def _chunk(fields: Mapping[bytes, bytes]) -> Chunk:
    return Chunk(dispatch_id=UUID(bytes=fields[b"d"]), n=int(fields[b"n"]), event=fields[b"e"])
