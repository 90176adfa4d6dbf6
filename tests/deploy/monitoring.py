"""What deploy/monitoring asks Prometheus for."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "monitoring"
RULES = ("alerts.yml", "scaling.yml")


def expressions() -> list[str]:
    """Of the rules and of the dashboard."""
    rules = [yaml.safe_load((FOLDER / name).read_text()) for name in RULES]
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    found = [rule["expr"] for one in rules for group in one["groups"] for rule in group["rules"]]
    return found + [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def asked_for() -> set[str]:
    """The names of all series in these."""
    return {name for expression in expressions() for name in re.findall(r"nowserving_\w+", expression)}
