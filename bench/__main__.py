"""`python -m bench [--only NAME …] [--short] [--strict]`: starts its own stack, measures, prints, and writes docs/benchmarks.md."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import ModuleType

import click

from bench.measure import machine_speed, report
from bench.measure.figure import Figure
from bench.measure.stack import Stack
from bench.suites import (
    fairness,
    first_byte,
    growth,
    held_clients,
    latency,
    limits,
    peers,
    queue_length,
    start_time,
    submits,
    surface,
    throughput,
    uploads,
    webhooks,
)

ALL: dict[str, ModuleType] = {
    "latency": latency, "submits": submits, "throughput": throughput, "fairness": fairness, "limits": limits, "scale": queue_length,
    "surface": surface, "first_byte": first_byte, "held": held_clients,
    "webhooks": webhooks, "peers": peers, "growth": growth, "start": start_time, "uploads": uploads,
}  # fmt: skip


@click.command()
@click.option("--only", "names", multiple=True, type=click.Choice(list(ALL)), help="This one; may be given more than once.")
@click.option("--short", is_flag=True, help="A few minutes, with fewer jobs; docs/benchmarks.md stays as it is.")
@click.option("--write", is_flag=True, help="With --only: replace these sections of docs/benchmarks.md.")
@click.option("--strict", is_flag=True, help="Exit with 1 when a target is missed.")
def main(names: tuple[str, ...], *, short: bool, write: bool, strict: bool) -> None:
    """Without --only: all of it, and docs/benchmarks.md is written."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    load_before, began = os.getloadavg()[0], time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="nowserving-bench-"))
    with Stack(folder) as stack:
        speeds, results = [machine_speed.mops()], {}
        for name in names or ALL:
            results[ALL[name].TITLE] = _measure(name, stack, short=short)
            speeds.append(machine_speed.mops())
        servers = stack.versions()
        drawn = {each.TITLE: stack.pictures / each.PICTURE for name in names or ALL if hasattr(each := ALL[name], "PICTURE")}
        pictures = {title: path for title, path in drawn.items() if path.exists()}
    click.echo(f"the machine: {min(speeds):.1f} to {max(speeds):.1f} million steps of plain Python a second")
    if names and write:
        report.replace(results, speeds=speeds, load_before=load_before)
    elif names or short:
        report.keep(pictures.values(), folder=report.SKETCHES)
    else:
        report.write(results, pictures, took_s=time.monotonic() - began, load_before=load_before, servers=servers, speeds=speeds)
        click.echo(f"written: {report.PAGE}")
    shutil.rmtree(folder, ignore_errors=True)
    if strict and any(one.is_met is False for figures in results.values() for one in figures):
        sys.exit(1)


def _measure(name: str, stack: Stack, *, short: bool) -> list[Figure]:
    """Runs one benchmark and returns its figures. A benchmark that fails is reported as a missed target, and the next one runs."""
    click.echo(f"{name} …")
    stack.upstream.reset()
    figures: list[Figure]
    try:
        figures = ALL[name].run(stack, short=short)
    except Exception as error:
        traceback.print_exc()
        figures = [Figure("not measured", "-", is_met=False, note=f"it broke: {type(error).__name__}")]
        stack.halt()
    report.show(ALL[name].TITLE, figures)
    return figures


if __name__ == "__main__":
    main()
