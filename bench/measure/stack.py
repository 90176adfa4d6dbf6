"""The stack that is measured: PostgreSQL with fsync on, Valkey, the fake upstream, and our API, pacer and workers as processes."""

from __future__ import annotations

import base64
import http.client
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from sqlalchemy import text

from deploy.local.embedded_servers import Postgres, Valkey, free_port
from deploy.local.server_process import die_with_parent, last_lines
from models.access.audit_log import Act
from models.config.settings import settings
from models.database import db, migrate
from models.keys import keys as key
from models.keys.keys import Key, Limits
from models.ops import limits_and_caps
from models.queue import lanes
from tests.upstream.client import FakeUpstream

ROOT = Path(__file__).parents[2]
PARTS = ("api", "pacer", "worker")
MODEL = "gpt-4o-mini"
START_S = 300
STOP_S = 15
# More jobs than these end in no second: so many are not looked at before.
QUICKEST_PER_S = 400


@dataclass(frozen=True)
class Caller:
    """A key of its own, with its lane for MODEL."""

    token: str
    key: Key
    credential_id: int
    lane_id: int


class Stack:
    """Start it in the main thread: its processes die with the thread that started them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pictures = folder / "pictures"
        self.postgres = Postgres(folder / "postgres")
        self.valkey = Valkey(folder / "valkey")
        self.upstream = FakeUpstream()
        self.port, self.webhook_port = free_port(), free_port()
        self._parts: dict[str, subprocess.Popen[bytes]] = {}
        self._api_processes = 0

    def __enter__(self) -> Self:
        for server in (self.postgres, self.valkey, self.upstream):
            server.start()
        for name in [name for name in os.environ if name.startswith("NOWSERVING_")]:
            del os.environ[name]
        os.environ |= {
            "NOWSERVING_DATABASE_URL": self.postgres.url,
            "NOWSERVING_REDIS_URL": self.valkey.url,
            "NOWSERVING_SECRET_KEYS": base64.b64encode(os.urandom(32)).decode(),
            "NOWSERVING_OPEN_KEYS": "true",
            "NOWSERVING_DATA_DIR": str(self.folder / "data"),
            "NOWSERVING_PORT": str(self.port),
            "NOWSERVING_MAX_QUEUED_PER_LANE": "2000000",
            "NOWSERVING_MAX_WAITING_PER_PROCESS": "20000",
            "NOWSERVING_SHUTDOWN_GRACE_S": "5",
            "NOWSERVING_LOG_LEVEL": "WARNING",
            "NOWSERVING_WEBHOOK_ALLOW_HTTP": "true",
            "NOWSERVING_WEBHOOK_ALLOW_PORTS": str(self.webhook_port),
            "NOWSERVING_WEBHOOK_ALLOW_NETWORKS": "127.0.0.0/8",
            "OPENAI_BASE_URL": self.upstream.base_url,
        }
        settings.cache_clear()
        migrate.to_latest()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.halt()
        db.engine().dispose()
        self.upstream.stop()
        self.valkey.stop()
        self.postgres.stop()

    def serve(self, *, workers: int = 1, api_processes: int = 1) -> None:
        """API, pacer and so many workers run and are ready. What runs already goes on, unless it were too many."""
        wanted = (*PARTS, *(f"worker {n}" for n in range(2, workers + 1)))
        if set(self._parts) - set(wanted) or self._api_processes != api_processes:
            self.halt()
        self._api_processes = api_processes
        os.environ["NOWSERVING_API_PROCESSES"] = str(api_processes)
        for name in wanted:
            if name not in self._parts:
                with self._log(name).open("ab") as log:
                    command = [sys.executable, "-m", "cli.main", name.split()[0]]
                    self._parts[name] = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, preexec_fn=die_with_parent)
        self.wait_until(lambda: self._is_ready(workers), "the stack is ready", START_S)

    def halt(self) -> None:
        """Only the servers and the upstream are left."""
        for part in reversed(list(self._parts.values())):
            part.terminate()
            try:
                part.wait(STOP_S)
            except subprocess.TimeoutExpired:
                part.kill()
                part.wait()
        self._parts.clear()

    def caller(self, token: str, limits: Limits) -> Caller:
        """A new key whose credential has these limits."""
        with db.begin() as session:
            made = key.authenticate(session, token)
            credential_id = self.ask("SELECT id FROM credential WHERE pool_id = :pool", pool=made.pool_id, session=session)
            limits_and_caps.set_limits(session, Act(), credential_id, vars(limits), model="*")
        return Caller(token, made, credential_id, lanes.id_of(made.pool_id, MODEL))

    def pool(self, name: str, keys: int, limits: Limits) -> list[Caller]:
        """A new pool of one credential with these limits, and so many issued keys of it."""
        with db.begin() as session:
            pool_id = key.create_pool(session, name)
            credential_id = key.add_credential(session, pool_id=pool_id, upstream_key=f"sk-{name}")
            limits_and_caps.set_limits(session, Act(), credential_id, vars(limits), model="*")
            made = [key.issue(session, name=f"{name} {n}", pool=name) for n in range(keys)]
        lane_id = lanes.id_of(pool_id, MODEL)
        return [Caller(token, each, credential_id, lane_id) for each, token in made]

    def pause(self, caller: Caller, *, until: Callable[[], Any]) -> None:
        """Admits no job of this caller's lane until `until` has returned."""
        self.do("UPDATE lane SET paused_at = now() WHERE id = :id", id=caller.lane_id)
        try:
            until()
        finally:
            self.do("UPDATE lane SET paused_at = NULL, wake_at = now() WHERE id = :id", id=caller.lane_id)

    def wait_until_ended(self, caller: Caller, jobs: int, *, within_s: float) -> None:
        """This many of the caller's jobs have ended."""
        until = time.monotonic() + within_s
        while (left := jobs - self.ended(caller)) > 0:
            if time.monotonic() > until:
                raise TimeoutError(f"not after {within_s:g} s: {jobs} jobs have ended. Logs are in {self.folder}")
            # Counting thousands takes milliseconds of what is measured.
            time.sleep(max(0.05, min(1.0, left / QUICKEST_PER_S)))

    def ended(self, caller: Caller) -> int:
        query = "SELECT count(*) FROM job WHERE key_id = :id AND status NOT IN ('queued', 'admitted', 'running')"
        return int(self.ask(query, id=caller.key.id))

    def clear(self) -> None:
        """Cancels all waiting jobs and waits until the running ones have ended."""
        self.do("UPDATE job SET status = 'cancelled', ended_at = now() WHERE status = 'queued'")
        self.wait_until(lambda: not self.ask("SELECT count(*) FROM job WHERE status IN ('admitted', 'running')"), "all have ended", 30)

    def ask(self, query: str, *, session: db.Transaction | None = None, **values: object) -> Any:
        """The one value that this query finds."""
        if session is not None:
            return session.execute(text(query), values).scalar_one()
        with db.begin() as own:
            return own.execute(text(query), values).scalar_one()

    def rows(self, query: str, **values: object) -> Sequence[Any]:
        with db.begin() as session:
            return session.execute(text(query), values).all()

    def do(self, statement: str, **values: object) -> None:
        with db.begin() as session:
            session.execute(text("SET LOCAL statement_timeout = 0"))
            session.execute(text(statement), values)

    def redis(self) -> redis.Redis:
        return redis.Redis.from_url(self.valkey.url)

    def versions(self) -> dict[str, str]:
        """Of the servers, by their own word."""
        with self.redis() as client:
            return {"PostgreSQL": self.ask("SHOW server_version"), "Valkey": client.info("server")["valkey_version"]}

    def pids(self) -> dict[str, int]:
        """The first process of each part that runs."""
        assert self.postgres.process and self.valkey.process
        ours = {name: part.pid for name, part in self._parts.items()}
        return {**ours, "Postgres": self.postgres.process.pid, "Valkey": self.valkey.process.pid, "upstream": self.upstream.pid}

    def _is_ready(self, workers: int) -> bool:
        for name, part in self._parts.items():
            if part.poll() is not None:
                raise RuntimeError(f"{name} ended. The end of its log:\n{last_lines(self._log(name))}")
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
            connection.request("GET", "/readyz")
            is_up = connection.getresponse().status == http.client.OK
            connection.close()
        except OSError:
            return False
        return is_up and workers <= self.ask("SELECT count(*) FROM worker WHERE slots > 0 AND seen_at > now() - interval '20 s'")

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def wait_until(self, is_so: Callable[[], bool], what: str, within_s: float) -> None:
        """It is so. Raises TimeoutError when it is not in time."""
        until = time.monotonic() + within_s
        while not is_so():
            if time.monotonic() > until:
                raise TimeoutError(f"not after {within_s:g} s: {what}. Logs are in {self.folder}")
            time.sleep(0.1)
