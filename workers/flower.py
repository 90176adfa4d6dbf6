"""`python -m workers.flower`: Flower on loopback, read-only, behind basic auth. Its secrets go by environment, never by argv."""

from __future__ import annotations

import os
import sys

from models.settings import settings

TASKS_MOST = 5_000


def main() -> None:
    """Becomes Flower. Exits with a message when no user and password are set."""
    auth = settings().flower_basic_auth.get_secret_value()
    if ":" not in auth:
        sys.exit("Set NOWSERVING_FLOWER_BASIC_AUTH=user:password; `nowserving up` makes one at random.")
    environment = {name: value for name, value in os.environ.items() if name != "FLOWER_UNAUTHENTICATED_API"}
    environment["FLOWER_BASIC_AUTH"] = auth
    command = [
        sys.executable,
        "-m",
        "celery",
        "--app",
        "workers.tasks",
        "flower",
        "--address=" + settings().host,
        f"--port={settings().flower_port}",
    ]
    command += [f"--max-tasks={TASKS_MOST}", "--read-only=True", "--purge-offline-workers=300", "--persistent=False"]
    os.execve(sys.executable, command, environment)


if __name__ == "__main__":
    main()
