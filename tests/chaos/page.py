"""The table of what came of each course: on the terminal, and in docs/reliability.md between its two marks."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Sequence

from tests.chaos import refusals
from tests.chaos.run import Outcome
from tests.support.programs.forks import ROOT

PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- chaos: written by `make chaos` -->", "<!-- /chaos -->"
COLUMNS = (
    "fault", "times", "jobs", "succeeded / failed / other", "calls", "unknown (at most)", "lost or stuck", "answered twice, unmarked",
    "wrong result", "over a limit", "turn out of order", "ledger off", "refused wrongly", "webhook missing (arrived)",
    "leaks, surprises", "all ended after",
)  # fmt: skip


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|" + "--:|" * (len(COLUMNS) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(_row(one))} |" for one in outcomes)])


def _row(one: Outcome) -> list[str]:
    found, count = one.found, one.found.counts
    good, bad = found.statuses["succeeded"], found.statuses["failed"]
    others = sum(count.values()) - count["odd answer"]
    return [
        one.name, str(len(one.events)), str(found.jobs), f"{good} / {bad} / {found.jobs - good - bad}", str(found.calls),
        f"{found.unknown} ({found.allowed})", *(str(count[rule]) for rule in (
            "lost or stuck", "answered twice, unmarked", "wrong result", "over a limit", "turn out of order", "ledger off")),
        str(sum(count[rule] for rule in refusals.RULES)), f"{count['webhook missing']} ({found.deliveries})",
        str(max(0, len(one.broken) - others)), f"{one.settled_s:.0f} s",
    ]  # fmt: skip


def write(outcomes: Sequence[Outcome], *, command: str, took_s: float) -> None:
    """docs/reliability.md says what was found, when, where, and how to do it again."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    when, machine = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), f"{platform.system()} {platform.release()}"
    about = (
        f"`{command}`, {when}, commit {_commit()}, in {took_s / 60:.0f} min on {os.cpu_count()} cores "
        f"({machine}, Python {platform.python_version()})"
    )
    broken = [f"- **{one.name}**: {said.splitlines()[0]}" for one in outcomes for said in one.broken]
    told = "\n".join(broken) if broken else "No promise was broken."
    PAGE.write_text(f"{before}{BEGIN}\n{about}\n\n{table(outcomes)}\n\n{told}\n{END}{after}", encoding="utf-8")


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + (" and changes on top" if git("status", "--porcelain", "--untracked-files=no") else "")
