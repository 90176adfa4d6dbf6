"""The client's own journal: what it was promised and what it got, also on disk, one JSON line for each thing that happened."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass
class Note:
    """One request. how: poll, wait, hook, stream or held. status and said: of the end, as the client saw it.

    turn: of its conversation, counted from 1 in the order of sending.
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
    said: str | None = None
    ended_at: float = 0.0


@dataclass(frozen=True)
class Span:
    """When a fault was on, in seconds since the epoch."""

    fault: str
    began_at: float
    ended_at: float


class Journal:
    """Every note, from all threads; the file's name is in every text and Idempotency-Key. odd: answers that no client should ever get."""

    def __init__(self, file: Path) -> None:
        self._file, self._name = file.open("a", buffering=1), file.stem
        self._lock = threading.Lock()
        self._notes: list[Note] = []
        self.odd: list[str] = []
        self.repeats = 0

    def __iter__(self) -> Iterator[Note]:
        return iter(list(self._notes))

    def begin(self, token: str, said: str, *, how: str, conversation: str | None = None, turn: int = 0) -> Note:
        with self._lock:
            n = len(self._notes)
            note = Note(n, token, f"{said} {self._name}-{n}", how, f"{self._name}-{n}", conversation, turn)
            self._notes.append(note)
        return note

    def accept(self, note: Note, job_id: str) -> None:
        """The API has promised this job. Another id for the same Idempotency-Key is a broken promise."""
        if note.job_id not in (None, job_id):
            self.wonder(f"request {note.n} was {note.job_id} and is {job_id} now")
        if note.job_id is None:
            note.job_id, note.accepted_at = job_id, time.time()
            self._write(note)
        else:
            self.repeats += 1

    def end(self, note: Note, status: str, *, said: str | None = None) -> None:
        """The client was told how it ended. A second, different end is a broken promise."""
        if note.status not in (None, status):
            self.wonder(f"{note.job_id} had {note.status} and has {status} now")
        note.status, note.said, note.ended_at = status, said if said is not None else note.said, time.time()
        self._write(note)

    def wonder(self, what: str) -> None:
        self.odd.append(what)

    def __len__(self) -> int:
        return len(self._notes)

    def since(self, n: int) -> list[Note]:
        return self._notes[n:]

    def _write(self, note: Note) -> None:
        with self._lock:
            self._file.write(json.dumps(asdict(note)) + "\n")
