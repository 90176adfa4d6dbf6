"""Client-side journal: each promise and result that the clients saw, also on disk as JSON lines."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass
class RequestRecord:
    """One request. how: poll, wait, hook, stream or held. status and content: its end, as the client saw it.

    turn: its number in the conversation, counted from 1 in the order of sending.
    """

    n: int
    token: str
    text: str
    how: str
    idempotency_key: str
    conversation: str | None = None
    turn: int = 0
    job_id: str | None = None
    accepted_at: float = 0.0
    status: str | None = None
    content: str | None = None
    ended_at: float = 0.0


@dataclass(frozen=True)
class FaultWindow:
    """When a fault was active, in seconds since the epoch."""

    fault: str
    began_at: float
    ended_at: float


class Journal:
    """The records of all threads. The file's name is in every prompt and Idempotency-Key.

    unexpected: responses that no client may ever get.
    """

    def __init__(self, file: Path) -> None:
        self._file, self._name = file.open("a", buffering=1), file.stem
        self._lock = threading.Lock()
        self._records: list[RequestRecord] = []
        self.unexpected: list[str] = []
        self.repeats = 0

    def __iter__(self) -> Iterator[RequestRecord]:
        return iter(list(self._records))

    def begin(self, token: str, prompt: str, *, how: str, conversation: str | None = None, turn: int = 0) -> RequestRecord:
        with self._lock:
            n = len(self._records)
            record = RequestRecord(n, token, f"{prompt} {self._name}-{n}", how, f"{self._name}-{n}", conversation, turn)
            self._records.append(record)
        return record

    def accept(self, record: RequestRecord, job_id: str) -> None:
        """The API accepted the job. Another id for the same Idempotency-Key is a violation."""
        if record.job_id not in (None, job_id):
            self.report_unexpected(f"request {record.n} was {record.job_id} and is {job_id} now")
        if record.job_id is None:
            record.job_id, record.accepted_at = job_id, time.time()
            self._write(record)
        else:
            self.repeats += 1

    def end(self, record: RequestRecord, status: str, *, content: str | None = None) -> None:
        """The client saw the job end. A second, different end is a violation."""
        if record.status not in (None, status):
            self.report_unexpected(f"{record.job_id} had {record.status} and has {status} now")
        record.status, record.content, record.ended_at = status, content if content is not None else record.content, time.time()
        self._write(record)

    def report_unexpected(self, description: str) -> None:
        self.unexpected.append(description)

    def __len__(self) -> int:
        return len(self._records)

    def since(self, n: int) -> list[RequestRecord]:
        return self._records[n:]

    def _write(self, record: RequestRecord) -> None:
        with self._lock:
            self._file.write(json.dumps(asdict(record)) + "\n")
