"""Listens on 127.0.0.1, prints one JSON line with its port, and ends on SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import signal

from tests.upstream.server import Upstream
from tests.upstream.wire import Connection


async def listen(*, port: int) -> None:
    loop = asyncio.get_running_loop()
    upstream = Upstream()
    server = await loop.create_server(lambda: Connection(upstream.serve, upstream.connections), "127.0.0.1", port, backlog=2048)
    stopped = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stopped.set)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    await stopped.wait()
    server.close()
    for connection in list(upstream.connections):
        connection.abort()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.upstream", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    port = parser.parse_args().port
    # The journal only grows; scanning it again and again would be most of our CPU.
    gc.freeze()
    gc.set_threshold(100_000, 50, 1000)
    asyncio.run(listen(port=port))


main()
