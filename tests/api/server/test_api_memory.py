"""The memory of an API process is bounded: by NOWSERVING_MAX_INTAKE_BYTES, however many large bodies come at once.

Each body is held once while it waits to be parsed or stored. HYPOTHESIS_PROFILE=nightly sends 30 of 19 MB.
"""

from __future__ import annotations

import base64
import json
import os
import threading
from pathlib import Path

import psutil
import pytest

from tests.api.server.test_api_server import Api, serving

pytestmark = pytest.mark.usefixtures("environment")
MB, MIB = 1_000_000, 2**20
NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
ROUTES = ("/v1/chat/completions", "/v1/jobs")


def chat(size: int, route: str) -> bytes:
    """A chat with a picture of so many bytes of base64, as this route takes it."""
    url = "data:image/png;base64," + base64.b64encode(os.urandom(size * 3 // 4)).decode()
    body = {"model": "m", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}
    return json.dumps(body if route == ROUTES[0] else {"endpoint": ROUTES[0], "body": body}).encode()


def upload(api: Api, route: str, body: bytes, *, times: int) -> list[int]:
    """The statuses of so many uploads at once."""
    statuses: list[int] = []

    def send() -> None:
        try:
            statuses.append(api.call("POST", route, body, Prefer="respond-async")[0])
        except OSError:  # a busy machine, and a client that waits 30 s
            statuses.append(0)

    senders = [threading.Thread(target=send) for _ in range(times)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    return statuses


def process_of(api: Api) -> int:
    """gunicorn's one worker."""
    return psutil.Process(api.process.pid).children()[0].pid


def peak_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024


@pytest.mark.parametrize("route", ROUTES)
def test_many_large_bodies_at_once_take_a_bounded_memory(tmp_path: Path, route: str) -> None:
    with serving(tmp_path / "log", NOWSERVING_MAX_INTAKE_BYTES=str(16 * MIB)) as api:
        pid = process_of(api)
        assert [202] * 2 == upload(api, route, chat(1_000, route), times=2)
        before = peak_mib(pid)
        assert [202] * 12 == upload(api, route, chat(6 * MB, route), times=12)

        # The budget; a copy of one that is joined; three of one that is parsed; one of each that is stored.
        assert peak_mib(pid) - before < 16 + 6 * (1 + 3 + 2) + 24


@pytest.mark.slow
@pytest.mark.skipif(not NIGHTLY, reason="takes a minute: HYPOTHESIS_PROFILE=nightly, or make chaos")
@pytest.mark.parametrize("route", ROUTES)
def test_30_bodies_of_19_mb_stay_within_the_memory_settings(tmp_path: Path, route: str) -> None:
    with serving(tmp_path / "log") as api:
        pid = process_of(api)
        statuses = upload(api, route, chat(19 * MB, route), times=30)

        assert {202, 503, 0} >= set(statuses)
        assert 202 in statuses
        assert peak_mib(pid) < 800
