"""The stack under test: servers, upstream, receiver, and every part of ours as a process that is started again when it dies."""

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
from tests.chaos import requests as chaos_requests
from tests.chaos.broker_faults import Postman, Rewriter
from tests.chaos.mistreatment import Mistreatment
from tests.chaos.tcp_proxy import Link
from tests.support.programs.forks import ROOT
from tests.support.programs.processes import prefork_server
from tests.support.servers.webhook_receiver import Receiver
from tests.support.webhook_tools import ENDED
from tests.upstream.client import FakeUpstream
from workers.channels import notify

MODEL = "gpt-4o-mini"  # one that has a price
KEYS = 4
# Upstream keys behind the one issued key.
POOL_KEYS = 3
RPM, IN_FLIGHT = 300, 8
WORKERS, THREADS = 3, 12
GUNICORN = ("gunicorn", "-c", "python:api.serve", "api.app:create_app()")
POOL = 8  # connections to Postgres of each process
START_S = 90
AGAIN_S = 0.5
PAUSE_S, PROBE_S = 1, 3
MAX_THROTTLES = 5
SETTINGS: Mapping[str, object] = {
    "open_keys": True, "budgets": "all", "lease_s": 9, "heartbeat_s": 1.5, "unclaimed_after_s": 4, "retry_base_s": 0.3,
    "retry_most_s": 5, "pause_s": PAUSE_S, "probe_s": PROBE_S, "default_timeout_s": 16, "status_grace_s": 5,
    "webhook_timeout_s": 3, "shutdown_grace_s": 20, "database_pool": POOL, "api_processes": 1, "log_level": "INFO",
    "webhook_allow_http": True, "webhook_allow_networks": "127.0.0.0/8", "pause_most_s": 4, "max_throttles": MAX_THROTTLES,
}  # fmt: skip


@dataclass
class Part:
    """One of our programs. env: what its process has beyond the others'. host: where it runs, see `Plant.on`. want: False keeps it down."""

    name: str
    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    host: str = ""
    forked: bool = True
    want: bool = True
    pid: int = 0
    dies: bool = False  # a fault is on its way to it, so that its end is no surprise
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
        """Gone at once, with the processes it started."""
        self.dies = True
        self.signal(signal.SIGKILL, group=True)

    def ask_to_stop(self) -> None:
        self.dies = True
        self.signal(signal.SIGTERM)


class Plant:
    """Start it, and call `keep` often, in the main thread: processes die with the thread that started them."""

    apis_many, workers, forks = 2, WORKERS, True
    settings = SETTINGS

    def __init__(self, folder: Path, *, small_disk: Path | None = None) -> None:
        self.folder = folder
        self.postgres = Postgres((small_disk or folder) / "postgres")
        self.valkey = Valkey(folder / "valkey")
        self.upstream = FakeUpstream(host=self.address("upstream"))
        self.receiver = Receiver(folder, host=self.address("client"))
        self.postman = Postman()
        # Of each API process: its host and port.
        self.apis = [(self.address("api"), free_port()) for _ in range(self.apis_many)]
        self.links: dict[str, Link] = {}
        self.tokens = [f"sk-chaos-{n}" for n in range(KEYS)]
        self.pool_keys = [f"sk-pool-{n}" for n in range(POOL_KEYS)]
        self.pool_token = ""
        self.upstream_keys = [*self.tokens, *self.pool_keys]
        self.mistreated = Mistreatment(self.upstream, self.upstream_keys)
        self.parts: dict[str, Part] = {}
        self.sessions: set[int] = set()
        self.surprises: list[str] = []
        self._children: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        if self.forks:
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
        self._register()
        self._plan()
        self.wait_ready()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for part in self.parts.values():
            part.signal(signal.SIGCONT, group=True)
            part.kill()
        for link in self.links.values():
            link.close()
        db.engine().dispose()
        self.upstream.stop()
        self.receiver.kill()
        self.valkey.kill()
        self.postgres.kill()

    def on(self, host: str) -> AbstractContextManager[None]:
        """What this thread starts and opens meanwhile is on this host: api, pacer, worker, postgres, … Here all are on one machine."""
        return nullcontext()

    def address(self, host: str) -> str:
        """Where the servers of this host listen."""
        return "127.0.0.1"

    def keep(self) -> None:
        """Whatever should run and does not is started; whatever ended without a fault is written down."""
        for child in self._children:
            child.poll()
        for part in self.parts.values():
            if not part.want or part.is_alive():
                continue
            if part.pid and not part.dies:
                self.surprises.append(f"{part.name} ended by itself:\n{last_lines(self._log(part.name), most=6)}")
            if time.monotonic() - part.started >= AGAIN_S:
                self._start(part)

    def wait_ready(self, *, within_s: float = START_S) -> None:
        """Every part runs and says that it can work. Raises TimeoutError."""
        self.wait(self.is_ready, "every part is ready", within_s=within_s)

    def is_ready(self) -> bool:
        if not all(part.is_alive() for part in self.parts.values()):
            return False
        try:
            return chaos_requests.within(self._says_ready, s=5)
        except (TimeoutError, ServingError):
            return False

    def wait(self, is_so: Callable[[], bool], what: str, *, within_s: float) -> None:
        """It is so; what dies meanwhile is started again. Raises TimeoutError."""
        give_up_at = time.monotonic() + within_s
        while True:
            self.keep()
            with suppress(Exception):
                if chaos_requests.within(is_so, s=10):
                    return
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"not after {within_s:g} s: {what}. Logs are in {self.folder}")
            time.sleep(0.2)

    def named(self, kind: str) -> list[Part]:
        """The parts of this kind: api, worker, pacer, sender."""
        return [part for name, part in self.parts.items() if name.startswith(kind)]

    def upstream_does(self, share: float = 0.0, **how: object) -> None:
        """This share of the calls is mistreated in this way; the others are answered after a moment."""
        self.mistreated.calls(share, **how)

    def _says_ready(self) -> bool:
        if not all(probe.http_ok("/readyz", host=host, port=port) for host, port in self.apis):
            return False
        with db.begin() as session:
            return bool(session.execute(_WORKERS).scalar_one() >= self.workers)

    def _register(self) -> None:
        """Own keys and a pool, with limits that the upstream enforces to the letter, money, and a webhook endpoint each."""
        for token in self.tokens:
            with db.begin() as session:
                self._equip(session, keys.authenticate(session, token))
        with db.begin() as session:
            pool = keys.create_pool(session, "chaos")
            for upstream_key in self.pool_keys:
                keys.add_credential(session, pool_id=pool, upstream_key=upstream_key)
            issued, self.pool_token = keys.issue(session, name="chaos", pool="chaos")
            self._equip(session, issued)
        for name in self.upstream_keys:
            self.upstream.limit(name, rpm=RPM, in_flight=IN_FLIGHT, mode="window", hide_headers=True)
        self.upstream_does()

    def _equip(self, session: db.Transaction, caller: Key) -> None:
        for row in session.execute(text("SELECT id FROM credential WHERE pool_id = :id"), {"id": caller.pool_id}).all():
            keys.set_limits(session, row.id, Limits(rpm=RPM, max_in_flight=IN_FLIGHT))
        budgets.grant(session, caller.id, 1_000_000_000)
        endpoints.create(session, caller.id, name="chaos", url=self.receiver.url("/endpoint", fail=0.1), event_types=ENDED)

    def _plan(self) -> None:
        redis_url, database_url = self.valkey.url, self.postgres.url
        self.links = {
            "redis": Link(self.valkey.port), "postgres": Link(self.postgres.port),
            "pacer": Link(self.valkey.port, rewrite=lambda: Rewriter(self.postman)),
        }  # fmt: skip

        def through(link: str) -> str:
            url, port = (database_url, self.postgres.port) if link == "postgres" else (redis_url, self.valkey.port)
            return url.replace(f":{port}/", f":{self.links[link].port}/")

        for n, (_, port) in enumerate(self.apis):
            self.add(Part(f"api{n}", GUNICORN, {"NOWSERVING_PORT": str(port)}, forked=False))
        for n in range(WORKERS):
            # The last of them speaks to its servers over wires that can be cut.
            own = {"NOWSERVING_WORKER_THREADS": str(THREADS)}
            if n == WORKERS - 1:
                own |= {"NOWSERVING_REDIS_URL": through("redis"), "NOWSERVING_DATABASE_URL": through("postgres")}
            self.add(Part(f"worker{n}", consumer("jobs", THREADS), own))
        for n in range(2):
            self.add(Part(f"pacer{n}", ("workers.pacer",), {"NOWSERVING_REDIS_URL": through("pacer")}))
        self.add(Part("sender0", consumer("webhooks", 16)))

    def add(self, part: Part) -> None:
        """It is one of the parts, and starts."""
        self.parts[part.name] = part
        self._start(part)

    def _start(self, part: Part) -> None:
        part.starts += 1
        argv = [*part.argv, *(["--name", f"{part.name}-{part.starts}"] if part.argv[0] == "workers.consumer" else [])]
        env = {**os.environ, **part.env}
        log = self._log(part.name)
        if part.forked and "LD_PRELOAD" not in env:
            part.pid = prefork_server().start(argv, env=env, log=log)
        else:
            with log.open("ab") as output, self.on(part.host):
                child = subprocess.Popen(
                    [sys.executable, "-m", *argv], cwd=ROOT, env=env, stdout=output, stderr=output, stdin=subprocess.DEVNULL,
                    preexec_fn=lambda: die_with_parent(signal.SIGKILL), start_new_session=True,
                )  # fmt: skip
            self._children.append(child)
            part.pid = child.pid
        part.started, part.dies = time.monotonic(), False
        self.sessions.add(part.pid)

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"


def consumer(queue: str, threads: int) -> tuple[str, ...]:
    """The command line of a worker process."""
    return ("workers.consumer", queue, "--threads", str(threads))


_WORKERS = text("SELECT count(*) FROM worker WHERE name LIKE 'worker%' AND slots > 0 AND seen_at > now() - interval '5 s'")
