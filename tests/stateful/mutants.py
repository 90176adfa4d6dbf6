"""`python -m tests.stateful.mutants`: breaks one promise at a time in a copy of the code, and shows whether the tests detect it.

Each mutant changes one place, or all places that together keep one promise. A mutant that
tests/stateful/test_state_machine.py does not detect has survived, and the command exits with 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click

ROOT = Path(__file__).parents[2]
COPIED = ("api", "cli", "deploy", "models", "tests", "workers", "pyproject.toml")
PYTEST = ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/stateful/test_state_machine.py")
# Exit codes of pytest: failed, passed. Any other code is an error.
SEEN, PASSED = 1, 0


@dataclass(frozen=True)
class Mutant:
    """breaks: the promise. changes: a text that occurs once in the file, and its replacement; several if each alone keeps the promise."""

    breaks: str
    file: str
    changes: tuple[tuple[str, str], ...]


MUTANTS = (
    Mutant(
        "a list shows this key's jobs only",
        "models/jobs/job_rows.py",
        (("WHERE job.key_id = :key_id AND (CAST(:before", "WHERE (CAST(:before"),),
    ),
    Mutant(
        "a key's job is found by this key only",
        "models/jobs/job_rows.py",
        (("AS is_revoked\n    {_FROM} WHERE job.id = :id AND job.key_id = :key_id", "AS is_revoked\n    {_FROM} WHERE job.id = :id"),),
    ),
    Mutant(
        "a repeated token with another body is refused", "models/jobs/idempotency.py", (("if earlier.fingerprint != digest:", "if False:"),)
    ),
    Mutant(
        "a submit beyond the balance is refused",
        "models/billing/budgets.py",
        (("if left.microusd < max(1, max_microusd or 0):", "if left.microusd < 1:"),),
    ),
    Mutant(
        "an aborted call is charged",
        "models/jobs/states.py",
        (("frozenset({Outcome.SUCCEEDED, Outcome.UNKNOWN, Outcome.CANCELLED})", "frozenset({Outcome.SUCCEEDED, Outcome.UNKNOWN})"),),
    ),
    Mutant(
        "a lost call is charged", "models/billing/ledger.py", (("FROM {arrow} WHERE reserved_microusd > 0", "FROM {arrow} WHERE false"),)
    ),
    Mutant(
        "a stale dispatch starts nothing",
        "models/jobs/claims.py",
        (("AND status = 'admitted' AND dispatch_id = :dispatch_id AND NOT", "AND status = 'admitted' AND NOT"),),
    ),
    Mutant(
        "a cancelled job is not requeued",
        "models/jobs/requeue.py",
        (("status = CASE WHEN cancel_requested THEN 'cancelled' ELSE 'queued' END", "status = 'queued'"),),
    ),
    Mutant(
        "no job exceeds max_attempts",
        "models/jobs/requeue.py",
        (
            (
                "cancel_requested OR on_lost = 'fail' OR failures + 1 >= max_attempts OR ran.s",
                "cancel_requested OR on_lost = 'fail' OR ran.s",
            ),
        ),
    ),
    Mutant(
        "each end of a job is an event",
        "models/jobs/cancellation.py",
        (("seq, 'job.expired', ended_at FROM expired", "seq, 'job.expired', ended_at FROM expired WHERE false"),),
    ),
    Mutant(
        "a cancelled turn enqueues the next one",
        "models/jobs/cancellation.py",
        (("        if not row.held:\n", "        if False:\n"),),
    ),
    Mutant(
        "turns of a history are in order",
        "models/queue/history_window.py",
        (("<= :max_bytes ORDER BY job.turn", "<= :max_bytes ORDER BY job.turn DESC"),),
    ),
    Mutant(
        "the jobs of a user share its turn",
        "models/queue/enqueue.py",
        (("greatest(excluded.last_finish - :share, f.last_finish)", "excluded.last_finish - :share"),),
    ),
    Mutant(
        "a key is charged for its admitted jobs",
        "models/queue/key_shares.py",
        (("charge.lane_time) + charge.cost / key.weight", "charge.lane_time) + 0 * charge.cost"),),
    ),
    Mutant(
        "a job that ends without a call is refunded to its user",
        "models/queue/key_shares.py",
        (("last_finish = key_flow.last_finish - refund.share", "last_finish = key_flow.last_finish"),),
    ),
    Mutant("a cap is never exceeded", "models/queue/caps.py", (("if all(allowance.left for allowance in applicable):", "if True:"),)),
    Mutant(
        "a paused lane admits no job",
        "models/queue/admission.py",
        (
            (
                "AND paused_at IS NULL\n        AND (SELECT pool.paused_at FROM pool WHERE pool.id = found.pool_id)",
                "AND (SELECT pool.paused_at FROM pool WHERE pool.id = found.pool_id)",
            ),
            (
                "WHERE wake_at <= now() AND (claimed_until IS NULL OR claimed_until < now()) AND paused_at IS NULL",
                "WHERE wake_at <= now() AND (claimed_until IS NULL OR claimed_until < now())",
            ),
            ("coalesce(lane.paused_at, pool.paused_at,", "coalesce(pool.paused_at,"),
        ),
    ),
    Mutant(
        "an ended call releases its lease",
        "workers/limiter/limiter.lua",
        (("ARGV[5] == '1', redis.call('ZREM', LEASES, id) == 1", "ARGV[5] == '1', redis.call('ZSCORE', LEASES, id) ~= false"),),
    ),
    Mutant(
        "a job is not sent again to a credential that refused it",
        "workers/pacer/stages/credential_choice.py",
        (
            ("untried = [credential_id for credential_id in credentials if credential_id not in refused]", "untried = list(credentials)"),
            (
                "unparked = {credential_id for credential_id in untried if (credential_id, model, job.endpoint) not in parked}",
                "unparked = set(untried)",
            ),
        ),
    ),
    Mutant(
        "a job that is always throttled fails finally",
        "workers/runner/failed_attempt.py",
        (("verdict.throttled and row.throttles + 1 >= settings().max_throttles", "False"),),
    ),
    Mutant(
        "a throttled job delays no other",
        "workers/runner/failed_attempt.py",
        (("    if refusals == 1 and learned is not None and learned.cooldown_until_us:\n", "    if refusals < 99:\n"),),
    ),
    Mutant(
        "a refusal by one credential is no failed attempt",
        "workers/runner/failed_attempt.py",
        (("else feedback.refusal_of(attempt.row, verdict)))", "else feedback.refusal_of(attempt.row, verdict), counts=True))"),),
    ),
    Mutant(
        "the caller receives the most specific of several refusals",
        "workers/runner/feedback.py",
        (("best = min([last, *earlier], key=", "best = max([last, *earlier], key="),),
    ),
)


@click.command()
@click.option("--only", help="Run only mutants whose promise contains this text.")
def main(*, only: str | None) -> None:
    """Prints a line for each mutant. Exits with 1 if one survived."""
    wanted = [one for one in MUTANTS if only is None or only in one.breaks]
    verdicts = {one: _verdict(one) for one in [None, *wanted]}
    survived = [one for one in wanted if verdicts[one] == PASSED]
    if verdicts[None] != PASSED:
        raise click.ClickException("the tests fail without a mutant: fix them first")
    click.echo(f"{len(wanted) - len(survived)} of {len(wanted)} seen")
    sys.exit(int(bool(survived)))


def _verdict(mutant: Mutant | None) -> int:
    """The exit code of pytest in a copy with this change. None: no change."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nowserving-mutant-") as folder:
        copy = Path(folder)
        for name in COPIED:
            source = ROOT / name
            shutil.copytree(source, copy / name, ignore=_left) if source.is_dir() else shutil.copy(source, copy / name)
        if mutant is not None:
            _change(copy / mutant.file, mutant)
        environment = {**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1", "NOWSERVING_STATEFUL": "unshrunk"}
        done = subprocess.run([sys.executable, *PYTEST], cwd=copy, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (SEEN, PASSED):
        raise click.ClickException(f"pytest gave no answer:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    word = "seen" if done.returncode == SEEN else "NOT SEEN"
    about = f"{word:8}  {mutant.breaks}" if mutant else f"{'unbroken' if done.returncode == PASSED else 'FAILS':8}  without any change"
    click.echo(f"{about}  ({time.monotonic() - began:.0f} s)")
    return done.returncode


def _change(file: Path, mutant: Mutant) -> None:
    text = file.read_text(encoding="utf-8")
    for was, becomes in mutant.changes:
        if text.count(was) != 1:
            raise click.ClickException(f"{mutant.file} must contain exactly once: {was}")
        text = text.replace(was, becomes)
    file.write_text(text, encoding="utf-8")


def _left(_: str, names: list[str]) -> set[str]:
    return {name for name in names if name in ("node_modules", "__pycache__", "static")}


if __name__ == "__main__":
    main()
