"""Tests of the wheel: one top-level name, and a command that runs from it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like site-packages that holds only the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    with ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def test_wheel_installs_one_top_level_name(site: Path) -> None:
    assert {"nowserving"} == {entry.name for entry in site.iterdir() if not entry.name.endswith(".dist-info")}


def test_command_of_the_wheel_runs_its_own_packages(site: Path, tmp_path: Path) -> None:
    code = """
import runpy, sys
sys.argv = ["nowserving", "--help"]
try:
    runpy.run_module("nowserving", run_name="__main__")
except SystemExit:
    import api.app, cli.main, models.database.db, os
    print(api.app.__file__, cli.main.__file__, models.database.db.__file__, os.environ["PYTHONPATH"].split(":")[0])
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(site)}, capture_output=True, text=True, check=True, timeout=60
    )
    last = result.stdout.splitlines()[-1].split()

    assert "Usage: nowserving" in result.stdout
    assert [True] * 4 == [path.startswith(str(site / "nowserving")) for path in last]


def test_wheel_ships_what_the_programs_read_from_disk(site: Path) -> None:
    files = ("workers/limiter/limiter.lua", "models/migrations/env.py", "api/pages/ops.html", "deploy/setup.sh")

    assert [] == [name for name in files if not (site / "nowserving" / name).exists()]
