"""What the command line prints: for people with rich, for machines as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table

json_option = click.option("--json", "as_json", is_flag=True, help="For machines.")


def show(thing: Mapping[str, Any], *, as_json: bool) -> None:
    """One thing, a field a line."""
    if as_json:
        _machine(thing)
        return
    wide = max(map(len, thing))
    for name, value in thing.items():
        click.echo(f"{name.ljust(wide)}  {_plain(value)}")


def table(rows: Sequence[Mapping[str, Any]], *, columns: Sequence[str], as_json: bool) -> None:
    """Many things, one a row."""
    if as_json:
        _machine(rows)
        return
    made = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        made.add_row(*(_plain(row[name]) for name in columns))
    # Text from elsewhere is no markup of ours.
    Console(markup=False, highlight=False).print(made)


def _machine(thing: object) -> None:
    click.echo(json.dumps(thing, default=str))


def _plain(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M")
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
