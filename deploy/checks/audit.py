"""`make audit`: asks PyPI and npm for known weaknesses of the pinned versions. Exits with 1 when there are any.

A registry or mirror that does not know them is reported as `not checked`, never as clean.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.checks import node

ROOT = Path(__file__).resolve().parents[2]
PIP_AUDIT = (str(Path(sys.executable).with_name("uv")), "tool", "run", "pip-audit==2.10.1")
TIMEOUT_S = 300
SHOWN_CHARS = 300


@dataclass(frozen=True)
class Report:
    """weaknesses: a line for each. unchecked: packages that the registry could not tell about."""

    weaknesses: Sequence[str]
    unchecked: int = 0


class NoAnswer(Exception):
    """The registry did not answer, or not in the form that this version reads."""


def main() -> None:
    """Audits every pinned file."""
    files = sorted((ROOT / "requirements").glob("*.txt"))
    reports = [show(f"requirements/{file.name}", lambda file=file: audit_python(file)) for file in files]  # type: ignore[misc]
    reports.append(show("web/package-lock.json", lambda: audit_node(ROOT / "web")))
    sys.exit(1 if any(report.weaknesses for report in reports) else 0)


def show(name: str, audit: Callable[[], Report]) -> Report:
    """Runs one audit and prints what came of it."""
    try:
        report = audit()
    except NoAnswer as error:
        print(f"{name}: not checked: {error}")
        return Report([])
    for weakness in report.weaknesses:
        print(f"{name}: {weakness}")
    if report.unchecked:
        print(f"{name}: not checked: {report.unchecked} packages that this registry knows no weaknesses of")
    elif not report.weaknesses:
        print(f"{name}: no known weakness")
    return report


def audit_python(file: Path, *, command: Sequence[str] = PIP_AUDIT) -> Report:
    """The versions in this file, whose hashes make resolving needless. Raises NoAnswer."""
    options = ("--disable-pip", "--require-hashes", "--format", "json", "--progress-spinner", "off")
    answer = _json([*command, "--requirement", str(file), *options], folder=ROOT)
    try:
        packages = answer["dependencies"]
        found = [f"{one['name']} {one['version']}: {weakness['id']}" for one in packages for weakness in one.get("vulns", ())]
        # pip-audit ends with 0 where it could look up nothing at all.
        return Report(found, unchecked=sum("skip_reason" in one for one in packages))
    except (KeyError, TypeError):
        raise NoAnswer("pip-audit answers in another form") from None


def audit_node(folder: Path, *, command: Sequence[str] | None = None) -> Report:
    """The versions in this folder's package-lock.json. Raises NoAnswer."""
    try:
        npm = command or node.find().npm
    except node.NoNode as error:
        raise NoAnswer(str(error) or "there is no Node.js") from error
    answer = _json([*npm, "audit", "--package-lock-only", "--json"], folder=folder)
    try:
        return Report([f"{name} {one['range']}: {one['severity']}" for name, one in answer["vulnerabilities"].items()])
    except (KeyError, TypeError, AttributeError):
        raise NoAnswer(str(answer.get("message", "npm answers in another form"))[:SHOWN_CHARS]) from None


def _json(words: Sequence[str], *, folder: Path) -> dict[str, Any]:
    try:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoAnswer(f"{words[0]}: {type(error).__name__}") from error
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise NoAnswer((done.stderr.strip() or done.stdout.strip() or f"{words[0]} said nothing")[-SHOWN_CHARS:])
    return answer


if __name__ == "__main__":
    main()
