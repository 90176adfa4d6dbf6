"""One measured number beside what it should be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """is_met None: there is no target. note: the conditions of the measurement, in a few words."""

    what: str
    value: str
    target: str = ""
    is_met: bool | None = None
    note: str = ""


def at_most(what: str, value: float, most: float, *, unit: str, note: str = "") -> Figure:
    return Figure(what, f"{value:,.3g} {unit}".strip(), f"≤ {most:g} {unit}".strip(), value <= most, note)


def at_least(what: str, value: float, least: float, *, unit: str = "", note: str = "") -> Figure:
    return Figure(what, f"{value:,.4g} {unit}".strip(), f"≥ {least:g} {unit}".strip(), value >= least, note)


def reported(what: str, value: str, *, note: str = "") -> Figure:
    return Figure(what, value, note=note)


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that at least this share of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def jain(served: Sequence[float]) -> float:
    """1 when all got the same, 1/n when one got everything (Jain, Chiu, Hawe 1984)."""
    squares = sum(one * one for one in served)
    return sum(served) ** 2 / (len(served) * squares) if squares else 1.0
