"""Tests of the documentation: every link leads somewhere, and every file that it names exists."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRACKED = subprocess.check_output(["git", "ls-files", "*.md"], cwd=ROOT, text=True).split()
PAGES = sorted(ROOT / name for name in TRACKED if not name.startswith("tests/texts"))
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
# A file of ours in backticks, with its folder.
FILE = re.compile(r"`((?:api|bench|cli|deploy|models|tests|workers)/[a-z0-9_/.-]+\.(?:py|lua|yml|json|sh))`")
HISTORY = {ROOT / "CHANGELOG.md"}


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    return not target.exists() or bool(anchor and target.suffix == ".md" and anchor not in anchors(target))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_links_lead_somewhere(page: Path) -> None:
    links = [link for link in LINK.findall(FENCED.sub("", page.read_text(encoding="utf-8"))) if "://" not in link]

    assert [] == [link for link in links if broken(page, link)]


@pytest.mark.parametrize("page", [page for page in PAGES if page not in HISTORY], ids=lambda page: str(page.relative_to(ROOT)))
def test_page_names_files_that_exist(page: Path) -> None:
    assert [] == [name for name in FILE.findall(page.read_text(encoding="utf-8")) if not (ROOT / name).exists()]


@pytest.mark.parametrize(
    ("pattern", "max_lines"), [("README.md", 150), ("docs/architecture.md", 200), ("docs/decisions/[0-9]*.md", 30)]
)  # fmt: skip
def test_pages_for_newcomers_are_short(pattern: str, max_lines: int) -> None:
    lengths = {page.name: len(page.read_text(encoding="utf-8").splitlines()) for page in ROOT.glob(pattern)}

    assert lengths
    assert {} == {name: lines for name, lines in lengths.items() if lines > max_lines}


def test_every_decision_is_in_the_index() -> None:
    index = ROOT / "docs" / "decisions" / "README.md"
    files = {page.name for page in index.parent.glob("*.md")} - {"README.md"}

    assert files == set(LINK.findall(index.read_text(encoding="utf-8")))


def test_architecture_shows_the_layers_that_the_linter_checks() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    layers = {each["containers"][0]: " ◄ ".join(reversed(each["layers"])) for each in contracts if each["type"] == "layers"}
    shown = dict(re.findall(r"^(\w+) +(\S+ ◄ .+)$", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), re.MULTILINE))

    assert layers == shown
