"""Starts the fake upstream as a process, sets its behaviour, and reads its journal."""

from __future__ import annotations

import atexit
import http.client
import json
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode

import pytest

from deploy.local.server_process import die_with_parent
from tests.upstream.journal import Call, fingerprint

ROOT = Path(__file__).parents[2]
POLL_S = 0.01
PATIENCE_S = 10.0


class FakeUpstream:
    """A fake OpenAI on 127.0.0.1. Start it in the main thread: it ends with the thread that started it."""

    def __init__(self, *, certificate: Path | None = None, host: str = "127.0.0.1") -> None:
        self._certificate, self._host = certificate, host
        self.port = self.tls_port = 0
        self._process: subprocess.Popen[str] | None = None

    @property
    def base_url(self) -> str:
        return f"http://{self._host}:{self.port}/v1"

    @property
    def tls_base_url(self) -> str:
        """The base URL over TLS, if it was started with a certificate."""
        return f"https://localhost:{self.tls_port}/v1"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, *, port: int = 0) -> Self:
        command = [sys.executable, "-m", "tests.upstream", "--host", self._host, "--port", str(port)]
        command += ["--certificate", str(self._certificate)] if self._certificate else []
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent)
        assert self._process.stdout is not None
        ports = json.loads(self._process.stdout.readline())
        self.port, self.tls_port = ports["port"], ports.get("tls_port", 0)
        return self

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def limit(self, key: str = "*", *, model: str | None = None, **given: Any) -> None:
        """Set limits of a key.

        limits: rpm, tpm, ipm, rpd, in_flight. options: mode, window_s, count_refused, hide_headers, per_model of
        limits.Rule. The named limits replace all earlier ones of this key (and model) and begin unused; only the
        given options change.
        """
        limits = {name: given.pop(name) for name in ("rpm", "tpm", "ipm", "rpd", "in_flight") if name in given}
        self._ask("POST", f"keys/{quote(key, safe='')}", {"limits": limits, **given} | ({"model": model} if model else {}))

    def behave(self, key: str = "*", *behaviours: dict[str, Any], **one: Any) -> None:
        """Set the behaviours of the next calls of this key, in order; replaces the remaining ones.

        Each is a behaviour.Behaviour, e.g. {"status": 500, "times": 2} or {"delay": [0.1, 0.3], "probability": 0.5}.
        Keyword arguments are one behaviour for every call. Without arguments the key behaves normally.
        """
        always = [{"probability": 1, **one}] if one else []
        self._ask("POST", f"keys/{quote(key, safe='')}", {"behaviours": [*behaviours, *always]})

    def calls(self, *, since: int = 0, key: str | None = None, outcome: str | None = None) -> list[Call]:
        """The journal from call number `since` on. key: the bearer key itself."""
        asked = {"since": since, "key": key, "outcome": outcome}
        query = urlencode({name: value for name, value in asked.items() if value is not None})
        return [Call(**call) for call in self._ask("GET", f"calls?{query}")["calls"]]

    def stats(self, key: str | None = None) -> dict[str, Any]:
        """All statistics, {"all", "keys": by fingerprint, "waiting", "cpu_s"}, or those of one key."""
        stats = self._ask("GET", "stats")
        return stats if key is None else stats["keys"][fingerprint(key)]  # type: ignore[no-any-return]  # JSON border

    def release(self, *, most: int | None = None) -> int:
        """Release held calls, the oldest first; return their number."""
        return int(self._ask("POST", "release" + (f"?most={most}" if most is not None else ""))["released"])

    def waiting(self) -> int:
        return int(self._ask("GET", "waiting")["waiting"])

    def reset(self) -> None:
        """Reset to the state after the start; open calls are cut off."""
        self._ask("POST", "reset")

    def wait_for_calls(self, n: int, timeout_s: float = PATIENCE_S, *, outcome: str | None = None) -> None:
        """Wait until at least n calls have arrived, or have ended with this outcome. Raises TimeoutError."""
        self._wait(n, timeout_s, outcome or "calls")

    def wait_for_held(self, n: int, timeout_s: float = PATIENCE_S) -> None:
        """Wait until at least n calls are held. Raises TimeoutError."""
        self._wait(n, timeout_s, "waiting")

    def _wait(self, n: int, timeout_s: float, what: str) -> None:
        until = time.monotonic() + timeout_s
        while True:
            stats = self.stats()
            found = {"calls": stats["all"]["calls"], "waiting": stats["waiting"]}.get(what, stats["all"]["outcomes"].get(what, 0))
            if found >= n:
                return
            if time.monotonic() > until:
                raise TimeoutError(f"{found} of {n} {what} after {timeout_s} s: {stats['all']}")
            time.sleep(POLL_S)

    def _ask(self, method: str, path: str, given: dict[str, Any] | None = None) -> Any:
        connection = http.client.HTTPConnection(self._host, self.port, timeout=PATIENCE_S)
        try:
            connection.request(method, f"/_fake/{path}", json.dumps(given or {}) if method == "POST" else None)
            response = connection.getresponse()
            answer = json.loads(response.read())
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise ValueError(answer["error"])
        return answer


@pytest.fixture
def upstream() -> FakeUpstream:
    """The shared fake upstream of this test run, reset."""
    shared = _shared()
    shared.reset()
    return shared


@cache
def _shared() -> FakeUpstream:
    started = FakeUpstream().start()
    atexit.register(started.stop)
    return started
