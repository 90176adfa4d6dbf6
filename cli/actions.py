"""`nowserving pause | resume | drain | caps | weight | boost | stop | purge | …`: operator actions, run directly on the database."""

from __future__ import annotations

import time
from typing import Any

import click

from api.ops import actions, bulk_retry, job_actions
from api.waiting import notify_queue
from cli import terminal
from models.access.audit_log import Act
from models.ops import pause as pause_model
from models.ops.bulk import JobFilter
from models.platform import wire

RETRY_MAX_S = 3600.0

_reason = click.option("--reason", help="Reason, stored in the audit log.")
_id = click.argument("name", metavar="ID")
_kind = click.argument("kind", type=click.Choice(pause_model.KINDS))


def _pause_command(verb: str, text: str) -> click.Command:
    @click.command(verb, help=text)
    @_kind
    @_id
    @_reason
    @terminal.json_option
    def command(*, kind: str, name: str, reason: str | None, as_json: bool) -> None:
        _show(actions.pause_resume_or_drain(Act(reason=reason), verb, pause_model.parse_target(kind, name)), as_json=as_json)

    return command


pause = _pause_command("pause", "Start none of its jobs; running jobs end. ID of a flow: LANE.KEY:USER.")
resume = _pause_command("resume", "End a pause, a drain, and the parking of a credential.")
drain = _pause_command("drain", "Accept no new jobs for it; waiting jobs are served.")


@click.command()
@click.argument("kind", type=click.Choice(("key", "flow")))
@_id
@click.option("--endpoint", default="", help="Only for this endpoint, such as /v1/embeddings.")
@click.option("--max-queued", type=click.IntRange(0), help="Limit of waiting jobs; 0: no limit.")
@click.option("--max-in-flight", type=click.IntRange(0), help="Limit of running jobs; 0: no limit.")
@click.option("--rpm", type=click.IntRange(0), help="Limit of jobs that start in a minute; 0: no limit.")
@_reason
@terminal.json_option
def caps(*, kind: str, name: str, endpoint: str, reason: str | None, as_json: bool, **values: int | None) -> None:
    """Set the caps of a key or a user; omitted caps stay unchanged."""
    changes = {name: value or None for name, value in values.items() if value is not None}
    _show(actions.set_caps(Act(reason=reason), pause_model.parse_target(kind, name), changes, endpoint=endpoint), as_json=as_json)


@click.command()
@click.argument("name", metavar="KEY|LANE.KEY:USER")
@click.argument("share", type=float)
@_reason
@terminal.json_option
def weight(*, name: str, share: float, reason: str | None, as_json: bool) -> None:
    """Give a key SHARE times the share of other keys of its pool, or a user SHARE times that of other users of its key."""
    target = pause_model.parse_target("flow" if ":" in name else "key", name)
    _show(actions.set_weight(Act(reason=reason), target, weight=share), as_json=as_json)


@click.command()
@click.argument("job_id")
@_reason
@terminal.json_option
def boost(*, job_id: str, reason: str | None, as_json: bool) -> None:
    """Move a waiting job to the head of its lane."""
    _show(_position(job_actions.boost(Act(reason=reason), wire.parse_id(job_id))), as_json=as_json)


@click.command()
@click.argument("job_id")
@click.argument("level", type=click.Choice(("low", "normal", "high")))
@_reason
@terminal.json_option
def priority(*, job_id: str, level: str, reason: str | None, as_json: bool) -> None:
    """Change a waiting job's weight among its user's own jobs."""
    _show(_position(job_actions.set_priority(Act(reason=reason), wire.parse_id(job_id), priority=level)), as_json=as_json)


@click.command()
@click.argument("job_id")
@_reason
@terminal.json_option
def stop(*, job_id: str, reason: str | None, as_json: bool) -> None:
    """Cancel any caller's job, waiting or running."""
    job = job_actions.cancel(Act(reason=reason), wire.parse_id(job_id))
    _show({"id": job["id"], "status": job["status"], "cancel_requested": job["cancel_requested"]}, as_json=as_json)


@click.command()
@click.argument("job_id")
@_reason
@terminal.json_option
def retry(*, job_id: str, reason: str | None, as_json: bool) -> None:
    """Resubmit a failed, expired or cancelled job as a new job of the same caller."""
    _show(_position(job_actions.retry(Act(reason=reason), wire.parse_id(job_id))), as_json=as_json)


def _filtered(command: Any) -> Any:
    for name, kind, text in (
        ("--pool", int, "Only jobs of this pool (id)."), ("--lane", int, "Only jobs of this lane (id)."),
        ("--key-id", int, "Only jobs of this key (id)."), ("--user", str, "Only jobs of this user."),
        ("--older-than-s", float, "Only jobs submitted longer ago."),
    ):  # fmt: skip
        command = click.option(name, type=kind, help=text)(command)
    return _reason(terminal.json_option(command))


@click.command()
@click.option("--running", is_flag=True, help="Stop running jobs too.")
@_filtered
def purge(*, running: bool, reason: str | None, as_json: bool, **filters: Any) -> None:
    """Cancel waiting jobs by filter."""
    cancelled, _ = job_actions.cancel_matching(
        Act(reason=reason), _filter(filters), status="running" if running else "queued", until=float("inf")
    )
    _show({"cancelled": cancelled}, as_json=as_json)


@click.command("retry-failed")
@click.option("--after", metavar="ID", help="Continue after this job: last_id of the previous command.")
@_filtered
def retry_failed(*, after: str | None, reason: str | None, as_json: bool, **filters: Any) -> None:
    """Retry failed and expired jobs that were not retried yet, oldest first; without a filter: all."""
    cursor = None if after is None else wire.parse_id(after)
    report = bulk_retry.run(Act(reason=reason), _filter(filters), after=cursor, until=time.monotonic() + RETRY_MAX_S).show()
    if not as_json:
        report["reasons"] = [f"{code}: {jobs}" for code, jobs in report["reasons"].items()]
        report["errors"] = [f"{error['job']}: {error['message']}" for error in report["errors"]]
    _show(report, as_json=as_json)


@click.command()
@click.argument("lane", type=int)
@_reason
@terminal.json_option
def rebuild(*, lane: int, reason: str | None, as_json: bool) -> None:
    """Rebuild a lane's limiter state and counters from Postgres."""
    _show(actions.rebuild_lane(Act(reason=reason), lane), as_json=as_json)


def _position(job: dict[str, Any]) -> dict[str, Any]:
    return {"id": job["id"], "status": job["status"], "position": (job["queue"] or {}).get("position")}


def _filter(filters: dict[str, Any]) -> JobFilter:
    return JobFilter(
        pool_id=filters["pool"],
        lane_id=filters["lane"],
        key_id=filters["key_id"],
        user=filters["user"],
        older_than_s=filters["older_than_s"],
    )


def _show(result: dict[str, Any], *, as_json: bool) -> None:
    notify_queue.flush()
    terminal.show(result, as_json=as_json)
