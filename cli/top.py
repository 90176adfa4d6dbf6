"""`nowserving top`: a live view of lanes, flows and workers in the terminal. It uses HTTP, so it runs on any machine."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cli.http_client import Client
from models.config.settings import settings

LANES, FLOWS, WORKERS, CREDENTIALS = 50, 10, 100, 20
# Screen lines that do not show lanes.
OTHER_LINES = 14
MAX_RETRY_S = 30.0
UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


@dataclass(frozen=True)
class Frame:
    """One snapshot of the server."""

    lanes: Sequence[Mapping[str, Any]]
    flows: Sequence[Mapping[str, Any]]
    parked: Sequence[Mapping[str, Any]]
    workers: Sequence[Mapping[str, Any]]
    has_more: bool


@click.command()
@click.option("--url", envvar="NOWSERVING_URL", help="URL of the API (NOWSERVING_URL); default: this machine.")
@click.option("--token", envvar="NOWSERVING_OPS_TOKEN", hidden=True)
@click.option("--every", "every_s", type=click.FloatRange(0.5, 60), default=2.0, show_default=True, help="Seconds between updates.")
@click.option("--once", is_flag=True, help="Print one snapshot.")
def top(*, url: str | None, token: str | None, every_s: float, once: bool) -> None:
    """Show lanes, flows and workers live, with the token in NOWSERVING_OPS_TOKEN. Ctrl-C ends it."""
    token = token or settings().ops_token.get_secret_value()
    if not token:
        raise click.ClickException("set NOWSERVING_OPS_TOKEN to an operator's token")
    client = Client(url or f"http://127.0.0.1:{settings().port}", token)
    frame = read(client)  # a wrong URL or token ends the command at once
    console = Console(highlight=False, markup=False)
    if once:
        console.print(draw(frame, url=client.url, lanes=LANES))
        return
    try:
        _live(console, client, frame, every_s=every_s)
    except KeyboardInterrupt:
        return


def read(client: Client) -> Frame:
    """Reads one snapshot. Raises ClickException."""
    lanes = client.call("GET", "/ops/lanes", {"order": "waiting", "busy": "true", "limit": LANES})
    return Frame(
        lanes=lanes["data"],
        flows=client.call("GET", "/ops/flows", {"limit": FLOWS})["data"],
        parked=client.call("GET", "/ops/credentials", {"parked": "true", "limit": CREDENTIALS})["data"],
        workers=client.call("GET", "/ops/workers", {"limit": WORKERS})["data"],
        has_more=lanes["has_more"],
    )


def _live(console: Console, client: Client, frame: Frame, *, every_s: float) -> None:
    wait_s, problem = every_s, ""
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(draw(frame, url=client.url, lanes=max(3, console.height - OTHER_LINES), problem=problem), refresh=True)
            time.sleep(wait_s)
            try:
                frame, wait_s, problem = read(client), every_s, ""
            except click.ClickException as error:
                wait_s = min(MAX_RETRY_S, wait_s * 2)
                problem = f"{error.message} Next try in {wait_s:g} s."


def draw(frame: Frame, *, url: str, lanes: int, problem: str = "") -> Group:
    """Renders the whole screen. lanes: the number of lanes that fit."""
    waiting, running = (sum(lane[name] for lane in frame.lanes) for name in ("waiting", "running"))
    slots = sum(worker["slots"] for worker in frame.workers if worker["state"] == "working")
    head = f"{url}  {datetime.now():%H:%M:%S}  waiting {waiting:,}{'+' if frame.has_more else ''}  running {running:,} of {slots:,} slots"
    parts: list[Any] = [Text(head, style="bold")]
    if problem:
        parts.append(Text(problem, style="bold red"))
    parts.append(_lanes(frame.lanes[:lanes]) if frame.lanes else Text("no jobs are waiting or running", style="dim"))
    if len(frame.lanes) > lanes or frame.has_more:
        parts.append(Text("… more lanes: /ops/lanes", style="dim"))
    if frame.flows:
        parts += [Text(""), _flows(frame.flows[:5])]
    parts += [Text(line, style="red") for credential in frame.parked for line in _parked(credential)]
    silent = [worker["id"] for worker in frame.workers if worker["state"] == "silent"]
    if silent:
        parts.append(Text(f"silent: {', '.join(silent)}", style="red"))
    if not frame.workers:
        parts.append(Text("no worker has reported: start one with `nowserving worker`", style="red"))
    return Group(*parts)


def _lanes(lanes: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("pool", "model"):
        table.add_column(name, overflow="ellipsis", no_wrap=True, max_width=24)
    for name in ("waiting", "running", "oldest", "in/min", "out/min", "left", "waits for", "last one in"):
        table.add_column(name, justify="left" if name in ("left", "waits for") else "right", no_wrap=True)
    for lane in lanes:
        table.add_row(
            Text(lane["pool"]["name"]), Text(lane["model"]), f"{lane['waiting']:,}", f"{lane['running'] + lane['admitted']:,}",
            span(lane["oldest_wait_s"]), f"{lane['arrivals_per_min']:g}", f"{lane['calls_per_min']:,}", _left(lane["limits"]),
            Text(_why(lane), style="yellow" if lane["blocked_by"] else ""), span(lane["eta_last_s"]),
        )  # fmt: skip
    return table


def _flows(flows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("user", "model", "waiting", "running", "oldest"):
        table.add_column(name, justify="left" if name in ("user", "model") else "right", overflow="ellipsis", no_wrap=True, max_width=32)
    for flow in flows:
        waiting = f"{flow['waiting']:,}{'' if flow['is_whole'] else '+'}"
        table.add_row(Text(flow["user"]), Text(flow["model"]), waiting, f"{flow['running']:,}", span(flow["oldest_wait_s"]))
    return table


def _left(limits: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the rest of the scarcest limit."""
    known = [(use["left"] / use["limit"], name, use) for name, use in limits.items() if use["limit"] and use["left"] is not None]
    if not known:
        return "-"
    _, name, use = min(known, key=lambda item: item[0])
    return f"{use['left']:,} of {use['limit']:,.0f} {name}"


def _why(lane: Mapping[str, Any]) -> str:
    if lane["paused"]:
        return f"paused: {_reason(lane['paused'])}"
    return lane["blocked_by"] or "-"


def _parked(credential: Mapping[str, Any]) -> list[str]:
    name = f"credential {credential['id']} of {credential['pool']['name']}"
    parked = [f"parked: {name}: {_reason(credential['parked'])}"] if credential["parked"] else []
    return parked + [f"parked for {model['model']}: {name}: {model['reason']}" for model in credential["parked_models"]]


def _reason(pause: Mapping[str, Any]) -> str:
    return pause["reason"] or "no reason given"


def span(seconds: float | None) -> str:
    """Formats seconds in the two largest units: 2h 5min."""
    if seconds is None:
        return "-"
    rest = round(seconds)
    words: list[str] = []
    for unit, size in UNITS:
        n, rest = divmod(rest, size)
        if n or (words and len(words) < 2):
            words.append(f"{n}{unit}")
    return " ".join(words[:2]) or "0s"
