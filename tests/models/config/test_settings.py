"""A wrong setting is one line: its name, what is wrong, an example. Every setting is tried with five wrong values."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType

import pytest
from click.testing import CliRunner
from pydantic import SecretStr

from cli.main import nowserving
from models.config import secret_files
from models.config.setting_errors import env_name
from models.config.settings import Settings, settings

ROOT = Path(__file__).parents[3]
# Any text is right there, or a program sets it for itself (metrics_folder).
FREE = frozenset({
    "no_proxy", "metrics_folder", "otel_sdk_disabled", "otel_traces_exporter", "default_image_model", "session_system_prompt",
    "pro_model", "crash",
})  # fmt: skip
URL = ("ftp://host", "host:80", "http://", "https://a b.example", "https://host/?a=b")
HOST = ("http://127.0.0.1", "127.0.0.1:8000", "a b", "256.1.1.1", "host/path")
PROXY = ("ftp://host", "host:port", "socks4://host", "http://a b", "http://host:99999")
HEADERS = ("Cookie", "a b", "Host", "Authorization", "Connection")
TOKEN = ("Bearer sk-hunter2", "sk-hunter2\nmore", "sk hunter2", "sk-hünter2", "\thunter2")
NETWORKS = ("host", "10.0.0.0/33", "10.0.0.1/8", "10.0.0.0-10.0.0.9", "::/200")
WRONG: Mapping[str, Sequence[str]] = MappingProxyType({
    "host": HOST, "metrics_host": HOST, "public_url": URL, "otlp_endpoint": URL, "otlp_traces_endpoint": URL, "page_key": TOKEN,
    "ops_token": TOKEN, "openai_base_url": URL, "http_proxy": PROXY, "https_proxy": PROXY, "all_proxy": PROXY, "upstream_proxy": PROXY,
    "forward_headers": HEADERS, "forward_headers_issued": HEADERS, "trusted_proxies": NETWORKS, "webhook_allow_networks": NETWORKS,
    "allowed_hosts": ("https://a.example", "a.example:8000", "a b", "a.*.example", "*example"),
    "cors_origins": ("chat.example.com", "https://a.example/page", "https://a.example,b", "tauri://a/b", "https://a b"),
    "data_dir": ("", "/dev/null", "/dev/null/below", "/etc/passwd", "/etc/passwd/below/it"),
    "database_url": ("localhost", "mysql://hunter2@host/x", "postgresql://", "postgresql://u:hunter2@host:port/x", "postgresql://a b/x"),
    "redis_url": ("localhost:6379", "http://host", "redis://", "redis://:hunter2@host:port/0", "redis://host/name"),
    "secret_keys": ("hunter2", "aHVudGVyMg==", "hunter2,hunter2", "not base64!", "A" * 43),
    "flower_basic_auth": ("hunter2", ":hunter2", "operator:", "opera tor:hunter2", "operator:hunter2\nmore"),
    "flower_url_prefix": ("http://host/flower", "/a b", "/a?b", "//flower", "/a#b"),
    "webhook_allow_ports": ("http", "0", "65536", "8080-8090", "-1"),
    "budgets": ("", "ALL", "none", "true", "issued,all"), "log_level": ("", "verbose", "2", "warn", "INFO DEBUG"),
    "prices_file": ("/nowhere", "/dev", "/etc/passwd", "/etc/hostname", "/proc/self/mem"),
})  # fmt: skip
NUMBERS = ("", "many", "-1", "1,000", "nan")
TRUTHS = ("", "maybe", "2", "ja", "truely")
FILES = ("/nowhere", "/dev", "/dev/null", "/etc/passwd/below", "/bin/true")


def wrong(field: str) -> Sequence[str]:
    """Five values that this setting cannot have."""
    kind = Settings.model_fields[field].annotation
    if field in WRONG:
        return WRONG[field]
    if field.removesuffix("_file") in secret_files.NAMES:
        return FILES
    return TRUTHS if kind is bool else NUMBERS if kind in (int, float, Decimal) else ()


CASES = [(field, value) for field in Settings.model_fields if field not in FREE for value in wrong(field)]


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith(("NOWSERVING_", "OPENAI_", "OTEL_"))]:
        monkeypatch.delenv(name)
    settings.cache_clear()
    yield
    monkeypatch.undo()
    settings.cache_clear()


def test_every_setting_is_tried_with_five_values() -> None:
    assert {field: 5 for field in Settings.model_fields if field not in FREE} == {
        field: len(set(wrong(field))) for field in Settings.model_fields if field not in FREE
    }


@pytest.mark.parametrize(("field", "value"), CASES)
def test_a_wrong_setting_is_one_line_with_an_example_and_status_2(field: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(env_name(field), value)
    began = time.thread_time()
    result = CliRunner().invoke(nowserving, ["health", "api"])
    took_s = time.thread_time() - began  # of CPU: nothing here waits
    name = env_name(field)

    assert 2 == result.exit_code, result.output
    (line,) = result.output.strip().splitlines()
    assert name in line
    assert "example" in line or "Example" in line or "openssl" in line
    assert "hunter2" not in line
    assert took_s < 1


@pytest.mark.parametrize(
    ("field", "value", "used"),
    [
        ("database_url", "postgres://u:p@host/x", "postgresql+psycopg://u:p@host/x"),
        ("database_url", "postgresql+psycopg:///x?host=/run/postgresql", "postgresql+psycopg:///x?host=/run/postgresql"),
        ("redis_url", "rediss://:p%20@[::1]:6379/1", "rediss://:p%20@[::1]:6379/1"), ("log_level", "debug", "DEBUG"),
        ("public_url", "https://host/path/", "https://host/path/"), ("host", "::", "::"), ("host", "0.0.0.0", "0.0.0.0"),
        ("host", "my-host_1.example", "my-host_1.example"), ("flower_url_prefix", "/flower", "/flower"),
        ("allowed_hosts", "*.A.example., [::1], 10.0.0.1,*", (".a.example", "::1", "10.0.0.1", "*")),
        ("cors_origins", "*", ("*",)), ("webhook_allow_ports", "80, 8080", (80, 8080)), ("page_key", "sk-x_Y.z=", SecretStr("sk-x_Y.z=")),
    ],
)  # fmt: skip
def test_right_values_are_taken(field: str, value: str, used: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(env_name(field), value)

    assert used == getattr(Settings(), field)


@pytest.mark.parametrize(
    ("command", "wrong_setting"),
    [
        (["up"], {"NOWSERVING_LOG_LEVEL": "loud"}), (["up"], {"NOWSERVING_HOST": "192.0.2.1"}), (["pacer"], {}),
        (["worker"], {"NOWSERVING_DATABASE_URL": "localhost"}), (["api"], {"NOWSERVING_REDIS_URL": "localhost"}),
    ],
)  # fmt: skip
def test_every_part_refuses_to_start_with_status_2(command: list[str], wrong_setting: dict[str, str], tmp_path: Path) -> None:
    environment = {**os.environ, "NOWSERVING_DATA_DIR": str(tmp_path), **wrong_setting}
    result = subprocess.run(
        [sys.executable, "-m", "cli.main", *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )

    assert 2 == result.returncode, result.stderr
    assert (list(wrong_setting) or ["NOWSERVING_DATABASE_URL"])[0] in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", secret_files.NAMES)
def test_a_setting_given_twice_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / name
    file.write_text("x")
    monkeypatch.setenv(f"NOWSERVING_{name.upper()}", "y")
    monkeypatch.setenv(f"NOWSERVING_{name.upper()}_FILE", str(file))
    result = CliRunner().invoke(nowserving, ["health", "api"])

    assert 2 == result.exit_code
    assert "are both set" in result.output
