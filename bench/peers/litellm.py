"""litellm's proxy, as it comes from PyPI, in a virtual environment of its own that is made when it is missing."""

from __future__ import annotations

import base64
import http.client
import json
import os
import subprocess
import sys
import time
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.measure import load
from bench.measure.load import CHAT, OK, Line, Wanted
from bench.peers import process
from bench.peers.peer import MODEL, PROMPT, Peer, Terms, Work
from bench.peers.script import Chore
from bench.peers.scripted import Scripted
from deploy.local.embedded_servers import free_port

ROOT = Path(__file__).parents[2]
HOME: Path = ROOT / ".bench" / "peers"
PINNED = ROOT / "requirements" / "bench-peers.txt"
START_S = 300
# What its documentation advises where one deployment has limits that must hold.
ROUTER = {"num_retries": 3, "optional_pre_call_checks": ["enforce_model_rate_limits"]}


class Litellm:
    """One model that leads to `base_url`, one worker; everything that `limits` and `router` do not say is as it is by default."""

    def __init__(
        self, folder: Path, *, base_url: str, model: str, key: str = "sk-x",
        limits: dict[str, int] | None = None, router: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """limits: rpm, tpm, max_parallel_requests of the deployment. router: router_settings."""
        self._folder = folder
        deployment = {"model": "openai/m", "api_base": base_url, "api_key": key} | (limits or {})
        self._config = {"model_list": [{"model_name": model, "litellm_params": deployment}]} | (
            {"router_settings": router} if router else {}
        )
        # It refuses to start with a short one.
        self.token = "sk-" + base64.b32encode(os.urandom(30)).decode()
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        """Ready to answer. Raises RuntimeError with the end of its log when it is not in time."""
        _install()
        config, log = self._folder / "litellm.yaml", self._folder / "litellm.log"
        config.write_text(json.dumps(self._config), encoding="utf-8")  # JSON is YAML
        command = [HOME / "bin" / "litellm", "--config", config, "--host", "127.0.0.1", "--port", str(self.port)]
        environment = os.environ | {"LITELLM_MASTER_KEY": self.token, "LITELLM_LOG": "ERROR"}
        self._process = process.start(command, log=log, environment=environment, folder=self._folder)
        process.wait_until(self._is_ready, self._process, log=log, within_s=START_S)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        process.stop(self._process)

    def _is_ready(self) -> bool:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
            connection.request("GET", "/health/readiness")
            is_up = connection.getresponse().status == http.client.OK
            connection.close()
        except OSError:
            return False
        return is_up


class LitellmPeer(Peer):
    """The proxy between the upstream and its users' own scripts: each batch of work is a client of its own, which waits for each call."""

    name = "litellm"
    settings = (
        "1 worker; rpm, tpm and max_parallel_requests of the deployment, enforce_model_rate_limits, 3 retries; nothing "
        "stored; its users run the bare script"
    )
    upstream_key = "sk-litellm"

    def __init__(self, folder: Path, *, base_url: str) -> None:
        self._folder = folder
        self._base_url = base_url
        self._proxy: Litellm | None = None
        self._terms: Terms | None = None
        self._clients: list[Scripted] = []

    @property
    def title(self) -> str:
        return f"{self.name} {version()}"

    def serve(self, terms: Terms) -> None:
        self._dismiss()
        if terms == self._terms:
            return
        self.halt()
        limits = {"rpm": terms.rpm, "tpm": terms.tpm, "max_parallel_requests": terms.at_once}
        known = {name: value for name, value in limits.items() if value is not None}
        proxy = Litellm(self._folder, base_url=self._base_url, model=MODEL, key=self.upstream_key, limits=known, router=ROUTER)
        self._proxy, self._terms = proxy.__enter__(), terms

    def hand_in(self, work: Work) -> None:
        client = Scripted(Chore(self._running.base_url, self._running.token, work.open_calls))
        self._clients.append(client)
        client.give(work)

    def wait_done(self, *, within_s: float) -> None:
        until = time.monotonic() + within_s
        for client in self._clients:
            client.wait_done(within_s=until - time.monotonic())

    def rush(self, work: Work, *, within_s: float) -> None:
        load.submit(self._wanted(work))

    def ask(self) -> float:
        line = Line(self._running.port)
        began = time.perf_counter()
        line.ask(next(self._wanted(Work(1)).requests()), expected=OK)
        took_s = time.perf_counter() - began
        line.socket.close()
        return took_s

    def pids(self) -> dict[str, int]:
        return {"litellm": self._running.pid}

    def halt(self) -> None:
        self._dismiss()
        if self._proxy is not None:
            self._proxy.__exit__(None, None, None)
        self._proxy = self._terms = None

    def _wanted(self, work: Work) -> Wanted:
        return Wanted(
            self._running.port, self._running.token, jobs=work.jobs, users=work.users, prefix=work.prefix, path=CHAT,
            connections=work.open_calls, prompt=PROMPT, max_tokens=work.max_tokens,
        )  # fmt: skip

    def _dismiss(self) -> None:
        for client in self._clients:
            client.stop()
        self._clients = []

    @property
    def _running(self) -> Litellm:
        assert self._proxy is not None
        return self._proxy


def version() -> str:
    """Of the proxy; it is installed when it is missing."""
    _install()
    query = "import importlib.metadata; print(importlib.metadata.version('litellm'))"
    return subprocess.run([HOME / "bin" / "python", "-c", query], capture_output=True, text=True, check=True).stdout.strip()


def _install() -> None:
    """HOME holds exactly what is pinned, checked by hash. Does nothing when that is so already."""
    stamp, wanted = HOME / "stamp", str(zlib.crc32(PINNED.read_bytes()))
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return
    print("installing litellm into .bench/peers (600 MB on disk; under a minute on a fast line)", flush=True)
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, HOME], check=True)
    command = [uv, "pip", "install", "--quiet", "--python", HOME / "bin" / "python", "--require-hashes", "-r", PINNED]
    subprocess.run(command, check=True, env=os.environ | {"UV_LINK_MODE": "copy"})
    stamp.write_text(wanted, encoding="utf-8")
