"""Secrets that are mounted as files: read once, never beside a second value, and never shown by an error."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from deploy.local import services
from models.config import secret_files
from models.config.settings import Settings

CANARY = "canary-of-a-secret-0123456789"
KEYS = base64.b64encode(bytes(32)).decode()
# What each may hold.
VALUES = {
    "database_url": f"postgresql+psycopg://u:{CANARY}@db/n", "redis_url": f"redis://:{CANARY}@redis:6379/0", "secret_keys": KEYS,
    "page_key": CANARY, "ops_token": CANARY, "flower_basic_auth": f"user:{CANARY}",
}  # fmt: skip


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("NOWSERVING_")]:
        monkeypatch.delenv(name)


def written(folder: Path, text: str, name: str = "secret") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def shown(value: object) -> object:
    """A secret, opened."""
    if isinstance(value, tuple):
        return ",".join(str(shown(one)) for one in value)
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def refusal() -> str:
    with pytest.raises(ValidationError) as caught:
        Settings()
    return str(caught.value)


def test_every_secret_may_come_from_a_file() -> None:
    secrets = {name for name, one in Settings.model_fields.items() if "SecretStr" in str(one.annotation)}

    # Proxies stand in the environment under the names that all programs read.
    secrets -= {"http_proxy", "https_proxy", "all_proxy", "upstream_proxy"}
    assert secrets | {"database_url", "redis_url"} == set(secret_files.NAMES)
    assert {f"{name}_file" for name in secret_files.NAMES} <= set(Settings.model_fields)


@pytest.mark.parametrize("name", secret_files.NAMES)
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_secret_file_is_read_without_its_last_newline(name: str, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"NOWSERVING_{name.upper()}_FILE", str(written(tmp_path, VALUES[name] + end)))

    assert VALUES[name] == shown(getattr(Settings(), name))


def test_only_one_newline_is_taken_off(tmp_path: Path) -> None:
    given = {"ops_token_file": str(written(tmp_path, " spaces stay \n\n"))}

    assert {"ops_token": " spaces stay \n"} == secret_files.load_secrets(given)


@pytest.mark.parametrize("name", secret_files.NAMES)
def test_a_secret_given_twice_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"NOWSERVING_{name.upper()}", VALUES[name])
    monkeypatch.setenv(f"NOWSERVING_{name.upper()}_FILE", str(written(tmp_path, VALUES[name])))
    result = refusal()

    assert f"NOWSERVING_{name.upper()} and NOWSERVING_{name.upper()}_FILE are both set: unset one" in result
    assert CANARY not in result and KEYS not in result


def test_an_empty_setting_beside_a_file_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOWSERVING_OPS_TOKEN", "")
    monkeypatch.setenv("NOWSERVING_OPS_TOKEN_FILE", str(written(tmp_path, CANARY)))
    monkeypatch.setenv("NOWSERVING_PAGE_KEY_FILE", "")

    assert (CANARY, "") == (Settings().ops_token.get_secret_value(), Settings().page_key.get_secret_value())


def test_missing_file_is_named_with_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOWSERVING_DATABASE_URL_FILE", str(tmp_path / "none"))
    result = refusal()

    assert f"NOWSERVING_DATABASE_URL_FILE: {tmp_path / 'none'} cannot be read (No such file or directory): mount it where" in result


def test_a_folder_bytes_and_an_empty_file_are_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    reasons = {tmp_path: "Is a directory", tmp_path / "bytes": "it is not text", written(tmp_path, "\n", "empty"): "is empty"}
    for file, reason in reasons.items():
        monkeypatch.setenv("NOWSERVING_OPS_TOKEN_FILE", str(file))

        assert reason in refusal()


def test_no_error_of_the_settings_shows_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOWSERVING_DATABASE_URL", VALUES["database_url"])
    monkeypatch.setenv("NOWSERVING_SECRET_KEYS_FILE", str(written(tmp_path, CANARY)))
    result = refusal()

    assert "must be 32 random bytes" in result
    assert CANARY not in result


def test_services_read_the_stacks_secret_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {"NOWSERVING_REDIS_URL_FILE": str(written(tmp_path, VALUES["redis_url"]))}
    monkeypatch.setenv(*next(iter(shown.items())))  # as where the stack's own environment names it

    assert VALUES["redis_url"] == services.read_settings(shown).redis_url
    with pytest.raises(services.CannotStart, match="NOWSERVING_REDIS_URL and NOWSERVING_REDIS_URL_FILE are both set") as caught:
        services.read_settings({**shown, "NOWSERVING_REDIS_URL": "redis://x"})
    assert CANARY not in str(caught.value)


def test_command_names_an_unreadable_file_in_one_line(tmp_path: Path) -> None:
    environment = {**os.environ, "NOWSERVING_SECRET_KEYS_FILE": str(tmp_path / "none")}
    argv = [sys.executable, "-m", "cli.main", "keys", "list"]
    run = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)

    assert 2 == run.returncode
    assert 1 == len(run.stderr.splitlines()), run.stderr
    assert f"NOWSERVING_SECRET_KEYS_FILE: {tmp_path / 'none'} cannot be read" in run.stderr
