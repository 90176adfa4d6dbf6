"""The body budget bounds the memory of a worker process, for any number of simultaneous large bodies.

The tests read the kernel's high-water mark of the process (VmHWM), so that they miss no peak between two samples. The full size runs
with HYPOTHESIS_PROFILE=nightly (`make chaos`).
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import psutil
import pytest
from sqlalchemy import text

from models.config.settings import settings
from models.database import db
from models.keys.keys import Key
from tests.support.programs import live_jobs, processes
from tests.support.programs.live_jobs import caller, wait_ended, wake_lane
from tests.support.programs.process import Process, until
from tests.support.programs.processes import Stack
from tests.support.queue_tools import submit

MB = 1_000_000
MIB = 2**20
THREADS = 16
# Of the 1 GiB of a Kubernetes pod, the supervisor and the process that forks have the rest (docs/guides/deploy.md).
PROCESS_MIB = 860
NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
IMAGES = "/v1/images/generations"


@pytest.fixture
def stack(environment: dict[str, str], tmp_path: Path) -> Iterator[Stack]:
    with processes.running(tmp_path, pause_s=0.3, lease_s=120) as made:
        made.pacer()
        yield made


def chat(size: int, result: str, *, is_packable: bool = False) -> bytes:
    """A chat request with one image, about `size` bytes long. is_packable: Postgres can compress it well."""
    picture = b"A" * (size // 4 * 4) if is_packable else base64.b64encode(os.urandom(size * 3 // 4))
    url = "data:image/png;base64," + picture.decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}]
    messages = [{"role": "user", "content": parts}, {"role": "user", "content": result}]
    return json.dumps({"model": "m", "messages": messages}).encode()


def peak_mib(process: Process) -> float:
    """The peak memory since the process started, or since `forget_peak`."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024


def now_mib(process: Process) -> float:
    return psutil.Process(process.pid).memory_info().rss / MIB


def forget_peak(process: Process) -> None:
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")


def warm_worker(stack: Stack, *, threads: int = THREADS, **settings: object) -> tuple[Process, float]:
    """A worker in which every thread has served a short call, and its memory in MiB."""
    worker = stack.worker(threads=threads, **settings)
    who = caller("sk-short", max_in_flight=threads)
    jobs = [live_jobs.ask(who, f"{n} [[fake:hold]]") for n in range(threads)]
    stack.upstream.wait_for_held(threads)
    stack.upstream.release()
    wait_ended(jobs, stack=stack)
    stack.upstream.reset()
    forget_peak(worker)
    return worker, peak_mib(worker)


def serve(stack: Stack, who: Key, jobs: list[UUID], *, within_s: float = 300) -> None:
    """All jobs succeed, each by one call."""
    wake_lane(who)
    # Not wait_ended: it would read the bodies.
    until(lambda: not (_statuses(jobs) - {"succeeded", "failed"}), what=f"ended:\n{stack.logs()}", within_s=within_s, every_s=0.2)
    assert {"succeeded"} == _statuses(jobs)
    assert len(jobs) == len(stack.upstream.calls(outcome="200"))


def _statuses(jobs: list[UUID]) -> set[str]:
    with db.begin() as session:
        return set(session.execute(text("SELECT status FROM job WHERE id = ANY(:ids)"), {"ids": jobs}).scalars())


def stored_bytes(jobs: list[UUID]) -> set[int]:
    """The lengths of the images of these jobs."""
    with db.begin() as session:
        found = session.execute(text("SELECT octet_length(content) AS n FROM artifact WHERE job_id = ANY(:ids)"), {"ids": jobs}).all()
    assert len(jobs) == len(found)
    return {row.n for row in found}


@pytest.mark.parametrize("streamed", [False, True])
def test_many_large_requests_at_once_take_a_bounded_memory(stack: Stack, streamed: bool) -> None:
    worker, before = warm_worker(stack, worker_body_bytes=8 * MIB)
    who = caller("sk-large", max_in_flight=THREADS)
    body = chat(4 * MB, "look")
    if streamed:
        body = body[:-1] + b',"stream":true}'
    jobs = [submit(who, request=body, streamed=streamed) for _ in range(THREADS)]
    serve(stack, who, jobs)

    # Two copies of the budget's bytes, a copy or two more of what is loaded at the time, and what 16 threads take.
    assert peak_mib(worker) - before < 2 * 8 + 2 * 4 + 48


def test_many_large_answers_at_once_take_a_bounded_memory(stack: Stack) -> None:
    worker, before = warm_worker(stack, worker_body_bytes=8 * MIB)
    who = caller("sk-pictures", max_in_flight=THREADS)
    body = json.dumps({"model": "m", "prompt": "a fox [[fake:hold;picture_mb=4]]"}).encode()
    jobs = [submit(who, endpoint=IMAGES, images=1, request=body) for _ in range(THREADS)]
    wake_lane(who)
    stack.upstream.wait_for_held(THREADS)
    stack.upstream.release()
    serve(stack, who, jobs)

    assert len(stored_bytes(jobs)) == 1
    assert peak_mib(worker) - before < 2 * 8 + 2 * 8 + 48
    until(lambda: now_mib(worker) < before + 12, what="given back, with a heartbeat")


@pytest.mark.slow
@pytest.mark.skipif(not NIGHTLY, reason="takes four minutes: HYPOTHESIS_PROFILE=nightly, or make chaos")
def test_a_worker_of_64_threads_takes_the_largest_bodies_within_its_limit(stack: Stack) -> None:
    worker, _ = warm_worker(stack, threads=64)
    who = caller("sk-largest", max_in_flight=64)
    body = chat(settings().max_body_bytes - MIB, "look", is_packable=True)
    jobs = [submit(who, request=body, timeout_s=3_600) for _ in range(64)]
    serve(stack, who, jobs, within_s=1_200)

    assert peak_mib(worker) < PROCESS_MIB


@pytest.mark.slow
@pytest.mark.skipif(not NIGHTLY, reason="takes four minutes: HYPOTHESIS_PROFILE=nightly, or make chaos")
def test_a_worker_of_64_threads_takes_64_pictures_of_20_mb_within_its_limit(stack: Stack) -> None:
    worker, _ = warm_worker(stack, threads=64)
    who = caller("sk-pictures", max_in_flight=64)
    body = json.dumps({"model": "m", "prompt": "a fox [[fake:hold;picture_mb=20]]"}).encode()
    jobs = [submit(who, endpoint=IMAGES, images=1, request=body) for _ in range(64)]
    wake_lane(who)
    stack.upstream.wait_for_held(64)
    stack.upstream.release()
    serve(stack, who, jobs, within_s=1_200)

    assert len(stored_bytes(jobs)) == 1
    assert peak_mib(worker) < PROCESS_MIB
