"""The end of an attempt, written in one transaction; kept, and if need be on disk, while Postgres is away.

A paid answer is never dropped: the write is fenced and may be repeated, so a file in the spool is replayed by any worker process
until it is stored.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

from models import artifact, crash, db, job, secret, usage
from models.errors import Unavailable
from models.job import Finding, Outcome, Result, Status
from models.settings import settings
from workers import retry, wake

log = logging.getLogger(__name__)

# How long the worker's thread itself tries before the answer goes to disk and the thread to other jobs.
TRY_S = 5.0
PAUSE_S = 0.25


@dataclass(frozen=True)
class Ending:
    """What is to be written. result None: the job goes back in line after delay_s, counting as a failure or not."""

    job_id: UUID
    dispatch_id: UUID
    key_id: int
    lane_id: int
    model: str
    finding: Finding
    result: Result | None = None
    delay_s: float = 0
    counts: bool = False
    why: str = ""


def write(ending: Ending) -> None:
    """The ending is stored, or in the spool when Postgres stays away. Waiters are told after the commit."""
    deadline = time.monotonic() + TRY_S
    while True:
        try:
            commit(ending)
            return
        except Unavailable:
            if time.monotonic() > deadline:
                spool(ending)
                return
            time.sleep(PAUSE_S)


def commit(ending: Ending) -> None:
    """One transaction with the result, the usage, the pictures, the event and the next turn; then the wake-ups."""
    crash.at("worker.before_finish")
    with db.begin() as session:
        if ending.result is None:
            took = job.put_back(
                session, ending.job_id, ending.dispatch_id, ending.finding, delay_s=ending.delay_s, counts=ending.counts, why=ending.why
            )
        else:
            took = _finish(session, ending, ending.result)
    crash.at("worker.after_finish")
    if not took:
        log.warning(
            "too late: the job went on without this attempt", extra={"job_id": str(ending.job_id), "dispatch_id": str(ending.dispatch_id)}
        )
    wake.job(ending.job_id, "ended" if ending.result else "queued")
    if ending.result is None or took:
        wake.line(ending.lane_id)


def _finish(session: db.Session, ending: Ending, result: Result) -> bool:
    row = job.finish(session, ending.job_id, ending.dispatch_id, result, ending.finding)
    if result.status == Status.SUCCEEDED and result.response is not None:
        answer = retry.parse(result.response)
        # Of a late answer too: it was paid for, whoever gets it.
        used = usage.read(answer)
        usage.write(session, used, dispatch_id=ending.dispatch_id, job_id=ending.job_id, key_id=ending.key_id, model=ending.model)
        if row is not None:
            artifact.store(session, ending.job_id, pictures(answer))
    return row is not None


def pictures(answer: Any) -> list[bytes]:
    """The pictures in an answer of the images endpoints, decoded; none where `data` holds something else."""
    if not isinstance(answer, dict) or not isinstance(answer.get("data"), list):
        return []
    found = []
    for item in answer["data"]:
        if isinstance(item, dict) and isinstance(item.get("b64_json"), str):
            try:
                found.append(base64.b64decode(item["b64_json"], validate=True))
            except binascii.Error:
                log.warning("a picture in an answer is not base64; the answer itself is kept")
    return found


def spool(ending: Ending) -> Path:
    """The ending is on disk, encrypted, fsynced, under its dispatch id."""
    folder = _folder()
    final, part = folder / f"{ending.dispatch_id}.ending", folder / f"{ending.dispatch_id}.part"
    with part.open("wb") as file:
        file.write(secret.seal(_dump(ending), bound_to=str(ending.dispatch_id)))
        file.flush()
        os.fsync(file.fileno())
    part.rename(final)
    log.warning("answer kept on disk until Postgres is back", extra={"job_id": str(ending.job_id), "dispatch_id": str(ending.dispatch_id)})
    return final


def replay() -> int:
    """Spooled endings are stored and their files gone; returns how many. Stops at the first that finds Postgres still away."""
    done = 0
    for file in sorted(_folder().glob("*.ending")):
        try:
            ending = _load(secret.unseal(file.read_bytes(), bound_to=file.stem))
        except FileNotFoundError:
            continue  # another process of this machine was first
        except ValueError:
            log.exception("a spooled answer cannot be read; it stays where it is", extra={"file": file.name})
            continue
        try:
            commit(ending)
        except Unavailable:
            return done
        file.unlink(missing_ok=True)
        done += 1
    return done


def _folder() -> Path:
    folder = settings().data_dir / "spool"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _dump(ending: Ending) -> bytes:
    plain = asdict(ending)
    if ending.result is not None and ending.result.response is not None:
        plain["result"]["response"] = base64.b64encode(ending.result.response).decode()
    return json.dumps(plain, default=str).encode()


def _load(text: bytes) -> Ending:
    plain = json.loads(text)
    finding = Finding(**{**plain["finding"], "outcome": Outcome(plain["finding"]["outcome"])})
    ending = Ending(
        **{**plain, "job_id": UUID(plain["job_id"]), "dispatch_id": UUID(plain["dispatch_id"]), "finding": finding, "result": None}
    )
    if (said := plain["result"]) is None:
        return ending
    body = base64.b64decode(said["response"]) if said["response"] is not None else None
    return replace(ending, result=Result(**{**said, "status": Status(said["status"]), "response": body}))
