"""Figures as pictures: SVG files that are the same to the byte when the numbers are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.peers.contests import Fair

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "nowserving",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}
COLOURS = ("#1f5fa8", "#c8501e")
WIDE, NARROW, TALL = 5.0, 3.2, 2.8


@dataclass(frozen=True)
class Line:
    """y of each x."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """One picture of several: what grows from left to right, what is measured, and what came of it."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    is_log: bool = True


def growth(panels: Sequence[Panel], *, to: Path) -> None:
    """Two in a row, each from zero, so that a line that stays flat is seen to."""
    rows = -(-len(panels) // 2)
    with rc_context(STYLE):
        figure = Figure((2 * WIDE, rows * TALL), layout="constrained")
        places = figure.subplots(rows, 2, squeeze=False)
        for axes in places.flat[len(panels) :]:
            axes.set_axis_off()
        for axes, panel in zip(places.flat, panels, strict=False):
            _draw(axes, panel)
        _save(figure, to)


def fairness(found: Mapping[str, Fair], *, to: Path) -> None:
    """Beside each other: calls of the heavy user, and of all light users together, from when these came."""
    with rc_context(STYLE):
        figure = Figure((NARROW * len(found), TALL), layout="constrained")
        places = figure.subplots(1, len(found), squeeze=False, sharey=True)
        for axes, (name, fair) in zip(places.flat, found.items(), strict=True):
            for who, colour in zip(("heavy", "light"), COLOURS, strict=True):
                axes.step(*_served(fair, who), where="post", color=colour, label="the heavy user" if who == "heavy" else "all light users")
            axes.set(title=name.partition(" (")[0], xlabel="s since the light users came")
        places.flat[0].set_ylabel("calls so far")
        places.flat[0].legend(frameon=False)
        _save(figure, to)


def _served(fair: Fair, who: str) -> tuple[list[float], list[int]]:
    at = [called.called - fair.light_came for called in fair.order if called.flow.startswith(who)]
    return at, list(accumulate(1 for _ in at))


def _draw(axes: Axes, panel: Panel) -> None:
    for line, colour in zip(panel.lines, COLOURS, strict=False):
        axes.plot(line.x, line.y, marker="o", color=colour, label=line.name)
    if panel.is_log:
        axes.set_xscale("log")
    ticks = panel.lines[0].x
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.minorticks_off()
    axes.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
    axes.set_ylim(0, 1.1 * max(max(line.y) for line in panel.lines) or 1)
    if len(panel.lines) > 1:
        axes.legend(frameon=False)


def _save(figure: Figure, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(to, format="svg", metadata={"Date": None})
