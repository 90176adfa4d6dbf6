"""The API as it is served: gunicorn with gevent on a port, with clients and servers that misbehave."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
import redis
from sqlalchemy import text

from deploy.local import probe
from deploy.local.embedded_servers import Postgres, Valkey, free_port
from models.database import db
from models.platform import wire
from tests.support.http_tools import CHAT, Caller, end, together
from tests.support.programs.process import until
from tests.support.programs.processes import empty_tables
from tests.support.time_limits import least, seconds
from workers.channels import notify

# Not `database`: a server that still works on the test before would be in the way of emptying the tables.
pytestmark = pytest.mark.usefixtures("environment")

BODY = json.dumps(CHAT).encode()


class Api:
    """A gunicorn of the test's own. log: what it wrote."""

    def __init__(self, log: Path, env: Mapping[str, str]) -> None:
        self.port, self.log, self.token = int(env.get("NOWSERVING_PORT") or free_port()), log, "sk-one"
        # The environment of now, with the addresses and secrets of this run.
        own = {**os.environ, "NOWSERVING_PORT": str(self.port), **env}
        with log.open("wb") as out:
            self.process = subprocess.Popen([sys.executable, "-m", "cli.main", "api"], env=own, stdout=out, stderr=out)
        give_up_at = time.monotonic() + 180
        while not probe.http_ok("/healthz", port=self.port):
            assert self.process.poll() is None and time.monotonic() < give_up_at, log.read_text()
            time.sleep(0.05)

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, Any], Mapping[str, str]]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            wanted = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json", **headers}
            connection.request(method, path, body, wanted, encode_chunked=not isinstance(body, bytes | None))
            answer = connection.getresponse()
            content = answer.read()
            return answer.status, json.loads(content) if content else {}, answer.headers

    def connect(self, text: str) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        made.sendall(text.encode())
        return made

    def connect_status(self, path: str) -> int:
        """The status alone, of an answer that may have no end."""
        with closing(self.connect(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self.token}\r\n\r\n")) as connection:
            return int(read_until(connection, b"\r\n\r\n").split()[1])

    def follow(self, name: str) -> socket.socket:
        return self.connect(f"GET /v1/jobs/{name}/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self.token}\r\n\r\n")

    def stop(self) -> float:
        """Seconds until it had ended by itself."""
        began = time.monotonic()
        self.process.terminate()
        try:
            self.process.wait(20)
        finally:
            self.process.kill()
        return time.monotonic() - began


# Small enough to be reached in a moment.
STREAMS_MOST = 60
NARROW = {"NOWSERVING_MAX_BODY_BYTES": "1000000", "NOWSERVING_MAX_STREAMS_PER_KEY": str(STREAMS_MOST)}


@contextmanager
def serving(log: Path, **env: str) -> Iterator[Api]:
    api = Api(log, env)
    try:
        yield api
    finally:
        with suppress(subprocess.TimeoutExpired):
            api.stop()


@pytest.fixture(scope="module")
def server(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    empty_tables()
    with serving(tmp_path_factory.mktemp("api") / "log", **NARROW) as made:
        yield made


@pytest.fixture
def api(server: Api) -> Api:
    # A caller of each test's own: the server remembers keys and lanes whose rows are gone with the test before.
    server.token = f"sk-{uuid4().hex}"
    return server


@pytest.fixture
def name(api: Api) -> str:
    return str(api.call("POST", "/v1/jobs", BODY)[1]["id"])


def read_until(connection: socket.socket, wanted: bytes) -> bytes:
    seen = b""
    while wanted not in seen:
        more = connection.recv(65536)
        assert more, seen
        seen += more
    return seen


def test_incomplete_headers_block_no_other_client(api: Api) -> None:
    stuck = [api.connect("GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ") for _ in range(50)]

    assert 200 == api.call("GET", "/healthz")[0]
    assert least(lambda: seconds(lambda: api.call("GET", "/healthz")), below=1) < 1
    for connection in stuck:
        connection.close()


def test_a_body_may_come_in_chunks_without_a_length(api: Api) -> None:
    assert 202 == api.call("POST", "/v1/jobs", iter([BODY[:20], BODY[20:]]))[0]


def test_a_body_in_chunks_is_bounded_too(api: Api) -> None:
    status, answer, headers = api.call("POST", "/v1/jobs", iter([BODY, *[b" " * 100_000] * 11]))

    assert (413, "request_too_large") == (status, answer["error"]["code"])
    assert "1000" not in headers.get("Retry-After", "")


def test_a_wait_over_the_wire_ends_within_a_second_of_the_job(api: Api) -> None:
    caller = Caller(api.token)

    def delay_s() -> float:
        name = str(api.call("POST", "/v1/jobs", BODY)[1]["id"])

        def wait() -> tuple[str, float]:
            return api.call("GET", f"/v1/jobs/{name}?wait=20")[1]["status"], time.monotonic()

        def finish() -> float:
            time.sleep(0.5)
            end(caller, name)
            notify.job_changed(wire.parse_id(name), "succeeded")
            return time.monotonic()

        (status, at), ended_at = together(wait, finish)
        assert "succeeded" == status
        return float(at - ended_at)

    assert least(delay_s, below=1) < 1


def test_a_stream_over_the_wire_ends_with_its_job(api: Api) -> None:
    caller = Caller(api.token)

    def delay_s() -> float:
        name = str(api.call("POST", "/v1/jobs", BODY)[1]["id"])
        with closing(api.follow(name)) as stream:
            read_until(stream, b"event: job.queued")
            end(caller, name)
            notify.job_changed(wire.parse_id(name), "succeeded")
            began = time.monotonic()
            assert b"event: job.succeeded" in read_until(stream, b"\r\n0\r\n\r\n")
            return time.monotonic() - began

    assert least(delay_s, below=1) < 1


def test_a_stream_that_is_dropped_is_given_back(api: Api, name: str) -> None:
    streams = [api.follow(name) for _ in range(STREAMS_MOST)]
    for stream in streams:
        read_until(stream, b"event: job.queued")

    assert 429 == api.call("GET", f"/v1/jobs/{name}/events")[0]
    for stream in streams:
        stream.close()
    api.call("POST", f"/v1/jobs/{name}/cancel")
    give_up_at = time.monotonic() + 10
    while (status := api.connect_status(f"/v1/jobs/{name}/events")) == 429 and time.monotonic() < give_up_at:
        time.sleep(0.1)
    assert 200 == status


def test_hundreds_held_cost_no_thread_no_connection_to_redis_and_hardly_a_transaction(
    api: Api, redis_client: redis.Redis, postgres: Postgres
) -> None:
    (worker,) = psutil.Process(api.process.pid).children()
    names = [str(api.call("POST", "/v1/jobs", BODY)[1]["id"]) for _ in range(50)]
    api.call("GET", f"/v1/jobs/{names[0]}?wait=0.1")
    before = (worker.num_fds(), worker.num_threads(), len(subscribers(redis_client)))
    held = [
        api.connect(f"GET /v1/jobs/{names[n % 50]}?wait=60 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {api.token}\r\n\r\n")
        for n in range(300)
    ]
    # Connections that were idle before may be closed meanwhile.
    until(lambda: worker.num_fds() >= before[0] + 285, what="all of them held")
    time.sleep(1.5)  # each has been looked up when it came
    committed = transactions()
    time.sleep(6)

    # Two looks at all of them, and what is counted late. Each for itself would make 360.
    assert transactions() - committed < 200
    assert worker.num_threads() <= before[1]
    assert before[2] == len(subscribers(redis_client))
    for connection in held:
        connection.close()
    until(lambda: worker.num_fds() <= before[0] + 25, what="all of them gone")


def subscribers(client: redis.Redis) -> set[str]:
    """The ids of the connections that are subscribed to something."""
    return {one["id"] for one in client.client_list() if int(one["sub"])}


def transactions() -> int:
    """How many this database has committed. Its processes say so once a second at most."""
    with db.begin() as session:
        return int(session.execute(text("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")).scalar_one())


HOSTILE = "X-Secret: sk-hostile"
CHUNKED = f"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\n{HOSTILE}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    ("head", "status", "code"),
    [
        ("GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2", 400, "bad_framing"),
        ("POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked", 400, "bad_framing"),
        ("POST /v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, chunked", 400, "bad_framing"),
        ("POST /v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip", 400, "bad_framing"),
        ("POST /v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked", 400, "bad_framing"),
        ("POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: -1", 400, "bad_framing"),
        ("POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 1e3", 400, "bad_framing"),
        ("GET /healthz HTTP/1.1\r\nHost: x\r\nHost: y", 400, "bad_framing"),
        ("GET /healthz HTTP/1.1\r\nHost: x\r\nBad Name: y", 400, "bad_framing"),
        ("GET /healthz HTTP/1.1\r\nHost: x\r\nno colon", 400, "bad_framing"),
        ("GET /healthz HTTP/1.1\r\nHost: x\r\nFolded: a\r\n b", 400, "bad_framing"),
        ("GET /healthz", 400, "bad_framing"),
        ("GET /healthz HTTP/9.9\r\nHost: x", 400, "bad_framing"),
        ("get /healthz HTTP/1.1\r\nHost: x", 400, "bad_framing"),
        ("GET /a b HTTP/1.1\r\nHost: x", 400, "bad_framing"),
        ("GET /healthz HTTP/1.1\r\nHost: x\r\nExpect: magic", 417, "expectation_failed"),
        (f"GET /{'a' * 5_000} HTTP/1.1\r\nHost: x", 414, "address_too_long"),
        (f"GET /healthz HTTP/1.1\r\nHost: x\r\nLong: {'a' * 9_000}", 431, "headers_too_large"),
        ("GET /healthz HTTP/1.1\r\nHost: x" + "".join(f"\r\nN{n}: a" for n in range(99)), 431, "headers_too_large"),
        (f"GET /healthz HTTP/1.1\r\nHost: x\r\nLong: {'a' * 900_000}", 431, "headers_too_large"),
        (f"{CHUNKED}\r\nzz\r\n", 400, "bad_framing"),
        (f"{CHUNKED}\r\n2\r\nabc\r\n", 400, "bad_framing"),
        (f"{CHUNKED}\r\n0\r\nno colon\r\n", 400, "bad_framing"),
        (f"{CHUNKED}Expect: 100-continue\r\n\r\n-1\r\n", 400, "bad_framing"),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else str(value),
)
def test_malformed_http_is_refused_once_in_the_envelope(api: Api, head: str, status: int, code: str) -> None:
    secret, before = f"{HOSTILE}-{uuid4().hex}", api.log.stat().st_size
    first, *rest = head.replace(HOSTILE, f"{secret}\r\nAuthorization: Bearer {api.token}").split("\r\n")
    lines = [first, *rest] if HOSTILE in head or first == head else [first, secret, *rest]
    with closing(api.connect("\r\n".join([*lines, "", ""]))) as connection:
        answered = read_all(connection)
    answered = answered.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    answer_head, _, content = answered.partition(b"\r\n\r\n")

    assert (status, code) == (int(answer_head.split()[1]), json.loads(content)["error"]["code"]), answered
    assert {"message", "type", "param", "code"} == set(json.loads(content)["error"])
    assert b"X-Request-Id: req_" in answer_head and b"x-should-retry: false" in answer_head
    logged = api.log.read_text()[before:]
    (request_id,) = re.findall(r"X-Request-Id: (req_\w+)", answer_head.decode())
    assert 1 == logged.count(request_id), logged
    assert "Traceback" not in logged and secret not in logged and api.token not in logged


def test_a_large_body_that_is_refused_costs_little_and_its_answer_arrives(api: Api) -> None:
    (worker,) = psutil.Process(api.process.pid).children()
    before = sum(worker.cpu_times()[:2])
    with closing(api.connect("")) as connection:
        connection.sendall(b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 30000000\r\n\r\n")
        for _ in range(30):
            connection.sendall(b"x" * 1_000_000)
        answered = read_all(connection)

    assert answered.startswith(b"HTTP/1.1 401 ") and b"Connection: close" in answered, answered
    # gunicorn's own way of passing over it takes five seconds.
    assert sum(worker.cpu_times()[:2]) - before < 2


def read_all(connection: socket.socket) -> bytes:
    """Until the server closes it."""
    seen = b""
    while more := connection.recv(65536):
        seen += more
    return seen


def test_no_key_and_no_prompt_reaches_the_log(api: Api, name: str) -> None:
    api.call("GET", f"/v1/jobs/{name}?api_key={api.token}")
    api.call("POST", "/v1/jobs", b'{"endpoint": 1, "secret-prompt": NaN}')
    api.connect(f"GET / HTTP/9.9\r\nAuthorization: Bearer {api.token}\r\n\r\n").close()

    assert [] == [secret for secret in (api.token, "secret-prompt") if secret in api.log.read_text()]


def test_without_the_database_the_answer_is_503_and_soon(environment: dict[str, str], tmp_path: Path) -> None:
    gone = f"postgresql+psycopg://x:hunter2@127.0.0.1:{free_port()}/x"
    with serving(tmp_path / "log", NOWSERVING_DATABASE_URL=gone) as api:
        status, answer, headers = api.call("POST", "/v1/jobs", BODY)

        assert (503, "unavailable", "2") == (status, answer["error"]["code"], headers["Retry-After"])
        assert least(lambda: seconds(partial(api.call, "POST", "/v1/jobs", BODY)), below=3) < 3
        assert (503, ["postgres"]) == (api.call("GET", "/readyz")[0], api.call("GET", "/readyz")[1]["gone"])
        assert "hunter2" not in api.log.read_text()


def test_a_frozen_redis_does_not_slow_a_submit(environment: dict[str, str], tmp_path: Path) -> None:
    valkey = Valkey(tmp_path / "valkey")
    valkey.start()
    with serving(tmp_path / "log", NOWSERVING_REDIS_URL=valkey.url) as api:
        api.token = f"sk-{uuid4().hex}"
        api.call("POST", "/v1/jobs", BODY)
        assert valkey.process
        pid = valkey.process.pid

        def slowest_of_ten_s() -> float:
            os.kill(pid, signal.SIGSTOP)
            try:
                return max(seconds(partial(api.call, "POST", "/v1/jobs", BODY)) for _ in range(10))
            finally:
                os.kill(pid, signal.SIGCONT)

        submit_s = least(slowest_of_ten_s, below=0.5)
        os.kill(pid, signal.SIGSTOP)
        try:
            ready, ready_s = api.call("GET", "/readyz"), least(lambda: seconds(partial(api.call, "GET", "/readyz")), below=1.5)
        finally:
            os.kill(pid, signal.SIGCONT)
    valkey.stop()

    assert submit_s < 0.5
    assert (503, ["redis"]) == (ready[0], ready[1]["gone"])
    assert ready_s < 1.5


def test_shutdown_releases_waiting_clients(environment: dict[str, str], tmp_path: Path) -> None:
    with serving(tmp_path / "log") as api:
        api.token = f"sk-{uuid4().hex}"
        name = str(api.call("POST", "/v1/jobs", BODY)[1]["id"])
        with closing(api.follow(name)) as stream:
            read_until(stream, b"event: job.queued")
            (status, _, _), took = together(partial(api.call, "GET", f"/v1/jobs/{name}?wait=30"), lambda: (time.sleep(0.3), api.stop())[1])
            read_until(stream, b"retry: 2000")

    assert 200 == status
    # An idle connection is kept for five seconds, a waiting one would be for thirty.
    assert took < 15
    assert 0 == api.process.returncode


def test_metrics_of_processes_are_summed_and_outlive_them(environment: dict[str, str], tmp_path: Path) -> None:
    with serving(tmp_path / "log", NOWSERVING_API_PROCESSES="2", NOWSERVING_OPS_TOKEN="ops-token-of-this-test-0123456789") as api:
        wanted = 'nowserving_http_requests_total{method="GET",status="404"} '

        def counted() -> float:
            with closing(http.client.HTTPConnection("127.0.0.1", api.port, timeout=30)) as connection:
                connection.request("GET", "/metrics", headers={"Authorization": "Bearer ops-token-of-this-test-0123456789"})
                text = connection.getresponse().read().decode()
            return sum(float(line.removeprefix(wanted)) for line in text.splitlines() if line.startswith(wanted))

        before = counted()
        for _ in range(20):
            api.call("GET", "/v1/jobs/job_nothing")
        assert before + 20 == counted()

        for pid in psutil.Process(api.process.pid).children():
            pid.kill()
        until(lambda: probe.http_ok("/healthz", port=api.port), what="served again")
        assert before + 20 == counted()
