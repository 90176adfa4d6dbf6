"""litellm's proxy, as it comes from PyPI, in a virtual environment of its own that is made when it is missing."""

from __future__ import annotations

import base64
import http.client
import os
import subprocess
import sys
import time
import zlib
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.server import die_with_parent, free_port, last_lines

ROOT = Path(__file__).parents[1]
HOME = ROOT / ".bench" / "peers"
PINNED = ROOT / "requirements" / "bench-peers.txt"
START_S = 90
STOP_S = 10
CONFIG = """
model_list:
  - model_name: {model}
    litellm_params: {{model: openai/m, api_base: "{base_url}", api_key: sk-x}}
"""


class Litellm:
    """One model that leads to `base_url`, one worker, everything else as it is by default."""

    def __init__(self, folder: Path, *, base_url: str, model: str) -> None:
        self._folder = folder
        self._config = CONFIG.format(base_url=base_url, model=model)
        # It refuses to start with a short one.
        self.token = "sk-" + base64.b32encode(os.urandom(30)).decode()
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        """Ready to answer. Raises RuntimeError with the end of its log when it is not in time."""
        _install()
        config, log = self._folder / "litellm.yaml", self._folder / "litellm.log"
        config.write_text(self._config, encoding="utf-8")
        command = [HOME / "bin" / "litellm", "--config", config, "--host", "127.0.0.1", "--port", str(self.port)]
        environment = os.environ | {"LITELLM_MASTER_KEY": self.token, "LITELLM_LOG": "ERROR"}
        with log.open("wb") as told:
            self._process = subprocess.Popen(
                command, cwd=self._folder, env=environment, stdout=told, stderr=told, preexec_fn=die_with_parent
            )
        until = time.monotonic() + START_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > until:
                self._stop()
                raise RuntimeError(f"litellm did not start. The end of its log:\n{last_lines(log)}")
            time.sleep(0.2)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    def version(self) -> str:
        query = "import importlib.metadata; print(importlib.metadata.version('litellm'))"
        return subprocess.run([HOME / "bin" / "python", "-c", query], capture_output=True, text=True, check=True).stdout.strip()

    def _is_ready(self) -> bool:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
            connection.request("GET", "/health/readiness")
            is_up = connection.getresponse().status == http.client.OK
            connection.close()
        except OSError:
            return False
        return is_up

    def _stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


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
