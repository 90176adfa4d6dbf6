"""A prefork server: imports libraries once, then forks the programs of this project, which start in a fraction of the time.

The server is a single-threaded process of its own, because a fork copies only one thread of a process. It is the parent of the programs
and keeps an ended program as a zombie until it is collected, so that its pid is not reused. It ends with its client
(models/platform/fork_client.py).
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

import setproctitle

from models.config.settings import use_environment
from models.platform.parent_death import die_with_parent

READY = b"r"
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def preload(libraries: Sequence[str]) -> None:
    """Imports these modules. A failed import is left to the program that needs the module, which reports it."""
    gc.disable()  # imports leave no garbage, and collecting takes a third of the time
    for name in libraries:
        with suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()
    gc.enable()


def serve(connection: socket.socket, libraries: Sequence[str]) -> None:
    """Serves requests one after another until the client is gone."""
    for number in IGNORED:  # signals to the process group are for the programs; the server ends with its client
        signal.signal(number, signal.SIG_IGN)
    setproctitle.setproctitle("nowserving: forker")
    preload(libraries)
    connection.sendall(READY)
    requests, server = connection.makefile("r"), os.getpid()
    for line in requests:
        request = json.loads(line)
        if "collect" in request:
            reply = os.waitstatus_to_exitcode(os.waitpid(request["collect"], 0)[1])
        elif (reply := os.fork()) == 0:
            connection.close()
            requests.close()
            end_after(lambda request=request: _run_program(request, server=server))
        connection.sendall(f"{reply}\n".encode())


def _run_program(request: Mapping[str, Any], *, server: int) -> None:
    """Runs the requested program in this process. server: the pid of its parent."""
    if request["is_apart"]:
        os.setsid()
    if request["dies"]:
        die_with_parent(request["dies"])
        if os.getppid() != server:  # the server ended before the signal was set
            return
    for number in IGNORED:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request["log"]:
        output = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
    use_environment(request["env"])
    sys.argv = [*request["argv"]]
    setproctitle.setproctitle(" ".join(["python", "-m", *sys.argv]))
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def end_after(work: Any) -> NoReturn:
    """Runs `work` in a forked process and ends the process, without the exit handlers of the process that forked it."""
    status = 1
    try:
        work()
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)


def main() -> None:
    """Serves the socket on standard input. The programs get /dev/null as standard input."""
    connection, nothing = socket.socket(fileno=os.dup(0)), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    serve(connection, sys.argv[1:])


if __name__ == "__main__":
    main()
