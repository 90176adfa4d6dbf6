"""Names the tests that fail in one run and pass in the next: `python -m tests.flaky copy`, a second run, then `… compare`.

pytest keeps the names of failed tests in its cache. `copy` saves them, and `compare` prints one line for each test.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

CACHE = Path(__file__).parents[1] / ".pytest_cache" / "v" / "cache"
LAST_FAILED, FIRST_RUN = "lastfailed", "failed-in-first-run"


def verdicts(first: set[str], second: set[str]) -> list[str]:
    """One line for each test that failed in the first run. second: the tests that failed in the second run."""
    return [f"ci: {'FAILED TWICE' if test in second else 'FLAKY'}: {test}" for test in sorted(first)]


def failed(folder: Path, name: str) -> set[str]:
    """The tests in this file of pytest's cache; empty if there is none: pytest removes it when no test has failed."""
    file = folder / name
    return set(json.loads(file.read_text())) if file.exists() else set()


@click.command()
@click.argument("action", type=click.Choice(["copy", "compare"]))
@click.option("--folder", type=click.Path(path_type=Path), default=CACHE)
def main(action: str, folder: Path) -> None:
    """Run `copy` before the second run and `compare` after it."""
    if action == "copy":
        (folder / FIRST_RUN).write_text(json.dumps(sorted(failed(folder, LAST_FAILED))))
    else:
        for verdict in verdicts(failed(folder, FIRST_RUN), failed(folder, LAST_FAILED)):
            click.echo(verdict)


if __name__ == "__main__":
    main()
