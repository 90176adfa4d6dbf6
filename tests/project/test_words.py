"""Tests of the vocabulary: private words stay out of code, tests and documentation (docs/architecture.md has the glossary)."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The word that goes, and the standard term that replaces it.
REPLACED = {
    "bell": "wakeup", "deeds": "actions", "doomed": "refused", "doorbell": "message, notification", "ear": "watchdog",
    "fleet": "workers", "ghost": "ended unclaimed", "hall": "registry of waiters", "looker": "poller", "nobody": "no + noun",
    "recall": "history window", "roster": "listing", "said": "result, raw, text", "seat": "waiter, slot", "sights": "lists",
    "somebody": "a + noun", "tales": "scenarios", "told": "reported, sent, shown", "telling": "log, span", "whom": "a noun",
}  # fmt: skip
# Where the words stay: a public metric, a Unix user, a text of the chat page.
ALLOWED = {
    "doorbell": re.compile(r"nowserving_doorbell_unanswered_seconds"),
    "nobody": re.compile(r"runs?_as_nobody|//nobody@|Nobody here yet|`nobody`|NOBODY|\"nobody\""),
}
# History, and comments of columns, which migrations compare with the database.
LEFT_OUT = (
    "CHANGELOG.md",
    "docs/decisions/",
    "models/migrations/versions/",
    "models/database/tables/",
    "tests/texts/",
    "tests/project/test_words.py",
    "web/",
)
TRACKED = subprocess.check_output(["git", "ls-files", "*.py", "*.md", "*.lua", "*.sh", "*.yml"], cwd=ROOT, text=True).split()
FILES = [name for name in TRACKED if not name.startswith(LEFT_OUT)]


def words(line: str) -> Iterator[str]:
    """The words of a line in lower case; identifiers are taken apart at underscores and capitals."""
    for word in re.findall(r"[A-Za-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", line).replace("_", " ")):
        yield word.lower()


def uses(text: str, word: str) -> list[str]:
    """The lines that use the word, or its plural, in a meaning that is not allowed."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        rest = ALLOWED[word].sub("", line) if word in ALLOWED else line
        if any(one in (word, f"{word}s") for one in words(rest)):
            found.append(f"{number}: {line.strip()[:120]}")
    return found


@pytest.mark.parametrize("word", REPLACED)
def test_private_word_is_replaced_everywhere(word: str) -> None:
    lines = [f"{name}:{use}" for name in FILES for use in uses((ROOT / name).read_text(encoding="utf-8"), word)]

    assert [] == lines, f"write {REPLACED[word]} instead of {word}"


def test_identifiers_are_taken_apart() -> None:
    assert ["1: told_by", "2: ToldSpan", "3: it told"] == uses("told_by\nToldSpan\nit told\nuntold", "told")
