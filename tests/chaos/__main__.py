"""`python -m tests.chaos`: runs each fault alone, then a random mix, against its own stack, and prints the table of results."""

from __future__ import annotations

import logging
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from tests.chaos import clock, process_faults, results_table, run, schedule, server_faults
from tests.chaos.run import RunResult
from tests.chaos.stack import Stack

DISK_MB = 768


@click.command()
@click.option("--seed", type=int, default=1, show_default=True, help="Of the schedule and of what clients do.")
@click.option("--minutes", type=float, default=30.0, show_default=True, help="Of mixed faults; 0: none.")
@click.option("--only", multiple=True, type=click.Choice(list(schedule.FAULTS)), help="These faults, alone and mixed.")
@click.option("--times", type=int, default=2, show_default=True, help="How often each comes alone; 0: only mixed.")
@click.option("--rate", type=float, default=8.0, show_default=True, help="Requests a second.")
@click.option("--replay", type=click.Path(path_type=Path, exists=True), help="A schedule that was printed, instead of a seed's.")
@click.option("--write", is_flag=True, help="Write the table into docs/reliability.md.")
@click.option("--keep", is_flag=True, help="Leave logs and journals where they are.")
def main(
    *, seed: int, minutes: float, only: tuple[str, ...], times: int, rate: float, replay: Path | None, write: bool, keep: bool
) -> None:
    """Run faults against a stack of processes. Exits with 1 when a promise was broken."""
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)  # broken connections are expected here
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="nowserving-chaos-"))
    results: list[RunResult] = []
    with _small_disk(folder) as disk, Stack(folder, small_disk=disk) as stack:
        names = [name for name in only or schedule.FAULTS if _is_possible(name, disk)]
        runs = [(name, schedule.alone(name, seed=seed, times=times)) for name in names if times and not replay]
        if replay:
            runs.append(("replay", schedule.read(replay.read_text(encoding="utf-8"))))
        elif minutes:
            runs.append((f"mixed, {minutes:g} min", schedule.mixed(names, seed=seed, for_s=minutes * 60)))
        for name, events in runs:
            click.echo(f"== {name}\n{schedule.write(events)}", nl=False)
            results.append(run.run(stack, name, events, seed=seed, rate=rate, print_line=click.echo))
            click.echo(results_table.table(results[-1:]).splitlines()[-1])
            for violation in results[-1].broken:
                click.echo(f"BROKEN {violation}")
            if write:
                results_table.write(results, command=f"python -m tests.chaos {shlex.join(sys.argv[1:])}", took_s=time.monotonic() - began)
    click.echo(results_table.table(results))
    is_broken = any(result.broken for result in results)
    if keep or is_broken:
        click.echo(f"logs and journals: {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(int(is_broken))


def _is_possible(name: str, disk: Path | None) -> bool:
    """Whether this machine can run the fault; prints the missing requirement otherwise."""
    if schedule.FAULTS[name] is server_faults.DiskFull and disk is None:
        click.echo(f"skipped: {name} (needs root, to mount a small tmpfs)")
        return False
    if issubclass(schedule.FAULTS[name], process_faults.ClockSteps) and clock.COMPILER is None:
        click.echo(f"skipped: {name} (needs a C compiler, cc)")
        return False
    return True


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path | None]:
    """Mount a small tmpfs that a fault can fill; None where mount is not allowed."""
    disk = folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(disk)], capture_output=True, check=False)
    try:
        yield disk if mounted.returncode == 0 else None
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", str(disk)], check=False)


if __name__ == "__main__":
    main()
