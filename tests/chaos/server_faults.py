"""Valkey and PostgreSQL killed, emptied, frozen, full, restarted, and the wires to them cut."""

from __future__ import annotations

import signal
import threading
from contextlib import suppress

import psutil
import psycopg
import redis

from tests.chaos.fault import Fault, in_flight
from tests.chaos.stack import THREADS

FROZEN_S = 10.0


class _Valkey(Fault):
    on = frozenset({"valkey"})

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.plant.valkey.url, socket_timeout=3)


class ValkeyEmptied(_Valkey):
    """Killed, away for a moment, and started with nothing in it."""

    lasts_s = 3

    def begin(self) -> None:
        self.plant.valkey.kill()

    def end(self) -> None:
        self.plant.valkey.start()


class ValkeyRestarted(ValkeyEmptied):
    """Killed, and started with the data of a moment before."""

    def begin(self) -> None:
        with self.client() as client:
            client.save()
        super().begin()

    def end(self) -> None:
        super().end()
        (self.plant.valkey.folder / "dump.rdb").unlink(missing_ok=True)


class FlushAll(_Valkey):
    def begin(self) -> None:
        with self.client() as client:
            client.flushall()


class ValkeyFrozen(_Valkey):
    lasts_s = FROZEN_S

    def begin(self) -> None:
        assert self.plant.valkey.process
        self.plant.valkey.process.send_signal(signal.SIGSTOP)

    def end(self) -> None:
        assert self.plant.valkey.process
        self.plant.valkey.process.send_signal(signal.SIGCONT)


class ValkeyFull(_Valkey):
    """Out of memory: it refuses to write, and evicts nothing."""

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
        return self.plant.postgres.url.replace("+psycopg", "")


class PostgresRestarted(_Postgres):
    """Fast shutdown, away for two seconds."""

    lasts_s = 2

    def begin(self) -> None:
        self.plant.postgres.stop()

    def end(self) -> None:
        self.plant.postgres.start()


class PostgresCrashed(PostgresRestarted):
    """Immediate shutdown, as after a power cut; it recovers from its log."""

    def begin(self) -> None:
        self.plant.postgres.stop(immediate=True)


class PostgresCut(_Postgres):
    """Every connection is ended, five times in as many seconds."""

    lasts_s = 5

    def begin(self) -> None:
        self._steps = 0

    def step(self) -> None:
        if self._steps % 10 == 0:
            with suppress(psycopg.Error), psycopg.connect(self._url, connect_timeout=2) as own:
                own.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'nowserving'")
        self._steps += 1


class PostgresFrozen(_Postgres):
    lasts_s = FROZEN_S

    def begin(self) -> None:
        self._send(signal.SIGSTOP)

    def end(self) -> None:
        self._send(signal.SIGCONT)

    def _send(self, number: signal.Signals) -> None:
        assert self.plant.postgres.process
        postmaster = psutil.Process(self.plant.postgres.process.pid)
        # The postmaster first, so that it makes no child that is forgotten.
        for one in (postmaster, *postmaster.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                one.send_signal(number)


class DiskFull(_Postgres):
    """The file system of its cluster has no byte left, for tables and for the log of writes: it panics, and is started again."""

    lasts_s = 12

    def begin(self) -> None:
        self._filler = self.plant.postgres.folder / "filler"
        with suppress(OSError), self._filler.open("wb", buffering=0) as file:
            while file.write(b"\0" * 65536):
                pass
        threading.Thread(target=self._use_up_the_log, daemon=True).start()

    def end(self) -> None:
        self._filler.unlink(missing_ok=True)
        if not self.plant.postgres.is_ready():
            self.plant.postgres.kill()
            self.plant.postgres.start()

    def _use_up_the_log(self) -> None:
        """Segments of it were made ahead: until those are used, only tables would feel that the disk is full."""
        with suppress(psycopg.Error), psycopg.connect(self._url, connect_timeout=2, autocommit=True) as own:
            for _ in range(40):
                own.execute("SELECT pg_logical_emit_message(false, 'chaos', 'full'), pg_switch_wal()")


class _Cut(Fault):
    """The wire of the last worker is silent: no byte passes, nothing is closed. lost: what it has in flight, when that can be."""

    link = ""
    on = frozenset({"workers"})
    lasts_s = 14

    def begin(self) -> None:
        self.plant.links[self.link].set(self.chance.choice(("silent", "reset")))

    def end(self) -> None:
        self.plant.links[self.link].set("open")


class CutFromRedis(_Cut):
    link = "redis"


class CutFromPostgres(_Cut):
    """Longer than its leases: what it has in flight is lost, and its late answers come when it is back."""

    link = "postgres"

    def begin(self) -> None:
        self.lost = in_flight(most=THREADS)
        super().begin()


class DoorbellsTwice(Fault):
    """Every Celery message is delivered twice."""

    on = frozenset({"doorbells"})
    lasts_s = 15
    how = "twice"

    def begin(self) -> None:
        self.plant.postman.how = self.how

    def end(self) -> None:
        self.plant.postman.how = "once"


class DoorbellsLost(DoorbellsTwice):
    """Every tenth Celery message is lost."""

    how = "lossy"
