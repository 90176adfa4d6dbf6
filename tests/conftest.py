"""The servers of a test run: one real PostgreSQL and one real Valkey, started once and emptied for each test."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import redis

from deploy.local.embedded_servers import Postgres, Valkey
from models.config.settings import settings
from models.database import db, migrate
from models.platform.errors import Unavailable
from models.queue import lanes
from tests import order
from tests.support import tables
from tests.support.browser import browser, visit
from workers.channels import notify

__all__ = ["browser", "visit"]

# No deadlines: the duration of an example depends on the load of the machine, not on the code. CI uses the same examples
# each time, so that a failed run fails again; other runs search for new ones.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("HYPOTHESIS_PROFILE") == "ci" else "untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order.sort_long_first(items)


EMPTY_TRIES = 5


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    server = Postgres(_folder(tmp_path_factory, "postgres"), options=("-c", "fsync=off"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    server = Valkey(_folder(tmp_path_factory, "valkey"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_client(valkey: Valkey) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey.url, socket_timeout=2) as client:
        client.flushall()
        yield client


@pytest.fixture(scope="session")
def environment(postgres: Postgres, valkey: Valkey) -> Iterator[dict[str, str]]:
    """Point this process, and the processes that tests start with it, to the servers of the run."""
    variables = {
        "NOWSERVING_DATABASE_URL": postgres.url,
        "NOWSERVING_REDIS_URL": valkey.url,
        "NOWSERVING_SECRET_KEYS": base64.b64encode(os.urandom(32)).decode(),
        "NOWSERVING_OPEN_KEYS": "true",
    }
    before = {name: value for name, value in os.environ.items() if name.startswith("NOWSERVING_") or name == "OPENAI_BASE_URL"}
    for name in before:
        del os.environ[name]
    os.environ.update(variables)
    clear_caches()
    migrate.to_latest()
    yield variables
    for name in variables:
        del os.environ[name]
    os.environ.update(before)
    clear_caches()


@pytest.fixture
def database(environment: dict[str, str]) -> Iterator[None]:
    """Empty every table; sequences continue."""
    for tries_left in reversed(range(EMPTY_TRIES)):
        try:
            tables.empty()
            break
        except Unavailable:  # a deadlock with a client of the previous test, whose disconnect is being recorded
            if not tries_left:
                raise
    yield


@pytest.fixture
def override(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Change settings for one test: override(max_queued_per_key=5)."""

    def change(**values: object) -> None:
        for name, value in values.items():
            monkeypatch.setenv(f"NOWSERVING_{name.upper()}", str(value))
        settings.cache_clear()

    yield change
    monkeypatch.undo()
    clear_caches()


def clear_caches() -> None:
    """Clear cached settings and connections of this process."""
    settings.cache_clear()
    notify.client.cache_clear()
    lanes.id_of.cache_clear()
    if db.engine.cache_info().currsize:
        db.engine().dispose()
    db.engine.cache_clear()


def _folder(factory: pytest.TempPathFactory, name: str) -> Path:
    return Path(factory.mktemp(name))
