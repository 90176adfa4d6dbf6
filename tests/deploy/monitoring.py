"""Reads the Prometheus queries in deploy/monitoring."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "monitoring"
RULES = ("alerts.yml", "scaling.yml")


def expressions() -> list[str]:
    """Returns the queries of the rules and of the dashboard."""
    rules = [yaml.safe_load((FOLDER / name).read_text()) for name in RULES]
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    queries = [rule["expr"] for document in rules for group in document["groups"] for rule in group["rules"]]
    return queries + [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def asked_for() -> set[str]:
    """Returns the names of all series in the queries."""
    return {name for expression in expressions() for name in re.findall(r"nowserving_\w+", expression)}
