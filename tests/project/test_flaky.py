"""Tests of tests/flaky.py, with which CI names tests that only pass in the second run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from tests import flaky

TESTS = """
from pathlib import Path

def test_passes(): pass

def test_passes_at_the_second_try():
    seen = Path(__file__).with_name("seen")
    is_second = seen.exists()
    seen.touch()
    assert is_second

def test_fails(): assert False
"""


def invoke(action: str, folder: Path) -> str:
    """The output of this action with the cache in `folder`."""
    return CliRunner().invoke(flaky.main, [action, "--folder", str(folder)], catch_exceptions=False).output


def test_flaky_test_is_named(tmp_path: Path) -> None:
    (tmp_path / "test_three.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    folder = tmp_path / ".pytest_cache" / "v" / "cache"

    def run(*more: str) -> None:
        command = [sys.executable, "-m", "pytest", "-q", "-n0", "test_three.py", *more]
        subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)

    run()
    invoke("copy", folder)
    run("--last-failed", "--last-failed-no-failures", "none")

    assert [
        "ci: FAILED TWICE: test_three.py::test_fails",
        "ci: FLAKY: test_three.py::test_passes_at_the_second_try",
    ] == invoke("compare", folder).splitlines()


def test_missing_second_list_means_all_passed(tmp_path: Path) -> None:
    (tmp_path / flaky.FIRST_RUN).write_text(json.dumps(["test_a.py::test_one"]))

    assert ["ci: FLAKY: test_a.py::test_one"] == flaky.verdicts(
        flaky.failed(tmp_path, flaky.FIRST_RUN), flaky.failed(tmp_path, flaky.LAST_FAILED)
    )
