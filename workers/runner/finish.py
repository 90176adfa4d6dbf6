"""The end of an attempt, written in one transaction; kept, and if need be on disk, while Postgres is away.

A paid answer is never dropped: the write is fenced and may be repeated, so a file in the spool is replayed by any worker process
until it is stored.
"""

from __future__ import annotations

import base64
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

from models.billing import usage
from models.billing.usage import Usage
from models.config.settings import settings
from models.content import artifacts, chat_messages, image_placeholders, token_estimate
from models.content.endpoints import CHAT
from models.content.image_placeholders import Picture
from models.database import db
from models.database.db import Transaction
from models.jobs import completion, requeue, states
from models.jobs.states import AttemptResult, JobResult, Outcome, Status
from models.platform import atomic_file, crash_points, crypto, wire
from models.platform.errors import Unavailable
from models.sessions import stored_completions
from models.telemetry import metrics
from workers.channels import notify
from workers.observe import counters
from workers.runner.spool_backoff import SpoolBackoff
from workers.upstream import answer_body

log = logging.getLogger(__name__)

# How long the worker's thread itself tries before the answer goes to disk and the thread to other jobs.
TRY_S = 5.0
PAUSE_S = 0.25
_BYTES = ("response", "transcript")


@dataclass(frozen=True)
class AttemptRecord:
    """What is to be written. result None: the job goes back in line after delay_s, counting as a failure or not.

    is_turn: of a conversation, in which its answer will be remembered. throttled, refusal: as of job.put_back. asked_tokens: our count of
    the prompt, which is only taken where the answer does not say; None: such a call costs nothing. store_as: the metadata to store with
    the answer; None: the request does not store.
    """

    job_id: UUID
    dispatch_id: UUID
    key_id: int
    lane_id: int
    model: str
    finding: AttemptResult
    result: JobResult | None = None
    delay_s: float = 0
    counts: bool = False
    why: str = ""
    is_turn: bool = False
    throttled: bool = False
    refusal: Mapping[str, object] | None = None
    asked_tokens: int | Callable[[], int] | None = None
    store_as: dict[str, str] | None = None


def write(ending: AttemptRecord) -> Usage | None:
    """The ending is stored, or in the spool when Postgres stays away. Waiters are told after the commit.

    Returns what the answer used, None where it is not known: of what is no answer, or was spooled.
    """
    deadline = time.monotonic() + TRY_S
    while True:
        try:
            return commit(ending)
        except Unavailable:
            if time.monotonic() > deadline:
                if _spools(ending):
                    return None
                deadline = time.monotonic() + TRY_S
            time.sleep(PAUSE_S)


def put_back(row: Any, *, why: str, delay_s: float) -> None:
    """The admitted job, which nobody has claimed, waits in its line again. row: as of job.claimable.

    Where Postgres is away, the pacer finds it unclaimed after a while.
    """
    try:
        with db.begin() as session:
            requeue.requeue_job(session, row.id, row.dispatch_id, AttemptResult(Outcome.NOT_SENT), delay_s=delay_s, reason=why)
    except Unavailable:
        return
    notify.call_ended(row.id, "queued", lane_id=row.lane_id, receivers=())


def _spools(ending: AttemptRecord) -> bool:
    """Whether it is on disk. False when the disk is full or gone: the thread goes on trying Postgres, because it holds the only copy."""
    try:
        with db.moving(_size(ending), gives_up=False):
            spool(ending)
    except OSError as error:
        log.error(
            "an answer can be stored neither in Postgres nor on disk; trying again",
            extra={"job": wire.public_id(ending.job_id), "folder": str(settings().data_dir / "spool"), "error": error.strerror},
        )
        return False
    return True


def commit(ending: AttemptRecord) -> Usage | None:
    """One transaction with the result, the usage, its price, the pictures, the event and the next turn; then the wake-ups.

    Returns what the answer used, where it is one.
    """
    crash_points.at("worker.before_finish")
    with db.moving(_size(ending)):
        return _commit(ending)


def _size(ending: AttemptRecord) -> int:
    result = ending.result
    return 0 if result is None else len(result.response or b"") + len(result.transcript or b"")


def _commit(ending: AttemptRecord) -> Usage | None:
    ending, pictures = _cut(ending)
    due: Sequence[str] | None = None
    used: Usage | None = None
    if ending.result is None:
        with db.begin() as session:
            took = requeue.requeue_job(
                session, ending.job_id, ending.dispatch_id, ending.finding, delay_s=ending.delay_s, counts=ending.counts, reason=ending.why,
                throttled=ending.throttled, refusal=ending.refusal,
            )  # fmt: skip
    else:
        used, finding = _used(ending, ending.result)
        row = _finish(ending, ending.result, pictures, used, finding)
        took, due = row is not None, row.due if row is not None else None
    crash_points.at("worker.after_finish")
    counters.ended(ending)
    if not took:
        log.warning(
            "too late: the job went on without this attempt",
            extra={"job": wire.public_id(ending.job_id), "dispatch_id": str(ending.dispatch_id)},
        )
    # Who may go now: the job again, or its conversation's next turn.
    moves = ending.result is None or ending.is_turn
    notify.call_ended(
        ending.job_id, "ended" if ending.result else "queued", lane_id=ending.lane_id if moves else None, receivers=due or ()
    )  # fmt: skip
    return used


def _cut(ending: AttemptRecord) -> tuple[AttemptRecord, Sequence[Picture]]:
    """The ending with marks for the pictures of its answer, and those. Before the transaction: 50 MB take a tenth of a second."""
    result = ending.result
    if result is None or result.status != Status.SUCCEEDED or result.response is None:
        return ending, []
    made = image_placeholders.cut(result.response, result.transcript)
    weight = (
        token_estimate.estimate_messages([said], model=ending.model)
        if ending.is_turn and (said := chat_messages.answer(made.response))
        else 0
    )
    return replace(ending, result=replace(result, response=made.response, transcript=made.transcript, turn_tokens=weight)), made.pictures


def _finish(
    ending: AttemptRecord, result: JobResult, pictures: Sequence[Picture], used: Usage | None, finding: AttemptResult
) -> Any | None:
    if not ending.is_turn and not pictures and ending.store_as is None:
        with db.autocommit() as session:
            row = completion.finish_fast(session, ending.job_id, ending.dispatch_id, result, finding, used)
        if row is not None:
            return row
    with db.begin() as session:
        row = completion.finish(session, ending.job_id, ending.dispatch_id, result, finding)
        if used is not None:
            # Of a late answer too: it was paid for, whoever gets it.
            usage.write(
                session, used, dispatch_id=ending.dispatch_id, job_id=ending.job_id, key_id=ending.key_id, model=ending.model,
                cost_microusd=finding.cost_microusd,
            )  # fmt: skip
        if row is not None:
            artifacts.store(session, ending.job_id, pictures)
            if ending.store_as is not None:
                _store(session, ending, result, ending.store_as)
        return row


def _store(session: Transaction, ending: AttemptRecord, result: JobResult, metadata: dict[str, str]) -> None:
    stored_completions.insert(
        session, job_id=ending.job_id, key_id=ending.key_id, endpoint=CHAT, model=ending.model,
        answer=answer_body.parse(result.response or b""), metadata=metadata,
    )  # fmt: skip


def _used(ending: AttemptRecord, result: JobResult) -> tuple[Usage | None, AttemptResult]:
    """What an answer used, as it says or as we estimate it, and what was found with its price; None for what is no answer."""
    asked = ending.asked_tokens
    count = (lambda: asked) if isinstance(asked, int) else asked
    if result.response is None or not (result.status == Status.SUCCEEDED or _is_unreadable(result)):
        return None, ending.finding
    if result.status == Status.SUCCEEDED:
        used = usage.read(answer_body.parse(result.response), asked=count, model=ending.model)
    else:
        used = usage.of_unreadable(count() if count else 0, result.response, model=ending.model)
    cost_microusd = usage.price(used, model=ending.model)
    return used, replace(ending.finding, cost_microusd=cost_microusd, is_estimated=used.estimated)


def _is_unreadable(result: JobResult) -> bool:
    """An answer was kept that nobody could read: it may have been paid for. Of a stream that had begun only its last event was kept."""
    return (result.error or {}).get("code") == states.UNREADABLE and result.transcript is None


def spool(ending: AttemptRecord) -> Path:
    """The ending is on disk, encrypted, fsynced with its name, under its dispatch id. Raises OSError."""
    final = _folder() / f"{ending.dispatch_id}.ending"
    atomic_file.write(final, crypto.seal(_dump(ending), bound_to=str(ending.dispatch_id)))
    about = {"job": wire.public_id(ending.job_id), "dispatch_id": str(ending.dispatch_id)}
    log.warning("answer kept on disk until Postgres is back", extra=about)
    return final


def replay(*, now: float | None = None) -> int:
    """Stores spooled endings and deletes their files; returns how many. Ends when Postgres is away.

    A file that cannot be read or stored stays, and is tried again by and by (workers/runner/spool_backoff.py); the others go on.
    now: monotonic seconds.
    """
    now = time.monotonic() if now is None else now
    done = 0
    for file in sorted(_folder().glob("*.ending")):
        if not _backoff.is_due(file.name, now=now):
            continue
        try:
            done += _replay(file)
        except Unavailable as error:
            if not _is_postgres_there():
                break
            _pass_over(file, error, now=now)
        except Exception as error:
            # A border: no single file may hold up the answers behind it.
            _pass_over(file, error, now=now)
    left = {file.name for file in _folder().glob("*.ending")}
    _backoff.keep_only(left)
    metrics.spooled.labels("refused").set(len(_backoff))
    metrics.spooled.labels("waiting").set(len(left) - len(_backoff))
    return done


_backoff = SpoolBackoff()


def _replay(file: Path) -> bool:
    """Whether this file was stored; False: another process of this machine was first."""
    try:
        sealed = file.read_bytes()
    except FileNotFoundError:
        return False
    commit(_load(crypto.unseal(sealed, bound_to=file.stem)))
    file.unlink(missing_ok=True)
    return True


def _pass_over(file: Path, error: Exception, *, now: float) -> None:
    again_s = _backoff.note_failure(file.name, now=now)
    # Not the error's message: it may quote the answer.
    about = {"file": file.name, "error": type(error).__name__, "again_s": again_s}
    log.error("a spooled answer cannot be stored; it stays on disk and is tried again later", extra=about)


def _is_postgres_there() -> bool:
    try:
        db.ping()
    except Unavailable:
        return False
    return True


def _folder() -> Path:
    folder = settings().data_dir / "spool"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _dump(ending: AttemptRecord) -> bytes:
    """A line of JSON, which says how long the bytes behind it are, and those: encoded in the JSON they would be copied five times."""
    asked = ending.asked_tokens
    result = ending.result
    kept: dict[str, bytes] = {}
    if result is not None:
        kept = {name: found for name in _BYTES if (found := getattr(result, name)) is not None}
        result = replace(result, response=None, transcript=None)
    plain = asdict(replace(ending, result=result, asked_tokens=asked() if callable(asked) else asked))
    plain["bytes"] = {name: len(found) for name, found in kept.items()}
    return b"".join([json.dumps(plain, default=str).encode(), b"\n", *kept.values()])


def _load(text: bytes) -> AttemptRecord:
    line, _, rest = text.partition(b"\n")
    plain = json.loads(line)
    kept, at = {}, 0
    for name, length in plain.pop("bytes", {}).items():
        kept[name], at = rest[at : at + length], at + length
    finding = AttemptResult(**{**plain["finding"], "outcome": Outcome(plain["finding"]["outcome"])})
    ending = AttemptRecord(
        **{**plain, "job_id": UUID(plain["job_id"]), "dispatch_id": UUID(plain["dispatch_id"]), "finding": finding, "result": None}
    )
    if (said := plain["result"]) is None:
        return ending
    # Of an older version, which wrote them in base64 into the one line
    old = {name: base64.b64decode(said[name]) for name in _BYTES if said.get(name) is not None}
    return replace(ending, result=JobResult(**{**said, "status": Status(said["status"]), **old, **kept}))
