"""The stack of the fault harness on several hosts: API, pacer, two workers, PostgreSQL, Valkey and upstream have one each."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from deploy.local import probe
from deploy.local.embedded_servers import Postgres, Valkey
from tests.chaos import clock
from tests.chaos.clock import Clock
from tests.chaos.stack import GUNICORN, SETTINGS, THREADS, Service, Stack, consumer
from tests.hosts.network import NETWORK, Network
from tests.support.programs.process import until

WORKERS = ("worker0", "worker1")
HOSTS = ("api", "pacer", *WORKERS, "postgres", "valkey", "upstream")
# Hosts that run our services; each has a clock of its own.
SERVICE_HOSTS = ("api", "pacer", *WORKERS)


@dataclass
class PostgresOfHost(Postgres):
    """Listens on its host's address too, and accepts all hosts that have the password."""

    address: str = "127.0.0.1"

    @property
    def url(self) -> str:
        return super().url.replace("@127.0.0.1:", f"@{self.address}:")

    def start(self) -> str:
        self.options = ("-c", f"listen_addresses=127.0.0.1,{self.address}")
        super().start()
        assert self.process
        with (self.cluster / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {NETWORK} scram-sha-256\n")
        self.process.send_signal(signal.SIGHUP)
        until(lambda: probe.postgres_ready(self.port, host=self.address), what="PostgreSQL lets other hosts in")
        return self.url


@dataclass
class ValkeyOfHost(Valkey):
    """Listens on its host's address too."""

    address: str = "127.0.0.1"

    @property
    def url(self) -> str:
        return super().url.replace("@127.0.0.1:", f"@{self.address}:")

    def start(self) -> str:
        self.options = ("--bind", "127.0.0.1", self.address)
        return super().start()


class Hosts(Stack):
    """Must be created in a process with one thread, which becomes a host: clients and the webhook receiver run there."""

    # Without fork server: it would run on the test's own host.
    api_count, worker_count, uses_forks = 1, len(WORKERS), False
    settings: Mapping[str, object] = {**SETTINGS, "webhook_allow_networks": NETWORK, "host": "0.0.0.0"}

    def __init__(self, folder: Path) -> None:
        self.network = Network(HOSTS)
        super().__init__(folder)
        self.postgres = PostgresOfHost(folder / "postgres", address=self.address("postgres"))
        self.valkey = ValkeyOfHost(folder / "valkey", address=self.address("valkey"))
        self.clocks = {name: Clock(folder, name) for name in SERVICE_HOSTS} if clock.COMPILER else {}

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        super().__exit__(kind, error, trace)
        self.network.close()

    def on(self, host: str) -> AbstractContextManager[None]:
        return self.network.on(host)

    def address(self, host: str) -> str:
        return self.network.address(host)

    def _start_services(self) -> None:
        ((_, port),) = self.apis
        self._run("api0", GUNICORN, on="api", NOWSERVING_PORT=str(port))
        self._run("pacer0", ("workers.pacer",), on="pacer")
        for name in WORKERS:
            self._run(name, consumer("jobs", THREADS), on=name, NOWSERVING_WORKER_THREADS=str(THREADS))
        self._run("sender0", consumer("webhooks", 16), on=WORKERS[0])

    def _run(self, name: str, argv: tuple[str, ...], *, on: str, **env: str) -> None:
        own_clock = self.clocks[on].env if on in self.clocks else {}
        self.add(Service(name, argv, env={**env, **own_clock}, host=on, forked=False))
