"""A webhook receiver that costs little: `python -m bench.measure.receiver <port>` notes what arrives; under /hangs it never answers."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from deploy.local.server_process import die_with_parent

ANSWER = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"


@dataclass
class Receiver:
    """The process."""

    port: int
    _process: subprocess.Popen[bytes] | None = None

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def arrivals(self) -> dict[str, float]:
        """When each delivery arrived first, by its webhook-id."""
        with urllib.request.urlopen(self.url("/arrivals"), timeout=20) as answer:
            return dict(json.load(answer))

    def __enter__(self) -> Self:
        self._process = subprocess.Popen([sys.executable, "-m", "bench.measure.receiver", str(self.port)], preexec_fn=die_with_parent)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process
        self._process.kill()
        self._process.wait()


async def serve(port: int) -> None:
    """Until the process is killed."""
    arrived: dict[str, float] = {}

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        at, head = time.time(), (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *rest = head.split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in rest if line)
        await reader.readexactly(int(fields.get("content-length", "0")))
        if first.startswith("GET"):
            body = json.dumps(arrived).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        elif "/hangs" in first:
            await reader.read()
        else:
            arrived.setdefault(fields["webhook-id"], at)
            writer.write(ANSWER)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
