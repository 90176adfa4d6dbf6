"""`nowserving pause | resume | drain | caps | weight | boost | stop | purge | …`: the levers, for whoever has the database."""

from __future__ import annotations

import time
from typing import Any

import click

from api.ops import actions, bulk_retry
from api.waiting import notify_queue
from cli import terminal
from models.access.audit_log import Act
from models.ops import pause as halt
from models.ops.bulk import JobFilter
from models.platform import wire

RETRY_MAX_S = 3600.0

_reason = click.option("--reason", help="Why: kept in the audit log.")
_id = click.argument("name", metavar="ID")
_kind = click.argument("kind", type=click.Choice(halt.KINDS))


def _halt(verb: str, said: str) -> click.Command:
    @click.command(verb, help=said)
    @_kind
    @_id
    @_reason
    @terminal.json_option
    def command(*, kind: str, name: str, reason: str | None, as_json: bool) -> None:
        _show(actions.halt_it(Act(reason=reason), verb, halt.parse_target(kind, name)), as_json=as_json)

    return command


pause = _halt("pause", "Let nothing of it start; what runs ends. ID of a flow: LANE.KEY:USER.")
resume = _halt("resume", "Let it go on: ends a pause, a drain and a parked credential's probation.")
drain = _halt("drain", "Take nothing new for it; what waits is served.")


@click.command()
@click.argument("kind", type=click.Choice(("key", "flow")))
@_id
@click.option("--endpoint", default="", help="For this class of requests, as /v1/embeddings.")
@click.option("--max-queued", type=click.IntRange(0), help="Jobs that may wait; 0: any number.")
@click.option("--max-in-flight", type=click.IntRange(0), help="Jobs that may run at a time; 0: any number.")
@click.option("--rpm", type=click.IntRange(0), help="Jobs that may start in a minute; 0: any number.")
@_reason
@terminal.json_option
def caps(*, kind: str, name: str, endpoint: str, reason: str | None, as_json: bool, **given: int | None) -> None:
    """Cap what a key or a user may have of the line; what is left out stays."""
    changes = {one: value or None for one, value in given.items() if value is not None}
    _show(actions.set_caps(Act(reason=reason), halt.parse_target(kind, name), changes, endpoint=endpoint), as_json=as_json)


@click.command()
@click.argument("name", metavar="KEY|LANE.KEY:USER")
@click.argument("share", type=float)
@_reason
@terminal.json_option
def weight(*, name: str, share: float, reason: str | None, as_json: bool) -> None:
    """Give a key SHARE times what others of its pool have, or a user SHARE times what others of its key have."""
    on = halt.parse_target("flow" if ":" in name else "key", name)
    _show(actions.weigh(Act(reason=reason), on, weight=share), as_json=as_json)


@click.command()
@click.argument("job_id")
@_reason
@terminal.json_option
def boost(*, job_id: str, reason: str | None, as_json: bool) -> None:
    """Put a waiting job at the head of its lane."""
    _show(_place(actions.boost(Act(reason=reason), wire.parse_id(job_id))), as_json=as_json)


@click.command()
@click.argument("job_id")
@click.argument("level", type=click.Choice(("low", "normal", "high")))
@_reason
@terminal.json_option
def priority(*, job_id: str, level: str, reason: str | None, as_json: bool) -> None:
    """Change a waiting job's weight among its user's own jobs."""
    _show(_place(actions.prioritise(Act(reason=reason), wire.parse_id(job_id), priority=level)), as_json=as_json)


@click.command()
@click.argument("job_id")
@_reason
@terminal.json_option
def stop(*, job_id: str, reason: str | None, as_json: bool) -> None:
    """Cancel anybody's job, waiting or running."""
    made = actions.cancel(Act(reason=reason), wire.parse_id(job_id))
    _show({"id": made["id"], "status": made["status"], "cancel_requested": made["cancel_requested"]}, as_json=as_json)


@click.command()
@click.argument("job_id")
@_reason
@terminal.json_option
def retry(*, job_id: str, reason: str | None, as_json: bool) -> None:
    """Ask again what failed, expired or was cancelled: a new job of the same caller."""
    _show(_place(actions.retry(Act(reason=reason), wire.parse_id(job_id))), as_json=as_json)


def _filtered(command: Any) -> Any:
    for name, kind, said in (
        ("--pool", int, "Of this pool (its id)."), ("--lane", int, "Of this lane (its id)."), ("--key-id", int, "Of this key (its id)."),
        ("--user", str, "Of this user."), ("--older-than-s", float, "Submitted longer ago."),
    ):  # fmt: skip
        command = click.option(name, type=kind, help=said)(command)
    return _reason(terminal.json_option(command))


@click.command()
@click.option("--running", is_flag=True, help="Stop those that run, too.")
@_filtered
def purge(*, running: bool, reason: str | None, as_json: bool, **which: Any) -> None:
    """Cancel waiting jobs by filter."""
    done, _ = actions.purge_all(Act(reason=reason), _filter(which), status="running" if running else "queued", until=float("inf"))
    _show({"cancelled": done}, as_json=as_json)


@click.command("retry-failed")
@click.option("--after", metavar="ID", help="Go on behind this job: last_id of the command before.")
@_filtered
def retry_failed(*, after: str | None, reason: str | None, as_json: bool, **which: Any) -> None:
    """Retry failed and expired jobs that were not retried yet, oldest first; without a filter: all of them."""
    begin = None if after is None else wire.parse_id(after)
    report = bulk_retry.run(Act(reason=reason), _filter(which), after=begin, until=time.monotonic() + RETRY_MAX_S).show()
    if not as_json:
        report["reasons"] = [f"{code}: {jobs}" for code, jobs in report["reasons"].items()]
        report["errors"] = [f"{error['job']}: {error['message']}" for error in report["errors"]]
    _show(report, as_json=as_json)


@click.command()
@click.argument("lane", type=int)
@_reason
@terminal.json_option
def rebuild(*, lane: int, reason: str | None, as_json: bool) -> None:
    """Make a lane's limiter state and counters again from Postgres."""
    _show(actions.rebuild(Act(reason=reason), lane), as_json=as_json)


def _place(made: dict[str, Any]) -> dict[str, Any]:
    return {"id": made["id"], "status": made["status"], "position": (made["queue"] or {}).get("position")}


def _filter(which: dict[str, Any]) -> JobFilter:
    return JobFilter(
        pool_id=which["pool"], lane_id=which["lane"], key_id=which["key_id"], user=which["user"], older_than_s=which["older_than_s"]
    )


def _show(made: dict[str, Any], *, as_json: bool) -> None:
    notify_queue.flush()
    terminal.show(made, as_json=as_json)
