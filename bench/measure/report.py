"""The figures as a table: on the terminal, and in docs/benchmarks.md with the machine they were measured on."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from bench.measure.figure import Figure

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks.md"
# Of runs that do not write the page.
SKETCHES = ROOT / ".bench"
LIBRARIES = ("celery", "redis", "sqlalchemy", "psycopg", "flask", "gunicorn", "gevent", "openai")
MARKS = {True: "yes", False: "NO", None: ""}


def show(title: str, figures: Sequence[Figure]) -> None:
    """One benchmark's table, on the terminal."""
    table = Table(title=title, title_justify="left")
    for name in ("figure", "measured", "target", "met", "how"):
        table.add_column(name, justify="right" if name == "measured" else "left")
    for one in figures:
        table.add_row(one.what, one.value, one.target, MARKS[one.is_met], one.note, style="bold red" if one.is_met is False else None)
    Console(width=140).print(table)


def write(
    results: Mapping[str, Sequence[Figure]], pictures: Mapping[str, Path], *,
    took_s: float, load_before: float, servers: Mapping[str, str], speeds: Sequence[float],
) -> None:  # fmt: skip
    """docs/benchmarks.md says what was measured, when, and on what. speeds: yardstick.mops, before and after each benchmark.

    results, pictures: by title; a picture is copied beside the page.
    """
    lines = ["# Benchmarks", "", "Made by `make bench`; nothing on this page is typed by hand.", ""]
    about = _circumstances(servers, took_s=took_s, load_before=load_before, speeds=speeds)
    lines += [f"- {name}: {said}" for name, said in about.items()]
    for (title, figures), around in zip(results.items(), pairwise(speeds), strict=True):
        lines += _section(title, figures, around, picture=pictures.get(title))
    keep(pictures.values(), folder=PAGE.parent)
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def replace(results: Mapping[str, Sequence[Figure]], *, speeds: Sequence[float], load_before: float) -> None:
    """These sections of docs/benchmarks.md are measured anew, and say when and under which load; those without a place come last."""
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    about = f"Measured apart from the other sections: {when}, {_commit()}, load before {load_before:.1f} on {os.cpu_count()} cores."
    parts = [part.rstrip() + "\n" for part in PAGE.read_text(encoding="utf-8").split("\n## ")]
    for (title, figures), around in zip(results.items(), pairwise(speeds), strict=True):
        section = "\n".join(_section(title, figures, around, about=about)[1:]).removeprefix("## ") + "\n"
        place = next((n for n, part in enumerate(parts) if part.partition("\n")[0] == title), len(parts))
        parts[place : place + 1] = [section]
    PAGE.write_text("\n## ".join(parts).rstrip() + "\n", encoding="utf-8")


def _section(
    title: str, figures: Sequence[Figure], speeds: tuple[float, float], *, picture: Path | None = None, about: str = ""
) -> list[str]:
    """The lines of one benchmark. speeds: yardstick.mops before and after it."""
    lines = ["", f"## {title}", "", *([about, ""] if about else [])]
    lines += [f"One core before and after: {speeds[0]:.1f} and {speeds[1]:.1f} million steps a second.", ""]
    if picture:
        lines += [f"![{title}]({picture.name})", ""]
    lines += ["| figure | measured | target | met | how |", "|---|--:|---|---|---|"]
    return lines + [f"| {one.what} | {one.value} | {one.target} | {MARKS[one.is_met]} | {one.note} |" for one in figures]


def keep(pictures: Iterable[Path], *, folder: Path) -> None:
    """They are in this folder as well."""
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        shutil.copyfile(picture, folder / picture.name)


def _circumstances(servers: Mapping[str, str], *, took_s: float, load_before: float, speeds: Sequence[float]) -> dict[str, str]:
    memory_gb = psutil.virtual_memory().total / 2**30
    return {
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()) + f", in {took_s / 60:.1f} min",
        "what": _commit(),
        "machine": f"{os.cpu_count()} cores of {_processor()}, {memory_gb:.0f} GB, {platform.system()} {platform.release()}",
        "load before the run": f"{load_before:.2f}" + (" (busy: other programs were running)" if load_before > 0.5 else ""),
        "speed of one core": f"{min(speeds):.1f} to {max(speeds):.1f} million steps of plain Python a second (bench/measure); "
        "figures of different days, and of different sections, are to be compared with that in mind",
        "servers": ", ".join(f"{name} {said}" for name, said in servers.items()) + f", Python {platform.python_version()}",
        "libraries": ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
        "settings": "1 API process, 1 pacer, 1 worker process unless it says otherwise, `fsync` on, room for 20,000 waiting "
        "connections; client, upstream and servers share the machine",
    }


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    return (f"commit {git('rev-parse', '--short', 'HEAD')}" + (" and changes on top" if git("status", "--porcelain") else "")) or "unknown"


def _processor() -> str:
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        return next(line.partition(":")[2].strip() for line in told.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
