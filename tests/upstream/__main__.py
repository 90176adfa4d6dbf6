"""Listens on 127.0.0.1 or another host, prints its ports as one JSON line, and ends on SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import signal
import ssl
from functools import partial

from tests.upstream.server import Upstream
from tests.upstream.wire import Connection


async def listen(*, host: str, port: int, certificate: str | None) -> None:
    loop = asyncio.get_running_loop()
    upstream = Upstream()
    listen_on = partial(loop.create_server, lambda: Connection(upstream.serve, upstream.connections), host, backlog=2048)
    server = await listen_on(port)
    ports = {"port": server.sockets[0].getsockname()[1]}
    if certificate:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
        ports["tls_port"] = (await listen_on(0, ssl=tls)).sockets[0].getsockname()[1]
    stopped = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stopped.set)
    print(json.dumps(ports), flush=True)
    await stopped.wait()
    server.close()
    for connection in list(upstream.connections):
        connection.abort()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.upstream", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--host", default="127.0.0.1", help="of a network namespace of a test's own (tests/hosts)")
    parser.add_argument("--certificate", help="a PEM file with key and certificate: listens on another port with TLS too")
    asked = parser.parse_args()
    # The journal only grows. Garbage collections that scan it repeatedly would use most of the CPU.
    gc.freeze()
    gc.set_threshold(100_000, 50, 1000)
    asyncio.run(listen(host=asked.host, port=asked.port, certificate=asked.certificate))


main()
