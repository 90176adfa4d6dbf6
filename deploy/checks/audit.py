"""`make audit`: checks the pinned versions for known vulnerabilities at PyPI and npm. Exits with 1 if there are any.

A registry or mirror without vulnerability data is reported as `not checked`, never as clean.
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
    """vulnerabilities: a line for each. unchecked: number of packages that the registry has no data about."""

    vulnerabilities: Sequence[str]
    unchecked: int = 0


class NotChecked(Exception):
    """The registry did not respond, or in an unknown format."""


def main() -> None:
    """Audits all files of pinned versions."""
    files = sorted((ROOT / "requirements").glob("*.txt"))
    reports = [run_audit(f"requirements/{file.name}", lambda file=file: audit_python(file)) for file in files]  # type: ignore[misc]
    reports.append(run_audit("web/package-lock.json", lambda: audit_node(ROOT / "web")))
    sys.exit(1 if any(report.vulnerabilities for report in reports) else 0)


def run_audit(name: str, audit: Callable[[], Report]) -> Report:
    """Runs one audit and prints its result."""
    try:
        report = audit()
    except NotChecked as error:
        print(f"{name}: not checked: {error}")
        return Report([])
    for vulnerability in report.vulnerabilities:
        print(f"{name}: {vulnerability}")
    if report.unchecked:
        print(f"{name}: not checked: {report.unchecked} packages without vulnerability data at this registry")
    elif not report.vulnerabilities:
        print(f"{name}: no known vulnerability")
    return report


def audit_python(file: Path, *, command: Sequence[str] = PIP_AUDIT) -> Report:
    """Audits the versions in this file; its hashes make resolving unnecessary. Raises NotChecked."""
    options = ("--disable-pip", "--require-hashes", "--format", "json", "--progress-spinner", "off")
    output = _run_json([*command, "--requirement", str(file), *options], folder=ROOT)
    try:
        packages = output["dependencies"]
        found = [f"{item['name']} {item['version']}: {vulnerability['id']}" for item in packages for vulnerability in item.get("vulns", ())]
        # pip-audit exits with 0 even if it could look up nothing.
        return Report(found, unchecked=sum("skip_reason" in item for item in packages))
    except (KeyError, TypeError):
        raise NotChecked("unknown output format of pip-audit") from None


def audit_node(folder: Path, *, command: Sequence[str] | None = None) -> Report:
    """Audits the versions in this folder's package-lock.json. Raises NotChecked."""
    try:
        npm = command or node.find().npm
    except node.NoNode as error:
        raise NotChecked(str(error) or "Node.js is missing") from error
    output = _run_json([*npm, "audit", "--package-lock-only", "--json"], folder=folder)
    try:
        return Report([f"{name} {item['range']}: {item['severity']}" for name, item in output["vulnerabilities"].items()])
    except (KeyError, TypeError, AttributeError):
        raise NotChecked(str(output.get("message", "unknown output format of npm"))[:SHOWN_CHARS]) from None


def _run_json(command: Sequence[str], *, folder: Path) -> dict[str, Any]:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotChecked(f"{command[0]}: {type(error).__name__}") from error
    try:
        output = json.loads(done.stdout)
    except ValueError:
        output = None
    if not isinstance(output, dict):
        raise NotChecked((done.stderr.strip() or done.stdout.strip() or f"{command[0]} printed nothing")[-SHOWN_CHARS:])
    return output


if __name__ == "__main__":
    main()
