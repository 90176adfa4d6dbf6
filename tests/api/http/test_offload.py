"""Large bodies are parsed beside the event loop, small ones on it, and errors come back as they were raised."""

from __future__ import annotations

import subprocess
import sys

import pytest

from api.http import offload
from models.platform.errors import Invalid

# The work is a native sleep: it holds no lock, so that a loop that goes on ticks all the time.
SCRIPT = """
from gevent import monkey
import time
native_sleep = time.sleep
monkey.patch_all()
import gevent
from api.http import offload
from models.platform.errors import Invalid
ticks = 0
def tick():
    global ticks
    while True:
        gevent.sleep(0.01)
        ticks += 1
gevent.spawn(tick)
def work():
    native_sleep(0.5)
    raise Invalid("no")
def attempt(size):
    global ticks
    ticks = 0
    try:
        offload.run(size, work)
    except Invalid as error:
        return ticks, str(error)
print(attempt(offload.LARGE_BYTES - 1)[0], *attempt(offload.LARGE_BYTES), *attempt(offload.LARGEST_BYTES))
"""


def test_the_loop_goes_on_while_a_large_body_is_parsed() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60)
    on_the_loop, large, why, largest, again = done.stdout.split()

    assert (0, "no", "no", "") == (int(on_the_loop), why, again, done.stderr)
    assert min(int(large), int(largest)) > 5


def test_without_gevent_work_is_done_where_it_is_asked_for() -> None:
    def refuse() -> None:
        raise Invalid("no")

    assert 7 == offload.run(offload.LARGEST_BYTES, lambda: 7)
    with pytest.raises(Invalid):
        offload.run(offload.LARGEST_BYTES, refuse)
