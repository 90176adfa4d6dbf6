"""Small requests beside 30 uploads of 19 MB: how long each takes, and what the API process needs of memory meanwhile.

`python -m bench.suites.uploads PORT TOKEN N MB` is the sender of the uploads, in a process of its own.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

from bench.measure import load
from bench.measure.figure import Figure, at_most, quantile, reported
from bench.measure.load import CHAT, Wanted
from bench.measure.stack import MODEL, ROOT, Caller, Stack
from models.keys.keys import Limits

TITLE = "Small requests beside large uploads"
UPLOADS, UPLOAD_MB = 30, 19
# Connections of the small requests, one request after another on each.
CONNECTIONS, BATCH = 2, 60
P99_MS = 100
PAUSE_S = 0.005
# What an SDK waits after a 503, about.
AGAIN_S = 1.0
PATIENCE_S = 300


def run(stack: Stack, *, short: bool) -> list[Figure]:
    """POST /v1/jobs of a few hundred bytes, first alone, then while 30 bodies of 19 MB are taken in at once. One API process."""
    stack.halt()  # its memory is measured from its start
    stack.serve()
    small, large = (stack.caller(f"sk-{name}", Limits(max_in_flight=1)) for name in ("small", "large"))
    found: list[Figure] = []
    rounds = 1 if short else 3
    stack.pause(large, until=lambda: stack.pause(small, until=lambda: found.extend(_measure(stack, small, large, rounds=rounds))))
    stack.clear()
    return found


def _measure(stack: Stack, small: Caller, large: Caller, *, rounds: int) -> list[Figure]:
    _batch(stack, small)
    alone = [took_s for _ in range(5 * rounds) for took_s in _batch(stack, small)]
    loop_alone = [took_s for _ in range(5 * rounds) for took_s in _looks(stack)]
    beside: list[float] = []
    loop: list[float] = []
    refused = 0
    took_s: list[float] = []
    loads: list[float] = [os.getloadavg()[0]]
    idle_mib = _memory_mib(stack)
    _forget_peak(stack)
    for _ in range(rounds):
        began = time.monotonic()
        sender = _send(stack, large)
        while sender.poll() is None:
            beside += _batch(stack, small)
            loop += _looks(stack)
        took_s.append(time.monotonic() - began)
        loads.append(os.getloadavg()[0])
        refused += int(sender.communicate()[0] or 0)
        if sender.returncode:
            raise RuntimeError(f"an upload failed: exit {sender.returncode}")
    how = f"{CONNECTIONS} connections; load {loads[0]:.1f} to {max(loads):.1f}, these uploads included"
    p99, p99_alone = (quantile(times, 0.99) * 1000 for times in (beside, alone))
    return [
        *_percentiles("alone", alone),
        reported("beside the uploads, p50", f"{quantile(beside, 0.5) * 1000:.1f} ms", note=f"{len(beside)} requests"),
        at_most("beside the uploads, p99", p99, P99_MS, unit="ms", note=how),
        reported("beside the uploads, longest", f"{max(beside) * 1000:.1f} ms"),
        reported("GET /healthz alone, p99", f"{quantile(loop_alone, 0.99) * 1000:.1f} ms", note="no database: the event loop alone"),
        reported("GET /healthz beside them, p99", f"{quantile(loop, 0.99) * 1000:.1f} ms", note=f"{len(loop)} requests"),
        reported("p99 beside the uploads ÷ p99 alone", f"{p99 / p99_alone:.1f}", note="of the same run"),
        reported(
            f"{UPLOADS} uploads of {UPLOAD_MB} MB",
            f"{quantile(took_s, 0.5):.1f} s",
            note=f"until the last 202; median. Sent again after 503: {refused}",
        ),
        reported(
            "API process: idle / highest / afterwards", _memory(stack, idle_mib), note="resident; highest: the kernel's high-water mark"
        ),
    ]


def _percentiles(label: str, took_s: list[float]) -> list[Figure]:
    note = f"{len(took_s)} requests, {CONNECTIONS} connections"
    return [reported(f"{label}, p{share}", f"{quantile(took_s, share / 100) * 1000:.1f} ms", note=note) for share in (50, 99)]


def _batch(stack: Stack, caller: Caller) -> list[float]:
    """How long each of a few small submits took, in seconds."""
    return load.submit(Wanted(stack.port, caller.token, jobs=BATCH, connections=CONNECTIONS, users=10)).took_s


def _looks(stack: Stack) -> list[float]:
    """How long each of a few requests took that need no database, one after another on one connection."""
    connection, took_s = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=PATIENCE_S), []
    for _ in range(BATCH):
        began = time.monotonic()
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        took_s.append(time.monotonic() - began)
        time.sleep(PAUSE_S)
    connection.close()
    return took_s


def _send(stack: Stack, caller: Caller) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "bench.suites.uploads", str(stack.port), caller.token, str(UPLOADS), str(UPLOAD_MB)]
    return subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def _api_pid(stack: Stack) -> int:
    """gunicorn's worker, of which there is one."""
    return psutil.Process(stack.pids()["api"]).children(recursive=True)[-1].pid


def _memory_mib(stack: Stack) -> float:
    return float(psutil.Process(_api_pid(stack)).memory_info().rss) / 2**20


def _forget_peak(stack: Stack) -> None:
    Path(f"/proc/{_api_pid(stack)}/clear_refs").write_text("5")


def _memory(stack: Stack, idle_mib: float) -> str:
    status = Path(f"/proc/{_api_pid(stack)}/status").read_text()
    most_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return f"{idle_mib:.0f} / {most_kib / 1024:.0f} / {_memory_mib(stack):.0f} MiB"


def _upload(port: int, token: str, body: bytes, statuses: list[bytes]) -> None:
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\nPrefer: respond-async\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    while True:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
            connection.sendall(head.encode())
            connection.sendall(body)
            statuses.append(connection.recv(4096).partition(b"\r\n")[0])
        if b" 503 " not in statuses[-1]:
            return
        time.sleep(AGAIN_S)


def main(port: int, token: str, uploads: int, size_mb: int) -> None:
    """So many at once, each repeated while the answer is 503; prints how often that was. Exits with 1 unless all were accepted."""
    picture = base64.b64encode(os.urandom(size_mb * 750_000)).decode()
    parts = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}]
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": parts}]}).encode()
    statuses: list[bytes] = []
    senders = [threading.Thread(target=_upload, args=(port, token, body, statuses)) for _ in range(uploads)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    seen = [status[9:12].decode() for status in statuses]
    print(seen.count("503"))
    if seen.count("202") != uploads:
        sys.exit(f"not all were accepted: {statuses}")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
