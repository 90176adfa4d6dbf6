"""One pacer, one worker process and a fake OpenAI: the call of a job as both ends see it, and the rows that it leaves."""

from __future__ import annotations

import http.server
import itertools
import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta
from uuid import UUID

import pytest
import redis
from sqlalchemy import text

from deploy.local.embedded_servers import Valkey
from models.database import db
from models.keys.keys import Key
from models.platform.wire import public_id
from tests.support.programs import live_jobs, processes
from tests.support.programs.live_jobs import ask, attempts, caller, cancel, row, rows, violations, wait_ended, wake_lane
from tests.support.programs.process import Process, until
from tests.support.programs.processes import JOB_QUEUE, Stack, pretended_slots
from tests.support.queue_tools import submit
from tests.support.time_limits import least, seconds
from tests.upstream.images import png

CANARY = "sk-canary-9f3c2b7e5d1a"
THREADS = 16


@pytest.fixture(scope="module")
def stack(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with processes.running(tmp_path_factory.mktemp("stack"), retry_base_s=0.05, pause_s=0.3) as stack:
        stack.pacer()
        yield stack


@pytest.fixture(autouse=True)
def fresh_upstream(stack: Stack) -> None:
    stack.upstream.reset()


@pytest.fixture
def worker(stack: Stack) -> Process:
    """The module's worker; a new one after a test that stopped it."""
    running = [process for process in stack.processes if process.name.startswith("worker") and process.is_alive()]
    return running[0] if running else stack.worker(threads=THREADS)


class Recorder(http.server.ThreadingHTTPServer):
    """An upstream that records request bodies byte for byte, and answers with fixed bytes."""

    def __init__(self, answer: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Recording)
        self.answer = answer
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []


class Recording(http.server.BaseHTTPRequestHandler):
    server: Recorder

    def do_POST(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(self.server.answer)))
        self.end_headers()
        self.wfile.write(self.server.answer)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with Recorder(b'{ "id":"x",\n "choices":[], "odd": {"kept": "\\u00e9 \xc3\xa9"}, "twice":1,"twice":2 }\n') as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_broker_message_carries_only_two_ids(stack: Stack, redis_of_run: redis.Redis) -> None:
    with pretended_slots(1):
        job_id = ask(caller("sk-message"), "a prompt that stays in Postgres")
        raw = until(lambda: redis_of_run.lrange(JOB_QUEUE, 0, -1), what="a message")[0]
        dispatch_id = row(job_id).dispatch_id
        redis_of_run.delete(JOB_QUEUE)
    message = json.loads(raw)

    assert public_id(job_id) == message["headers"]["id"]
    assert [[str(job_id), str(dispatch_id)], {}] == json.loads(live_jobs.decoded(message["body"]))[:2]
    assert b"prompt" not in raw
    cancel(job_id)


def test_late_claim_is_charged_to_the_limiter_again(stack: Stack) -> None:
    key = caller("sk-late", rpm=60)
    with pretended_slots(3):
        jobs = [ask(key, f"late {n}") for n in range(3)]
        until(lambda: all(row.status == "admitted" for row in rows(jobs)), what="three unclaimed broker messages")
        time.sleep(0.6)
    stack.worker(threads=THREADS)
    wait_ended(jobs, stack=stack)

    began = [call.at for call in stack.upstream.calls()]
    assert 3 == len(began)
    assert all(0.4 < later - before for before, later in itertools.pairwise(began))
    assert [0, 0, 0] == [row.failures for row in rows(jobs)]
    assert "not_sent" in [outcome for job_id in jobs for outcome in attempts(job_id)]


@pytest.mark.parametrize("padding", [0, 3_000_000])
def test_request_and_answer_pass_byte_for_byte(stack: Stack, worker: Process, recorder: Recorder, padding: int) -> None:
    key = _caller_of(recorder, "sk-bytes")
    body = b'{"model":"m", "messages" : [], "x_unknown":{"a":[1,2.50]},"logit_bias":null}' + b" " * padding
    job_id = submit(key, request=body)
    wake_lane(key)
    wait_ended([job_id], stack=stack)

    assert recorder.answer == row(job_id).response
    assert [body] == recorder.bodies
    assert "Bearer sk-bytes" == recorder.headers[0]["authorization"]
    assert "identity" == recorder.headers[0]["accept-encoding"]
    assert "transfer-encoding" not in recorder.headers[0]


EDIT = (
    b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na fox\r\n'
    b'--x\r\nContent-Disposition: form-data; name="image"; filename="f.png"\r\nContent-Type: image/png\r\n\r\n\x89PNG\x00\xff\r\n--x--\r\n'
)
CALLS = {
    "/v1/embeddings": (b'{"model":"m","input":"four words of text"}', None, "list"),
    "/v1/moderations": (b'{"model":"m","input":"kind words"}', None, "results"),
    "/v1/images/edits": (EDIT, "multipart/form-data; boundary=x", "created"),
    "/v1/models": (b"", None, "shutdown_date"),
    "/v1/models/gpt-6-astra": (b"", None, "shutdown_date"),
}


@pytest.mark.parametrize("route", CALLS)
def test_every_route_calls_its_upstream_path(stack: Stack, worker: Process, route: str) -> None:
    request, content_type, word = CALLS[route]
    key = caller(f"sk-{route}")
    job_id = submit(key, endpoint=route, request=request, content_type=content_type)
    wake_lane(key)
    (ended,) = wait_ended([job_id], stack=stack)

    assert ("succeeded", 200, ["succeeded"]) == (ended.status, ended.http_status, attempts(job_id))
    assert word in ended.response.decode()
    assert [route] == [call.path for call in stack.upstream.calls()]


def test_form_is_sent_byte_for_byte(stack: Stack, worker: Process, recorder: Recorder) -> None:
    key = _caller_of(recorder, "sk-form")
    job_id = submit(key, endpoint="/v1/images/edits", request=EDIT, content_type="multipart/form-data; boundary=x")
    wake_lane(key)
    wait_ended([job_id], stack=stack)

    assert [EDIT] == recorder.bodies
    assert "multipart/form-data; boundary=x" == recorder.headers[0]["content-type"]


def test_model_id_stays_one_path_segment(stack: Stack, worker: Process) -> None:
    key = caller("sk-fine-tuned")
    job_id = submit(key, endpoint="/v1/models/ft:gpt-6/astra:é?x=1", request=b"")
    wake_lane(key)
    (ended,) = wait_ended([job_id], stack=stack)

    assert ["/v1/models/ft:gpt-6%2Fastra:%C3%A9%3Fx=1"] == [call.path for call in stack.upstream.calls()]
    assert ("failed", 404, "model_not_found") == (ended.status, ended.http_status, ended.error["code"])


def test_tokens_of_a_call_without_an_answer_are_recorded(stack: Stack, worker: Process) -> None:
    key = caller("sk-other-use")
    jobs = [submit(key, endpoint=route, request=CALLS[route][0]) for route in ("/v1/embeddings", "/v1/moderations", "/v1/models")]
    wake_lane(key)
    embedded, *_ = wait_ended(jobs, stack=stack)

    prompt_tokens = json.loads(embedded.response)["usage"]["prompt_tokens"]
    with db.begin() as session:
        usage = {row.job_id: row for row in session.execute(text("SELECT * FROM usage WHERE key_id = :id"), {"id": key.id})}
    assert [(prompt_tokens, 0, 0), (0, 0, 0), (0, 0, 0)] == [
        (usage[job_id].input_tokens, usage[job_id].output_tokens, usage[job_id].images) for job_id in jobs
    ]


@pytest.mark.parametrize(("kind", "estimated"), [("floats", False), ("strings", False), *dict.fromkeys(
    ("missing", "null", "empty", "zeros", "total", "negative", "huge", "text"), True
).items()])  # fmt: skip
def test_usage_is_read_in_any_format_or_estimated(stack: Stack, worker: Process, kind: str, estimated: bool) -> None:
    key = caller(f"sk-usage-{kind}")
    job_id = ask(key, f"one two three four five [[fake:usage={kind}]]", model="gpt-4o")
    (ended,) = wait_ended([job_id], stack=stack)

    with db.begin() as session:
        used = session.execute(text("SELECT * FROM usage WHERE job_id = :id"), {"id": job_id}).one()
        (note,) = session.execute(text("SELECT note FROM ledger WHERE job_id = :id"), {"id": job_id}).one()
    assert ("succeeded", estimated, "estimated" if estimated else None) == (ended.status, used.estimated, note)
    if kind != "huge":
        assert 10 < used.input_tokens < 25
        assert 10 < used.output_tokens < 25


def test_images_are_stored_beside_the_answer(stack: Stack, worker: Process) -> None:
    key = caller("sk-picture")
    body = {"model": "gpt-image-1", "prompt": "a fox", "n": 2}
    job_id = submit(key, endpoint="/v1/images/generations", model="gpt-image-1", images=2, request=json.dumps(body).encode())
    wake_lane(key, model="gpt-image-1")
    wait_ended([job_id], stack=stack)

    with db.begin() as session:
        stored = session.execute(text("SELECT n, content_type, content FROM artifact WHERE job_id = :id ORDER BY n"), {"id": job_id}).all()
    assert [(n, "image/png", png("a fox", n)) for n in range(2)] == [tuple(artifact) for artifact in stored]


def test_every_call_names_a_recorded_attempt(stack: Stack, worker: Process) -> None:
    jobs = [ask(caller("sk-named"), f"call {n}") for n in range(5)]
    ended = wait_ended(jobs, stack=stack)
    calls = stack.upstream.calls()

    assert {str(row.dispatch_id) for row in ended} == {call.headers["x-client-request-id"] for call in calls}
    assert {call.request_id for call in calls} == {attempt.upstream_request_id for job_id in jobs for attempt in _attempts(job_id)}
    assert [] == violations(jobs, calls)


def test_usage_and_its_cost_are_recorded(stack: Stack, worker: Process) -> None:
    key = caller("sk-price")
    known, unknown = ask(key, "how much", model="gpt-4o"), ask(key, "how much", model="m")
    wait_ended([known, unknown], stack=stack)

    reported = json.loads(row(known).response)["usage"]
    with db.begin() as session:
        usage = {row.job_id: row for row in session.execute(text("SELECT * FROM usage WHERE key_id = :id"), {"id": key.id})}
    assert (reported["prompt_tokens"], reported["completion_tokens"]) == (usage[known].input_tokens, usage[known].output_tokens)
    assert usage[known].cost_microusd == round(reported["prompt_tokens"] * 2.5 + reported["completion_tokens"] * 10)
    assert usage[unknown].cost_microusd is None


def test_upstream_key_is_stored_nowhere_in_clear_text(stack: Stack, worker: Process, redis_of_run: redis.Redis) -> None:
    key = caller(CANARY)
    jobs = [ask(key, f"canary {n} [[fake:status={status}]]") for n, status in enumerate((400, 404, 500))] + [ask(key, "fine")]
    running = ask(key, "held [[fake:hold]]")
    stack.upstream.wait_for_held(1)
    during = list(_everything_in(redis_of_run))
    stack.upstream.release()
    wait_ended([*jobs, running], stack=stack)
    refused = ask(key, "last [[fake:status=401]]")
    wait_ended([refused], stack=stack)

    assert {CANARY} == {call_key for call_key in [CANARY] if stack.upstream.calls(key=call_key)}
    assert [] == [process.name for process in stack.processes if CANARY in process.log_text()]
    assert [] == [kept for kept in (*during, *_everything_in(redis_of_run)) if CANARY.encode() in kept]
    assert [] == list(_tables_with(CANARY))


def test_cancelled_call_is_closed_at_once(stack: Stack, worker: Process) -> None:
    def cancelled_s() -> float:
        stack.upstream.reset()
        job_id = ask(caller("sk-cancel"), "long [[fake:hold]]")
        stack.upstream.wait_for_held(1)
        took_s = seconds(lambda: (cancel(job_id), wait_ended([job_id])))
        assert ("cancelled", ["cancelled"]) == (row(job_id).status, attempts(job_id))
        stack.upstream.wait_for_calls(1, outcome="client_gone")
        return took_s

    assert least(cancelled_s, below=2) < 2


def test_turns_of_a_conversation_are_sent_in_order(stack: Stack, worker: Process) -> None:
    key = caller("sk-turns", max_in_flight=THREADS)
    stack.upstream.behave("sk-turns", delay=[0.0, 0.05])
    jobs = [ask(key, f"{name} {turn}", conversation=name) for turn in range(6) for name in ("a", "b", "c", "d")]
    wait_ended(jobs, stack=stack)

    order: dict[str, list[str]] = defaultdict(list)
    ends: dict[str, float] = defaultdict(float)
    for call in stack.upstream.calls():
        name, turn = call.text.split()
        order[name].append(turn)
        assert ends[name] <= call.at, "a turn began before the one before it had ended"
        ends[name] = call.ended_at or 0.0
    assert {name: list("012345") for name in "abcd"} == order


def test_unknown_limit_is_learned_before_it_is_exceeded(stack: Stack, worker: Process) -> None:
    stack.upstream.limit("sk-slow-start", rpm=6)
    key = caller("sk-slow-start")
    jobs = [ask(key, f"first {n}") for n in range(30)]
    stack.upstream.wait_for_calls(1)
    time.sleep(2)
    stats = stack.upstream.stats("sk-slow-start")
    for job_id in jobs:
        cancel(job_id)

    assert 0 == stats["refused"]
    assert stats["calls"] <= 3


def test_adaptive_window_finds_the_upstream_capacity_without_headers(stack: Stack, worker: Process) -> None:
    stack.upstream.limit("sk-window", in_flight=4, hide_headers=True)
    stack.upstream.behave("sk-window", delay=[0.05, 0.15])
    key = caller("sk-window")
    jobs = [ask(key, f"window {n}") for n in range(40)]
    ended = wait_ended(jobs, stack=stack)

    assert {("succeeded", 0)} == {(row.status, row.failures) for row in ended}
    assert stack.upstream.stats("sk-window")["refused"] <= 12
    assert [] == violations(jobs, stack.upstream.calls())


def test_idle_lane_starts_a_job_quickly(stack: Stack, worker: Process) -> None:
    key = caller("sk-idle")
    waited = []
    for n in range(5):
        (ended,) = wait_ended([ask(key, f"idle {n}")], stack=stack)
        waited.append(ended.started_at - ended.created_at)
        time.sleep(0.1)

    assert min(waited) < timedelta(seconds=0.25)


def test_stopping_worker_finishes_its_running_jobs(stack: Stack, worker: Process) -> None:
    key = caller("sk-stop", max_in_flight=THREADS)
    jobs = [ask(key, f"running {n} [[fake:hold]]") for n in range(8)]
    stack.upstream.wait_for_held(8)
    worker.ask_to_stop()
    until(lambda: _slots() == 0, what="a worker that takes no more")
    later = [ask(key, f"later {n}") for n in range(4)]
    time.sleep(0.3)
    stack.upstream.release()
    worker.wait_gone()

    assert [("succeeded", ["succeeded"])] * 8 == [(job.status, attempts(job.id)) for job in rows(jobs)]
    assert {"queued"} == {row.status for row in rows(later)}
    stack.worker(threads=THREADS)
    assert {("succeeded", 1)} == {(row.status, row.calls) for row in wait_ended(later, stack=stack)}
    assert [] == violations([*jobs, *later], stack.upstream.calls())


@pytest.fixture
def redis_of_run(valkey: Valkey) -> Iterator[redis.Redis]:
    """The stack's Redis, not emptied."""
    with redis.Redis.from_url(valkey.url, socket_timeout=2) as client:
        yield client


def _caller_of(recorder: Recorder, token: str) -> Key:
    """A key whose calls go to the recorder."""
    key = caller(token)
    with db.begin() as session:
        session.execute(
            text("UPDATE credential SET base_url = :url WHERE pool_id = :pool"),
            {"url": f"http://127.0.0.1:{recorder.server_port}/v1/", "pool": key.pool_id},
        )
    return key


def _slots() -> int:
    with db.begin() as session:
        return int(session.execute(text("SELECT coalesce(sum(slots), 0) FROM worker")).scalar_one())


def _attempts(job_id: UUID) -> list[object]:
    with db.begin() as session:
        return list(session.execute(text("SELECT * FROM attempt WHERE job_id = :id ORDER BY n"), {"id": job_id}))


def _everything_in(client: redis.Redis) -> Iterator[bytes]:
    for name in client.scan_iter():
        yield name + (client.dump(name) or b"")


def _tables_with(secret: str) -> Iterator[str]:
    with db.begin() as session:
        for name in session.execute(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).scalars():
            patterns = {"plain": f"%{secret}%", "hex": f"%{secret.encode().hex()}%"}
            matches = session.execute(text(f'SELECT count(*) FROM "{name}" AS t WHERE t::text LIKE :plain OR t::text LIKE :hex'), patterns)
            if matches.scalar_one():
                yield name
