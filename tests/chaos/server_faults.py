"""Faults of Valkey and PostgreSQL: killed, emptied, frozen, full, restarted, and their TCP connections cut."""

from __future__ import annotations

import signal
import threading
from contextlib import suppress

import psutil
import psycopg
import redis

from tests.chaos.fault import Fault, running_jobs
from tests.chaos.stack import THREADS

FROZEN_S = 10.0


class _Valkey(Fault):
    on = frozenset({"valkey"})

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.stack.valkey.url, socket_timeout=3)


class ValkeyEmptied(_Valkey):
    """Killed, and started empty after a moment."""

    lasts_s = 3

    def begin(self) -> None:
        self.stack.valkey.kill()

    def end(self) -> None:
        self.stack.valkey.start()


class ValkeyRestarted(ValkeyEmptied):
    """Killed, and started with the data of a moment before."""

    def begin(self) -> None:
        with self.client() as client:
            client.save()
        super().begin()

    def end(self) -> None:
        super().end()
        (self.stack.valkey.folder / "dump.rdb").unlink(missing_ok=True)


class FlushAll(_Valkey):
    def begin(self) -> None:
        with self.client() as client:
            client.flushall()


class ValkeyFrozen(_Valkey):
    lasts_s = FROZEN_S

    def begin(self) -> None:
        assert self.stack.valkey.process
        self.stack.valkey.process.send_signal(signal.SIGSTOP)

    def end(self) -> None:
        assert self.stack.valkey.process
        self.stack.valkey.process.send_signal(signal.SIGCONT)


class ValkeyFull(_Valkey):
    """Out of memory: Valkey refuses writes and evicts nothing."""

    lasts_s = 10

    def begin(self) -> None:
        with self.client() as client:
            client.config_set("maxmemory", 1_000_000)

    def end(self) -> None:
        with self.client() as client:
            client.config_set("maxmemory", 0)


class _Postgres(Fault):
    on = frozenset({"postgres"})

    @property
    def _url(self) -> str:
        return self.stack.postgres.url.replace("+psycopg", "")


class PostgresRestarted(_Postgres):
    """Fast shutdown; down for two seconds."""

    lasts_s = 2

    def begin(self) -> None:
        self.stack.postgres.stop()

    def end(self) -> None:
        self.stack.postgres.start()


class PostgresCrashed(PostgresRestarted):
    """Immediate shutdown, as after a power failure; PostgreSQL recovers from its WAL."""

    def begin(self) -> None:
        self.stack.postgres.stop(immediate=True)


class PostgresCut(_Postgres):
    """Terminate every connection, five times in five seconds."""

    lasts_s = 5

    def begin(self) -> None:
        self._steps = 0

    def step(self) -> None:
        if self._steps % 10 == 0:
            with suppress(psycopg.Error), psycopg.connect(self._url, connect_timeout=2) as connection:
                connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'nowserving'")
        self._steps += 1


class PostgresFrozen(_Postgres):
    lasts_s = FROZEN_S

    def begin(self) -> None:
        self._send(signal.SIGSTOP)

    def end(self) -> None:
        self._send(signal.SIGCONT)

    def _send(self, number: signal.Signals) -> None:
        assert self.stack.postgres.process
        postmaster = psutil.Process(self.stack.postgres.process.pid)
        # The postmaster first, so that it forks no child that would be missed.
        for process in (postmaster, *postmaster.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)


class DiskFull(_Postgres):
    """The file system of the cluster is full, for tables and WAL: PostgreSQL panics and is started again."""

    lasts_s = 12

    def begin(self) -> None:
        self._filler = self.stack.postgres.folder / "filler"
        with suppress(OSError), self._filler.open("wb", buffering=0) as file:
            while file.write(b"\0" * 65536):
                pass
        threading.Thread(target=self._use_up_wal, daemon=True).start()

    def end(self) -> None:
        self._filler.unlink(missing_ok=True)
        if not self.stack.postgres.is_ready():
            self.stack.postgres.kill()
            self.stack.postgres.start()

    def _use_up_wal(self) -> None:
        """Consume the preallocated WAL segments: until then a full disk only affects tables."""
        with suppress(psycopg.Error), psycopg.connect(self._url, connect_timeout=2, autocommit=True) as connection:
            for _ in range(40):
                connection.execute("SELECT pg_logical_emit_message(false, 'chaos', 'full'), pg_switch_wal()")


class _Cut(Fault):
    """The TCP proxy of the last worker is silent (no byte passes, nothing is closed) or resets connections.

    lost: the worker's calls in flight, where they can be lost.
    """

    proxy = ""
    on = frozenset({"workers"})
    lasts_s = 14

    def begin(self) -> None:
        self.stack.proxies[self.proxy].set(self.rng.choice(("silent", "reset")))

    def end(self) -> None:
        self.stack.proxies[self.proxy].set("open")


class CutFromRedis(_Cut):
    proxy = "redis"


class CutFromPostgres(_Cut):
    """Lasts longer than the leases: the calls in flight are lost, and their late answers arrive after reconnection."""

    proxy = "postgres"

    def begin(self) -> None:
        self.lost = running_jobs(limit=THREADS)
        super().begin()


class DuplicatedMessages(Fault):
    """Every Celery message is delivered twice."""

    on = frozenset({"broker messages"})
    lasts_s = 15
    mode = "twice"

    def begin(self) -> None:
        self.stack.message_faults.mode = self.mode

    def end(self) -> None:
        self.stack.message_faults.mode = "once"


class LostMessages(DuplicatedMessages):
    """Every tenth Celery message is lost."""

    mode = "lossy"
