"""Output of the command line: text for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def show(record: Mapping[str, Any], *, as_json: bool) -> None:
    """Prints one record, a field per line."""
    if as_json:
        _json(record)
        return
    width = max(map(len, record))
    for name, value in record.items():
        click.echo(f"{name.ljust(width)}  {_plain(value)}")


def table(rows: Sequence[Mapping[str, Any]], *, columns: Sequence[str], as_json: bool) -> None:
    """Prints records, one per row."""
    if as_json:
        _json(rows)
        return
    output = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        output.add_row(*(_plain(row[name]) for name in columns))
    # Values may contain rich markup, which must not be interpreted.
    Console(markup=False, highlight=False).print(output)


def _json(value: object) -> None:
    click.echo(json.dumps(value, default=str))


def _plain(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M")
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
