"""The stack under test: servers, fake upstream, webhook receiver, and our services as processes that are restarted when they exit."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from sqlalchemy import text

from deploy.local import probe
from deploy.local.embedded_servers import Postgres, Valkey, free_port
from deploy.local.server_process import die_with_parent, last_lines
from models.billing import budgets
from models.config.settings import settings
from models.database import db, migrate
from models.keys import keys
from models.keys.keys import Key, Limits
from models.platform.errors import ServingError
from models.queue import lanes
from models.webhooks import endpoints
from tests.chaos import timeouts
from tests.chaos.broker_faults import CommandRewriter, MessageFaults
from tests.chaos.misbehaviour import Misbehaviour
from tests.chaos.tcp_proxy import TcpProxy
from tests.support.programs.forks import ROOT
from tests.support.programs.processes import prefork_server
from tests.support.queue_tools import store_limits
from tests.support.servers.webhook_receiver import Receiver
from tests.support.webhook_tools import ENDED
from tests.upstream.client import FakeUpstream
from workers.channels import notify

MODEL = "gpt-4o-mini"  # has a price
KEYS = 4
# Upstream keys behind the one issued key.
POOL_KEYS = 3
RPM, IN_FLIGHT = 300, 8
WORKERS, THREADS = 3, 12
GUNICORN = ("gunicorn", "-c", "python:api.serve", "api.app:create_app()")
POOL = 8  # Postgres connections per process
START_S = 90
RETRY_S = 0.5
PAUSE_S, PROBE_S = 1, 3
MAX_THROTTLES = 5
SETTINGS: Mapping[str, object] = {
    "open_keys": True, "budgets": "all", "lease_s": 9, "heartbeat_s": 1.5, "unclaimed_after_s": 4, "retry_base_s": 0.3,
    "retry_most_s": 5, "pause_s": PAUSE_S, "probe_s": PROBE_S, "default_timeout_s": 16, "status_grace_s": 5,
    "webhook_timeout_s": 3, "shutdown_grace_s": 20, "database_pool": POOL, "api_processes": 1, "log_level": "INFO",
    "webhook_allow_http": True, "webhook_allow_networks": "127.0.0.0/8", "pause_most_s": 4, "max_throttles": MAX_THROTTLES,
}  # fmt: skip


@dataclass
class Service:
    """One of our services.

    env: extra environment variables. host: where it runs, see `Stack.on`. should_run: False keeps it stopped.
    """

    name: str
    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    host: str = ""
    forked: bool = True
    should_run: bool = True
    pid: int = 0
    exit_expected: bool = False  # a fault stops it, so its exit is expected
    started: float = 0.0
    starts: int = 0

    def is_alive(self) -> bool:
        try:
            return bool(self.pid) and psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def signal(self, number: signal.Signals, *, group: bool = False) -> None:
        with suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    def kill(self) -> None:
        """SIGKILL the process and its children."""
        self.exit_expected = True
        self.signal(signal.SIGKILL, group=True)

    def ask_to_stop(self) -> None:
        self.exit_expected = True
        self.signal(signal.SIGTERM)


class Stack:
    """Start it, and call `restart_exited` often in the main thread: child processes die with the thread that started them."""

    api_count, worker_count, uses_forks = 2, WORKERS, True
    settings = SETTINGS

    def __init__(self, folder: Path, *, small_disk: Path | None = None) -> None:
        self.folder = folder
        self.postgres = Postgres((small_disk or folder) / "postgres")
        self.valkey = Valkey(folder / "valkey")
        self.upstream = FakeUpstream(host=self.address("upstream"))
        self.receiver = Receiver(folder, host=self.address("client"))
        self.message_faults = MessageFaults()
        # Host and port of each API process.
        self.apis = [(self.address("api"), free_port()) for _ in range(self.api_count)]
        self.proxies: dict[str, TcpProxy] = {}
        self.tokens = [f"sk-chaos-{n}" for n in range(KEYS)]
        self.pool_keys = [f"sk-pool-{n}" for n in range(POOL_KEYS)]
        self.pool_token = ""
        self.upstream_keys = [*self.tokens, *self.pool_keys]
        self.misbehaviour = Misbehaviour(self.upstream, self.upstream_keys)
        self.services: dict[str, Service] = {}
        self.sessions: set[int] = set()
        self.surprises: list[str] = []
        self._children: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        if self.uses_forks:
            prefork_server()
        for server, host in ((self.postgres, "postgres"), (self.valkey, "valkey"), (self.upstream, "upstream")):
            with self.on(host):
                server.start()
        self.receiver.start()
        for name in [name for name in os.environ if name.startswith("NOWSERVING_")]:
            del os.environ[name]
        wanted = {**self.settings, "webhook_allow_ports": self.receiver.port, "data_dir": self.folder / "data"}
        os.environ |= {f"NOWSERVING_{name.upper()}": str(value) for name, value in wanted.items()} | {
            "NOWSERVING_DATABASE_URL": self.postgres.url,
            "NOWSERVING_REDIS_URL": self.valkey.url,
            "NOWSERVING_SECRET_KEYS": base64.b64encode(os.urandom(32)).decode(),
            "OPENAI_BASE_URL": self.upstream.base_url,
        }
        for cached in (settings, notify.client, db.engine, lanes.id_of):
            cached.cache_clear()
        migrate.to_latest()
        self._create_keys()
        self._start_services()
        self.wait_ready()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for service in self.services.values():
            service.signal(signal.SIGCONT, group=True)
            service.kill()
        for proxy in self.proxies.values():
            proxy.close()
        db.engine().dispose()
        self.upstream.stop()
        self.receiver.kill()
        self.valkey.kill()
        self.postgres.kill()

    def on(self, host: str) -> AbstractContextManager[None]:
        """This thread starts processes and opens sockets on this host: api, pacer, worker, postgres, … Here all share one machine."""
        return nullcontext()

    def address(self, host: str) -> str:
        """The address on which the servers of this host listen."""
        return "127.0.0.1"

    def restart_exited(self) -> None:
        """Start services that should run; record each exit that no fault explains."""
        for child in self._children:
            child.poll()
        for service in self.services.values():
            if not service.should_run or service.is_alive():
                continue
            if service.pid and not service.exit_expected:
                self.surprises.append(f"{service.name} ended by itself:\n{last_lines(self._log(service.name), limit=6)}")
            if time.monotonic() - service.started >= RETRY_S:
                self._start(service)

    def wait_ready(self, *, within_s: float = START_S) -> None:
        """Wait until every service is ready. Raises TimeoutError."""
        self.wait(self.is_ready, "every service is ready", within_s=within_s)

    def is_ready(self) -> bool:
        if not all(service.is_alive() for service in self.services.values()):
            return False
        try:
            return timeouts.call_with_timeout(self._check_ready, timeout_s=5)
        except (TimeoutError, ServingError):
            return False

    def wait(self, condition: Callable[[], bool], what: str, *, within_s: float) -> None:
        """Wait for a condition and restart exited services meanwhile. Raises TimeoutError."""
        give_up_at = time.monotonic() + within_s
        while True:
            self.restart_exited()
            with suppress(Exception):
                if timeouts.call_with_timeout(condition, timeout_s=10):
                    return
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"not after {within_s:g} s: {what}. Logs are in {self.folder}")
            time.sleep(0.2)

    def services_of(self, kind: str) -> list[Service]:
        """The services of this kind: api, worker, pacer, sender."""
        return [service for name, service in self.services.items() if name.startswith(kind)]

    def misbehave(self, share: float = 0.0, **behaviour: object) -> None:
        """Misbehave for this share of the calls; answer the others after a short delay."""
        self.misbehaviour.for_calls(share, **behaviour)

    def _check_ready(self) -> bool:
        if not all(probe.http_ok("/readyz", host=host, port=port) for host, port in self.apis):
            return False
        with db.begin() as session:
            return bool(session.execute(_WORKERS).scalar_one() >= self.worker_count)

    def _create_keys(self) -> None:
        """Create keys and a pool with money, a webhook endpoint each, and limits that the upstream enforces exactly."""
        for token in self.tokens:
            with db.begin() as session:
                self._set_up_key(session, keys.authenticate(session, token))
        with db.begin() as session:
            pool = keys.create_pool(session, "chaos")
            for upstream_key in self.pool_keys:
                keys.add_credential(session, pool_id=pool, upstream_key=upstream_key)
            issued, self.pool_token = keys.issue(session, name="chaos", pool="chaos")
            self._set_up_key(session, issued)
        for name in self.upstream_keys:
            self.upstream.limit(name, rpm=RPM, in_flight=IN_FLIGHT, mode="window", hide_headers=True)
        self.misbehave()

    def _set_up_key(self, session: db.Transaction, caller: Key) -> None:
        for row in session.execute(text("SELECT id FROM credential WHERE pool_id = :id"), {"id": caller.pool_id}).all():
            store_limits(session, row.id, Limits(rpm=RPM, max_in_flight=IN_FLIGHT))
        budgets.grant(session, caller.id, 1_000_000_000)
        endpoints.create(session, caller.id, name="chaos", url=self.receiver.url("/endpoint", fail=0.1), event_types=ENDED)

    def _start_services(self) -> None:
        redis_url, database_url = self.valkey.url, self.postgres.url
        self.proxies = {
            "redis": TcpProxy(self.valkey.port), "postgres": TcpProxy(self.postgres.port),
            "pacer": TcpProxy(self.valkey.port, rewrite=lambda: CommandRewriter(self.message_faults)),
        }  # fmt: skip

        def proxied_url(proxy: str) -> str:
            url, port = (database_url, self.postgres.port) if proxy == "postgres" else (redis_url, self.valkey.port)
            return url.replace(f":{port}/", f":{self.proxies[proxy].port}/")

        for n, (_, port) in enumerate(self.apis):
            self.add(Service(f"api{n}", GUNICORN, {"NOWSERVING_PORT": str(port)}, forked=False))
        for n in range(WORKERS):
            # The last worker reaches its servers through proxies that can be cut.
            own = {"NOWSERVING_WORKER_THREADS": str(THREADS)}
            if n == WORKERS - 1:
                own |= {"NOWSERVING_REDIS_URL": proxied_url("redis"), "NOWSERVING_DATABASE_URL": proxied_url("postgres")}
            self.add(Service(f"worker{n}", consumer("jobs", THREADS), own))
        for n in range(2):
            self.add(Service(f"pacer{n}", ("workers.pacer",), {"NOWSERVING_REDIS_URL": proxied_url("pacer")}))
        self.add(Service("sender0", consumer("webhooks", 16)))

    def add(self, service: Service) -> None:
        """Register a service and start it."""
        self.services[service.name] = service
        self._start(service)

    def _start(self, service: Service) -> None:
        service.starts += 1
        argv = [*service.argv, *(["--name", f"{service.name}-{service.starts}"] if service.argv[0] == "workers.consumer" else [])]
        env = {**os.environ, **service.env}
        log = self._log(service.name)
        if service.forked and "LD_PRELOAD" not in env:
            service.pid = prefork_server().start(argv, env=env, log=log)
        else:
            with log.open("ab") as output, self.on(service.host):
                child = subprocess.Popen(
                    [sys.executable, "-m", *argv], cwd=ROOT, env=env, stdout=output, stderr=output, stdin=subprocess.DEVNULL,
                    preexec_fn=lambda: die_with_parent(signal.SIGKILL), start_new_session=True,
                )  # fmt: skip
            self._children.append(child)
            service.pid = child.pid
        service.started, service.exit_expected = time.monotonic(), False
        self.sessions.add(service.pid)

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"


def consumer(queue: str, threads: int) -> tuple[str, ...]:
    """The command line of a consumer process."""
    return ("workers.consumer", queue, "--threads", str(threads))


_WORKERS = text("SELECT count(*) FROM worker WHERE name LIKE 'worker%' AND slots > 0 AND seen_at > now() - interval '5 s'")
