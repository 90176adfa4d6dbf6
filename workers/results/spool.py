"""The spool: encrypted files on disk that hold attempt records while Postgres is unavailable."""

from __future__ import annotations

import base64
import json
import logging
from dataclasses import asdict, replace
from pathlib import Path
from uuid import UUID

from models.config.settings import settings
from models.jobs.states import AttemptResult, JobResult, Outcome, Status
from models.platform import atomic_file, crypto, wire
from workers.results.attempt_record import AttemptRecord

log = logging.getLogger(__name__)

_BODIES = ("response", "transcript")


def save(record: AttemptRecord) -> Path:
    """Writes the record to an encrypted file named by its dispatch id, fsynced with its name. Raises OSError."""
    file = folder() / f"{record.dispatch_id}.ending"
    atomic_file.write(file, crypto.seal(encode(record), bound_to=str(record.dispatch_id)))
    ids = {"job": wire.public_id(record.job_id), "dispatch_id": str(record.dispatch_id)}
    log.warning("answer kept on disk until Postgres is back", extra=ids)
    return file


def files() -> list[Path]:
    """The files in the spool."""
    return sorted(folder().glob("*.ending"))


def load(file: Path) -> AttemptRecord | None:
    """The record in this file; None: another process has replayed and deleted it."""
    try:
        sealed = file.read_bytes()
    except FileNotFoundError:
        return None
    return decode(crypto.unseal(sealed, bound_to=file.stem))


def folder() -> Path:
    """The spool's folder, which is created where it is missing. Raises OSError."""
    path = settings().data_dir / "spool"
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def encode(record: AttemptRecord) -> bytes:
    """One line of JSON with the lengths of the bodies, then the bodies. Inside the JSON they would be copied five times."""
    result = record.result
    bodies: dict[str, bytes] = {}
    if result is not None:
        bodies = {name: body for name in _BODIES if (body := getattr(result, name)) is not None}
        result = replace(result, response=None, transcript=None)
    count = record.prompt_tokens
    fields = asdict(replace(record, result=result, asked_tokens=count() if count else None))
    fields["bytes"] = {name: len(body) for name, body in bodies.items()}
    return b"".join([json.dumps(fields, default=str).encode(), b"\n", *bodies.values()])


def decode(content: bytes) -> AttemptRecord:
    """The record that `encode` wrote. Raises ValueError, KeyError, TypeError for anything else."""
    line, _, rest = content.partition(b"\n")
    fields = json.loads(line)
    bodies, at = {}, 0
    for name, length in fields.pop("bytes", {}).items():
        bodies[name], at = rest[at : at + length], at + length
    attempt = AttemptResult(**{**fields["finding"], "outcome": Outcome(fields["finding"]["outcome"])})
    ids = {"job_id": UUID(fields["job_id"]), "dispatch_id": UUID(fields["dispatch_id"])}
    record = AttemptRecord(**{**fields, **ids, "finding": attempt, "result": None})
    if (result := fields["result"]) is None:
        return record
    # Older versions wrote the bodies in base64 into the one line.
    old = {name: base64.b64decode(result[name]) for name in _BODIES if result.get(name) is not None}
    return replace(record, result=JobResult(**{**result, "status": Status(result["status"]), **old, **bodies}))
