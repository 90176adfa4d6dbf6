"""`python -m tests.hosts`: runs each network fault alone, then a random mix, on separate hosts, and prints the table of results."""

from __future__ import annotations

import logging
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from tests.chaos import results_table, run, schedule
from tests.chaos.run import RunResult
from tests.chaos.schedule import Event
from tests.hosts import namespace
from tests.hosts.faults import FAULTS, Cut
from tests.hosts.stack import Hosts

# One after another, two at a time, 6 s each: as long as a test may take.
SHORT = ("worker0 | postgres", "worker1 | valkey", "api | postgres", "pacer | valkey", "worker1 | upstream")
SHORT_S, SHORT_EVERY_S = 6.0, 2.5
SKIPPED_EXIT_CODE = 77  # the exit code of skipped automake tests


@click.command()
@click.option("--seed", type=int, default=1, show_default=True, help="Of the schedule and of what clients do.")
@click.option("--minutes", type=float, default=20.0, show_default=True, help="Of mixed faults; 0: none.")
@click.option("--only", multiple=True, type=click.Choice(list(FAULTS)), help="These faults, alone and mixed.")
@click.option("--times", type=int, default=1, show_default=True, help="How often each comes alone; 0: only mixed.")
@click.option("--rate", type=float, default=6.0, show_default=True, help="Requests a second.")
@click.option("--short", is_flag=True, help="Five partitions of 6 s and nothing else.")
@click.option("--keep", is_flag=True, help="Leave logs and journals where they are.")
def main(*, seed: int, minutes: float, only: tuple[str, ...], times: int, rate: float, short: bool, keep: bool) -> None:
    """Run network faults. Exits with 1 when a promise was broken, with 77 where network namespaces are not available."""
    if reason := namespace.missing():
        click.echo(f"skipped: {reason}")
        sys.exit(SKIPPED_EXIT_CODE)
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)  # broken connections are expected here
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    folder = Path(tempfile.mkdtemp(prefix="nowserving-hosts-"))
    results: list[RunResult] = []
    with Hosts(folder) as hosts:
        if not hosts.clocks:
            click.echo("skipped: clocks minutes apart (needs a C compiler, cc)")
        names = [name for name in only or FAULTS if hosts.clocks or "clocks" not in name]
        for name, events in [("short", _short())] if short else _planned_runs(names, seed=seed, times=times, minutes=minutes):
            click.echo(f"== {name}\n{schedule.write(events)}", nl=False)
            results.append(run.run(hosts, name, events, seed=seed, rate=rate, print_line=click.echo, faults=FAULTS))
            click.echo(results_table.table(results[-1:]).splitlines()[-1])
            for violation in results[-1].broken:
                click.echo(f"BROKEN {violation}")
    click.echo(results_table.table(results))
    is_broken = any(result.broken for result in results)
    if keep or is_broken:
        click.echo(f"logs and journals: {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(int(is_broken))


def _planned_runs(names: Sequence[str], *, seed: int, times: int, minutes: float) -> list[tuple[str, list[Event]]]:
    alone = [(name, schedule.alone(name, seed=seed, times=times, faults=FAULTS)) for name in names if times]
    return alone + ([(f"mixed, {minutes:g} min", schedule.mixed(names, seed=seed, for_s=minutes * 60, faults=FAULTS))] if minutes else [])


def _short() -> list[Event]:
    Cut.longest_s = SHORT_S
    return [Event(2.0 + SHORT_EVERY_S * n, name, seed=n) for n, name in enumerate(SHORT)]


if __name__ == "__main__":
    main()
