"""`python -m tests.chaos`: every fault alone, then mixed at random, against a stack of its own; the table at the end."""

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

from tests.chaos import clock, page, process_faults, run, schedule, server_faults
from tests.chaos.run import Outcome
from tests.chaos.stack import Plant

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
    """Exits with 1 when a promise was broken."""
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)  # that connections break is no news here
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="nowserving-chaos-"))
    outcomes: list[Outcome] = []
    with _disk(folder) as disk, Plant(folder, small_disk=disk) as plant:
        names = [name for name in only or schedule.FAULTS if _can(name, disk)]
        courses = [(name, schedule.alone(name, seed=seed, times=times)) for name in names if times and not replay]
        if replay:
            courses.append(("replay", schedule.read(replay.read_text(encoding="utf-8"))))
        elif minutes:
            courses.append((f"mixed, {minutes:g} min", schedule.mixed(names, seed=seed, for_s=minutes * 60)))
        for name, events in courses:
            click.echo(f"== {name}\n{schedule.write(events)}", nl=False)
            outcomes.append(run.run(plant, name, events, seed=seed, rate=rate, say=click.echo))
            click.echo(page.table(outcomes[-1:]).splitlines()[-1])
            for broken in outcomes[-1].broken:
                click.echo(f"BROKEN {broken}")
            if write:
                page.write(outcomes, command=f"python -m tests.chaos {shlex.join(sys.argv[1:])}", took_s=time.monotonic() - began)
    click.echo(page.table(outcomes))
    is_broken = any(one.broken for one in outcomes)
    if keep or is_broken:
        click.echo(f"logs and journals: {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(int(is_broken))


def _can(name: str, disk: Path | None) -> bool:
    """Whether this machine can do it; says what is missing."""
    if schedule.FAULTS[name] is server_faults.DiskFull and disk is None:
        click.echo(f"left out: {name} (needs root, to mount a small tmpfs)")
        return False
    if issubclass(schedule.FAULTS[name], process_faults.ClockSteps) and clock.COMPILER is None:
        click.echo(f"left out: {name} (needs a C compiler, cc)")
        return False
    return True


@contextmanager
def _disk(folder: Path) -> Iterator[Path | None]:
    """A file system of its own that can be filled; None where mount is not allowed."""
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
