"""The whole stack on one machine: embedded servers, API, pacer, workers, Flower.

    with Stack(Path("data"), local_model=True, env={"NOWSERVING_PORT": "0"}) as stack:
        print(stack.addresses.api)
        stack.child("worker").kill()

`nowserving up` runs this module: python -m deploy.local.stack [--local-model] [--verbose] [--processes N] [--threads M].
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import click

from deploy.local import data_folder, probe, services
from deploy.local.child_process import ChildProcess
from deploy.local.data_folder import FolderInUse
from deploy.local.server_process import ServerFailed
from deploy.local.service import ServiceFailed
from deploy.local.services import CannotStart
from deploy.local.supervisor import Supervisor
from models.config.settings import Settings

# Runs instead of forks of our programs; for tests.
PROGRAM: Sequence[str] | None = None

__all__ = ["Addresses", "CannotStart", "FolderInUse", "ServiceFailed", "Stack"]


@dataclass(frozen=True)
class Addresses:
    """The URLs of a running stack. api ends in /v1: it is the OPENAI_BASE_URL of a client."""

    api: str
    docs: str
    flower: str
    flower_login: str
    database: str
    redis: str
    upstream: str


class Stack:
    """One stack on one data folder. `start` chooses ports of 0 and missing secrets, and passes them to every service."""

    def __init__(
        self,
        data_dir: Path,
        *,
        local_model: bool = False,
        env: Mapping[str, str] | None = None,
        echo: Callable[[str], None] | None = None,
        program: Sequence[str] | None = None,
    ) -> None:
        """env: added to this process's environment. echo: gets each log line. program: see services.build_services."""
        self.data_dir = data_dir.absolute()
        self._base_environment = {"NOWSERVING_OPEN_KEYS": "true", "PYTHONUNBUFFERED": "1", **os.environ, **(env or {})}
        self.environment = {**self._base_environment, "NOWSERVING_DATA_DIR": str(self.data_dir)}
        self._local_model, self._echo, self._program = local_model, echo, program or PROGRAM
        self._supervisor: Supervisor | None = None
        self._lock: int | None = None
        self._is_stop_requested = False

    def start(self) -> bool:
        """Starts all services; False if stopped before they are ready. Raises CannotStart, FolderInUse or ServiceFailed after a stop."""
        try:
            self._lock = data_folder.lock(self.data_dir)
        except OSError as error:
            raise CannotStart(f"the data folder cannot be used ({error}): choose another with NOWSERVING_DATA_DIR") from error
        self.environment = {**self._base_environment, "NOWSERVING_DATA_DIR": str(self.data_dir)}
        try:
            specs = services.build_services(self.environment, self.data_dir, local_model=self._local_model, command=self._program)
            self._supervisor = Supervisor(specs, logs=self.data_dir / "logs", echo=self._echo, held=(self._lock,))
            if self._is_stop_requested:
                self._supervisor.request_stop()
            is_ready = self._supervisor.start()
            if is_ready:
                data_folder.write_connection(self.data_dir, self.settings)
            return is_ready
        except (OSError, ServerFailed, data_folder.Damaged) as error:
            self.stop()
            raise CannotStart(_explain(error, self.data_dir)) from error
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stops all services, the last started first, and unlocks the data folder."""
        if self._supervisor:
            self._supervisor.stop()
        if self._lock is not None:
            data_folder.delete_connection(self.data_dir)
            os.close(self._lock)
            self._lock = None

    def wait(self) -> None:
        """Waits until a requested stop is complete. Raises ServiceFailed when the supervisor failed."""
        try:
            if self._supervisor:
                self._supervisor.wait()
        finally:
            self.stop()

    def request_stop(self) -> None:
        """Requests a stop and returns at once; the second call kills all services. Safe in a signal handler."""
        if self._supervisor and self._is_stop_requested:
            self._supervisor.kill()
        elif self._supervisor:
            self._supervisor.request_stop()
        self._is_stop_requested = True

    def child(self, name: str) -> ChildProcess:
        """Returns the process of postgres, valkey, model, forker, api, migrate, pacer, worker or flower."""
        assert self._supervisor, "start the stack first"
        return self._supervisor.child(name)

    @property
    def settings(self) -> Settings:
        """The settings of the services."""
        return services.read_settings(self.environment)

    @property
    def addresses(self) -> Addresses:
        """The URLs; known after `start`."""
        settings = self.settings
        api = f"http://{probe.reachable(settings.host)}:{settings.port}"
        return Addresses(
            api=f"{api}/v1", docs=f"{api}/docs", flower=f"http://127.0.0.1:{settings.flower_port}",
            flower_login=settings.flower_basic_auth.get_secret_value(), database=settings.database_url, redis=settings.redis_url,
            upstream=settings.openai_base_url,
        )  # fmt: skip

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def _explain(error: Exception, data_dir: Path) -> str:
    if not isinstance(error, OSError):
        return str(error)
    reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return f"the data folder {data_dir} cannot be used ({reason}): free space or grant access, or choose another with NOWSERVING_DATA_DIR"


class _WrongSetting(click.ClickException):
    exit_code = 2


@click.command()
@click.option("--local-model", is_flag=True, help="Answer from a small model on this machine instead of the OpenAI API.")
@click.option("--verbose", is_flag=True, help="Show the log of every service.")
@click.option("--processes", type=int, help="Worker processes (NOWSERVING_WORKER_PROCESSES).")
@click.option("--threads", type=int, help="Concurrent calls in each process (NOWSERVING_WORKER_THREADS).")
def up(*, local_model: bool, verbose: bool, processes: int | None, threads: int | None) -> None:
    """Run the whole stack in the foreground until Ctrl-C."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    counts = {"NOWSERVING_WORKER_PROCESSES": processes, "NOWSERVING_WORKER_THREADS": threads}
    try:
        data_dir = services.read_settings(os.environ).data_dir
        env = {name: str(count) for name, count in counts.items() if count is not None}
        stack = Stack(data_dir, local_model=local_model, env=env, echo=click.echo if verbose else None)
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(name, lambda *_: stack.request_stop())
        click.echo(f"starting; data and logs are in {stack.data_dir}")
        if stack.start():
            click.echo(_welcome(stack))
        stack.wait()
    except (CannotStart, FolderInUse, ServiceFailed) as error:
        raise (_WrongSetting if isinstance(error, services.WrongSetting) else click.ClickException)(str(error)) from error
    click.echo("stopped")


def _welcome(stack: Stack) -> str:
    urls = stack.addresses
    login = "" if "NOWSERVING_FLOWER_BASIC_AUTH" in os.environ else "   user and password: " + urls.flower_login.replace(":", " / ", 1)
    return f"ready\n  API     {urls.api}\n  docs    {urls.docs}\n  Flower  {urls.flower}{login}\n  upstream {urls.upstream}\nCtrl-C stops."


if __name__ == "__main__":
    up()
