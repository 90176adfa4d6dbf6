"""A fake of the command line `nowserving`: it serves its port, ends on SIGTERM, and fails on request.

STAND_IN_FAILS names a command that exits with 3 at once; STAND_IN_CHILD makes the worker start a process of its own.
"""

from __future__ import annotations

import http.server
import os
import signal
import subprocess
import sys
import threading


class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def main(command: str) -> None:
    print(f"{command} begins", flush=True)
    if command == os.environ.get("STAND_IN_FAILS"):
        sys.exit(f"{command} fails as asked")
    if command == "migrate":
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if command == "worker" and os.environ.get("STAND_IN_CHILD"):
        # A process that ignores SIGTERM, like a worker during a call.
        code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('child', flush=True); time.sleep(600)"
        print("child", subprocess.Popen([sys.executable, "-c", code]).pid, flush=True)
    port = {"api": "NOWSERVING_PORT", "flower": "NOWSERVING_FLOWER_PORT"}.get(command)
    if port:
        http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ[port])), Ready).serve_forever()
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1])
