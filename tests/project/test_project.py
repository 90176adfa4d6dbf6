"""Pinned requirements, docker-compose.yml, Dockerfile, secrets script and Makefile, checked without network and Docker."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.checks import files as check_files
from deploy.local.embedded_servers import POSTGRES_SETTINGS
from models.config import secret_files
from models.config.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = sorted((ROOT / "requirements").glob("*.txt"))


@pytest.mark.parametrize("file", REQUIREMENTS, ids=lambda file: file.name)
def test_every_requirement_is_pinned_with_a_hash(file: Path) -> None:
    packages = re.findall(r"^\S.*(?:\n[ ]+--hash=.*)*", file.read_text(), re.MULTILINE)

    assert packages
    assert [] == [each for each in packages if not re.match(r"\S+==\S+", each) or "--hash=sha256:" not in each]


@pytest.mark.parametrize("file", REQUIREMENTS, ids=lambda file: file.name)
def test_no_requirement_names_a_registry(file: Path) -> None:
    assert [] == re.findall(r"^.*(?:://|--index|--extra-index|--find-links).*$", file.read_text(), re.MULTILINE)


def test_pinned_requirements_match_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {
        "dev.txt": [*project["dependencies"], *chain(*project["optional-dependencies"].values())],
        "runtime.txt": [*project["dependencies"], *project["optional-dependencies"]["otel"]],
    }
    for name, needed in groups.items():
        pinned = set(re.findall(r"^([a-z0-9-]+)(?:\[.*\])?==", (ROOT / "requirements" / name).read_text(), re.MULTILINE))

        assert set() == {re.split(r"[\[=<> ]", each)[0].lower() for each in needed} - pinned, f"run `make requirements`: {name} is old"


def test_compose_follows_the_specification() -> None:
    assert [] == list(check_files.compose_errors((ROOT / "docker-compose.yml").read_text()))


def test_misspelt_compose_key_is_an_error() -> None:
    assert any("helthcheck" in error for error in check_files.compose_errors("services: {api: {image: x, helthcheck: {}}}"))


@pytest.mark.parametrize("name", ["docker-compose.yml", "Dockerfile"])
def test_every_named_setting_exists(name: str) -> None:
    assert [] == list(check_files.setting_errors(name))


def test_dockerfile_passes_its_checks() -> None:
    assert [] == list(check_files.dockerfile_errors())


def test_compose_has_no_default_for_a_secret() -> None:
    text = (ROOT / "docker-compose.yml").read_text()

    assert [] == re.findall(r"\$\{\w*(?:PASSWORD|SECRET|TOKEN|AUTH)\w*(?::-|\})", text)


def services() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"])


def secrets(folder: Path, **env: str) -> dict[str, str]:
    """The secrets that deploy/secrets.sh creates in this folder."""
    subprocess.run(["sh", str(ROOT / "deploy" / "secrets.sh"), str(folder)], check=True, capture_output=True, env={**os.environ, **env})
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_secrets_script_creates_all_secrets_that_compose_mounts(tmp_path: Path) -> None:
    created = secrets(tmp_path / "secrets")
    mounted = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["secrets"]
    files = {f"{name}_file": tmp_path / "secrets" / name for name in secret_files.NAMES if name != "page_key"}
    values = secret_files.load_secrets(files)

    assert {name: f"./secrets/{name}" for name in created} == {name: secret["file"] for name, secret in mounted.items()}
    assert 32 == len(base64.b64decode(values["secret_keys"]))
    assert values["database_url"].split(":")[2].split("@")[0] == created["postgres_password"].strip()
    assert values["redis_url"].split(":")[2].split("@")[0] == created["redis_password"].strip()
    # The folder keeps other users out; the users of the containers read the files.
    assert {0o700, 0o644} == {(tmp_path / "secrets").stat().st_mode & 0o777, *(file.stat().st_mode & 0o777 for file in files.values())}


def test_secrets_are_created_once_and_differ(tmp_path: Path) -> None:
    first, repeated = secrets(tmp_path / "one"), secrets(tmp_path / "one")
    other = secrets(tmp_path / "other", POSTGRES_HOST="db.example", REDIS_HOST="redis.example")

    assert first == repeated
    assert [] == [name for name in first if first[name] == other[name]]
    assert ("@db.example:5432/" in other["database_url"], "@redis.example:6379/" in other["redis_url"]) == (True, True)


@pytest.mark.parametrize("name", services())
def test_service_mounts_the_secrets_that_it_reads(name: str) -> None:
    service = services()[name]
    files = {value for key, value in service.get("environment", {}).items() if key.endswith("_FILE")}
    typed = set(re.findall(r"/run/secrets/\w+", str(service.get("command")) + str(service.get("healthcheck"))))

    assert files | typed == {f"/run/secrets/{secret}" for secret in service["secrets"]}


@pytest.mark.parametrize("name", services())
def test_every_service_has_memory_limit_health_check_and_restart_policy(name: str) -> None:
    service = services()[name]

    assert re.fullmatch(r"\d+[mg]", service["deploy"]["resources"]["limits"]["memory"])
    assert ("no", False) == (service["restart"], "healthcheck" in service) or (
        "unless-stopped" == service["restart"] and service["healthcheck"]["test"]
    )


def test_compose_workers_can_be_scaled() -> None:
    for name in ("pacer", "worker"):
        assert not {"ports", "container_name", "hostname"} & set(services()[name])


def test_stop_grace_period_covers_the_shutdown_grace() -> None:
    minutes = re.fullmatch(r"(\d+)m", services()["worker"]["stop_grace_period"])

    assert minutes and int(minutes[1]) * 60 > Settings.model_fields["shutdown_grace_s"].default


def test_postgres_settings_are_equal_in_compose_and_embedded() -> None:
    command = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["postgres"]["command"]
    compose = dict(arg.removeprefix("-c").split("=") for arg in command[1:])
    embedded_only = {"listen_addresses", "unix_socket_directories"}

    assert {name: str(value) for name, value in POSTGRES_SETTINGS.items() if name not in embedded_only} == compose


def test_make_help_lists_every_target() -> None:
    output = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert {"help", "setup", "demo", "up", "test", "lint", "bench", "chaos"} <= {line.split()[0] for line in output.splitlines()}
