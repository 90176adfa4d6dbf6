"""The table of results, printed and written into docs/reliability.md between its two markers."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Sequence

from tests.chaos import refusals
from tests.chaos.run import RunResult
from tests.support.programs.forks import ROOT

PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- chaos: written by `make chaos` -->", "<!-- /chaos -->"
COLUMNS = (
    "fault", "times", "jobs", "succeeded / failed / other", "calls", "unknown (at most)", "lost or stuck", "answered twice, unmarked",
    "wrong result", "over a limit", "turn out of order", "ledger off", "refused wrongly", "webhook missing (arrived)",
    "leaks, surprises", "all ended after",
)  # fmt: skip


def table(results: Sequence[RunResult]) -> str:
    """Render the results as a Markdown table."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|" + "--:|" * (len(COLUMNS) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(_row(result))} |" for result in results)])


def _row(result: RunResult) -> list[str]:
    findings, count = result.findings, result.findings.counts
    good, bad = findings.statuses["succeeded"], findings.statuses["failed"]
    others = sum(count.values()) - count["unexpected answer"]
    return [
        result.name, str(len(result.events)), str(findings.jobs), f"{good} / {bad} / {findings.jobs - good - bad}", str(findings.calls),
        f"{findings.unknown} ({findings.allowed})", *(str(count[rule]) for rule in (
            "lost or stuck", "answered twice, unmarked", "wrong result", "over a limit", "turn out of order", "ledger off")),
        str(sum(count[rule] for rule in refusals.RULES)), f"{count['webhook missing']} ({findings.deliveries})",
        str(max(0, len(result.broken) - others)), f"{result.settled_s:.0f} s",
    ]  # fmt: skip


def write(results: Sequence[RunResult], *, command: str, took_s: float) -> None:
    """Write the results into docs/reliability.md, with time, machine, commit and command."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    when, machine = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), f"{platform.system()} {platform.release()}"
    about = (
        f"`{command}`, {when}, commit {_commit()}, in {took_s / 60:.0f} min on {os.cpu_count()} cores "
        f"({machine}, Python {platform.python_version()})"
    )
    broken = [f"- **{result.name}**: {violation.splitlines()[0]}" for result in results for violation in result.broken]
    summary = "\n".join(broken) if broken else "No promise was broken."
    PAGE.write_text(f"{before}{BEGIN}\n{about}\n\n{table(results)}\n\n{summary}\n{END}{after}", encoding="utf-8")


def _commit() -> str:
    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + (" and changes on top" if git("status", "--porcelain", "--untracked-files=no") else "")
