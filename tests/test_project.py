"""What the project installs and ships, checked without a network and without Docker."""

from __future__ import annotations

import re
import subprocess
import tomllib
from itertools import chain
from pathlib import Path

import pytest
import yaml

from deploy import check_files
from deploy.embedded import POSTGRES_SETTINGS

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = sorted((ROOT / "requirements").glob("*.txt"))


@pytest.mark.parametrize("file", REQUIREMENTS, ids=lambda file: file.name)
def test_every_requirement_is_pinned_with_a_hash(file: Path) -> None:
    packages = re.findall(r"^\S.*(?:\n[ ]+--hash=.*)*", file.read_text(), re.MULTILINE)

    assert packages
    assert [] == [each for each in packages if not re.match(r"\S+==\S+", each) or "--hash=sha256:" not in each]


@pytest.mark.parametrize("file", REQUIREMENTS, ids=lambda file: file.name)
def test_no_requirement_names_a_registry(file: Path) -> None:
    assert [] == re.findall(r"^.*(?:://|--index|--extra-index|--find-links).*$", file.read_text(), re.MULTILINE)


def test_what_is_needed_is_what_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {
        "dev.txt": [*project["dependencies"], *chain(*project["optional-dependencies"].values())],
        "runtime.txt": project["dependencies"],
    }
    for name, needed in groups.items():
        pinned = set(re.findall(r"^([a-z0-9-]+)(?:\[.*\])?==", (ROOT / "requirements" / name).read_text(), re.MULTILINE))

        assert set() == {re.split(r"[\[=<> ]", each)[0].lower() for each in needed} - pinned, f"run `make requirements`: {name} is old"


def test_compose_follows_the_specification() -> None:
    assert [] == list(check_files.compose_errors((ROOT / "docker-compose.yml").read_text()))


def test_a_misspelt_key_in_compose_is_found() -> None:
    assert any("helthcheck" in error for error in check_files.compose_errors("services: {api: {image: x, helthcheck: {}}}"))


@pytest.mark.parametrize("name", ["docker-compose.yml", "Dockerfile"])
def test_every_setting_named_is_one_that_exists(name: str) -> None:
    assert [] == list(check_files.setting_errors(name))


def test_the_dockerfile_is_sound() -> None:
    assert [] == list(check_files.dockerfile_errors())


def test_compose_has_no_default_for_a_secret() -> None:
    text = (ROOT / "docker-compose.yml").read_text()

    assert [] == re.findall(r"\$\{\w*(?:PASSWORD|SECRET|TOKEN|AUTH)\w*(?::-|\})", text)


def test_postgres_is_set_up_alike_in_compose_and_embedded() -> None:
    command = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["postgres"]["command"]
    compose = dict(word.removeprefix("-c").split("=") for word in command[1:])
    ours_alone = {"listen_addresses", "unix_socket_directories"}

    assert {name: str(value) for name, value in POSTGRES_SETTINGS.items() if name not in ours_alone} == compose


def test_make_help_lists_every_target() -> None:
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert {"help", "setup", "demo", "up", "test", "lint", "bench", "chaos"} <= {line.split()[0] for line in said.splitlines()}
