"""Helpers that read the stream of a job, from Redis and from its transcript."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from workers.answers.sse import EventParser
from workers.channels import token_stream
from workers.channels.token_stream import Chunk


def heard(job_id: UUID) -> list[Chunk]:
    """The chunks of the stream in Redis."""
    return token_stream.read_after({job_id: ""}).get(job_id, ("", []))[1]


def events(transcript: bytes) -> list[Any]:
    """The JSON values of its events."""
    return [json.loads(event.data) for event in EventParser().feed(transcript)]


def content(transcript: bytes) -> str:
    """The text of a chat with one choice."""
    return "".join(result["choices"][0]["delta"].get("content") or "" for result in events(transcript) if result["choices"])
