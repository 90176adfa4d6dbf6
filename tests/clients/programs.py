"""The client programs behind one form: each is given calls, makes them all at once, and says what its user saw of each."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from deploy.checks import node
from deploy.local.server_process import die_with_parent
from tests.clients.calls import CHAT, EDIT, EMBED, IMAGE, MODEL, MODELS, MODERATE, PARTIALS, STREAM, Call, Seen
from tests.clients.sdk import python, python_async

HERE = Path(__file__).parent
README = HERE.parents[1] / "README.md"
# Longer than any wait in line that a test makes.
PATIENCE_S = 150


@dataclass(frozen=True)
class Client:
    """kinds: what it can ask for. make: makes the calls, and says in their order what was seen."""

    name: str
    kinds: tuple[str, ...]
    make: Callable[[Sequence[Call]], list[Seen]]

    def one(self, call: Call) -> Seen:
        return self.make([call])[0]

    @property
    def is_here(self) -> bool:
        return "curl" not in self.name or shutil.which("curl") is not None

    @property
    def marks(self) -> list[pytest.MarkDecorator]:
        return [pytest.mark.skipif(not self.is_here, reason=f"{self.name} is not installed")]


def params(clients: Iterable[Client]) -> list[Any]:
    """For parametrize, each client by its name. A machine without curl leaves curl out; CI brings it."""
    return [pytest.param(client, id=client.name, marks=client.marks) for client in clients]


def javascript(program: str, calls: Sequence[Call]) -> list[Seen]:
    """As `program`.mjs saw them, all in one process."""
    found = installed()
    argv = [found.program, str(HERE / f"{program}.mjs"), _json(calls)]
    run = subprocess.run(
        argv, env=found.environment, cwd=HERE, capture_output=True, text=True, timeout=PATIENCE_S, preexec_fn=die_with_parent, check=False
    )
    assert run.returncode == 0, run.stderr
    return [Seen(**json.loads(line)) for line in run.stdout.splitlines()]


def curl(calls: Sequence[Call]) -> list[Seen]:
    """What the command prints."""
    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(_curl, calls))


def start(client: str, call: Call) -> subprocess.Popen[bytes]:
    """The program of this client (curl, or the name of a .mjs file) makes the call, for a test that will not let it finish."""
    found = installed()
    argv = [found.program, str(HERE / f"{client}.mjs"), _json([call])]
    if client == "curl":
        argv = ["sh", "-c", f"exec {command(call)} -m {PATIENCE_S}"]
    env = {**found.environment, "OPENAI_API_KEY": call.key}
    return subprocess.Popen(argv, env=env, cwd=HERE, stdout=subprocess.DEVNULL, preexec_fn=die_with_parent)


@cache
def installed() -> node.Node:
    """The Node.js of this test run, with the packages that package-lock.json names."""
    found = node.find()
    found.install(HERE)
    return found


def readme(base: str) -> dict[str, str]:
    """The README's own calls by their kinds, with our address in the place of its."""
    lines = re.findall(r"^\$ (curl \S+ \S*/v1/(?:chat|images)/.*?\}')$", README.read_text(), re.MULTILINE | re.DOTALL)
    kinds = {IMAGE if "/images/" in line else STREAM if '"stream": true' in line else CHAT: line for line in lines}
    return {kind: line.replace("localhost:8000", base.removeprefix("http://").removesuffix("/v1")) for kind, line in kinds.items()}


def command(call: Call) -> str:
    """The shell line that makes this call. The key is in OPENAI_API_KEY."""
    if call.line:
        return call.line
    path, body = "chat/completions", call.chat
    if call.kind == STREAM:
        body["stream"] = True
    if call.kind == IMAGE:
        path, body = "images/generations", {"model": call.model, "prompt": call.say, **call.more}
    words = f'-H "Authorization: Bearer $OPENAI_API_KEY" -H "Content-Type: application/json" -d {shlex.quote(json.dumps(body))}'
    return f"curl -{'sN' if call.kind == STREAM else 's'} {call.base}/{path} {words}"


def _json(calls: Sequence[Call]) -> str:
    return json.dumps([{each.name: getattr(call, each.name) for each in fields(call)} for call in calls])


def _curl(call: Call) -> Seen:
    seen, began = Seen(), time.monotonic()
    line = f"{command(call)} -m {PATIENCE_S} -w '%{{stderr}}%{{http_code}}'"
    run = subprocess.run(
        ["sh", "-c", line], env={"OPENAI_API_KEY": call.key, "PATH": os.defpath}, capture_output=True, text=True,
        timeout=PATIENCE_S + 10, preexec_fn=die_with_parent, check=False,
    )  # fmt: skip
    seen.took_s = time.monotonic() - began
    status = int(run.stderr[-3:])
    if status == 200 and call.kind == STREAM:
        _printed(seen, run.stdout)
        return seen
    answer = json.loads(run.stdout)
    if error := answer.get("error"):
        seen.error, seen.status = "shown", status
        seen.message, seen.type, seen.param, seen.code = error["message"], error["type"], error["param"], error["code"]
    elif call.kind == CHAT:
        seen.id, seen.finish, seen.usage = answer["id"], answer["choices"][0]["finish_reason"], answer["usage"]
        seen.show(answer["choices"][0]["message"]["content"])
    else:
        seen.pictures = [picture.get("b64_json") or picture["url"] for picture in answer["data"]]
    return seen


def _printed(seen: Seen, text: str) -> None:
    events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    seen.done = bool(events) and events[-1] == "[DONE]"
    for chunk in map(json.loads, (event for event in events if event != "[DONE]")):
        seen.id, seen.error = chunk.get("id", seen.id), "shown" if "error" in chunk else seen.error
        for choice in chunk.get("choices", []):
            seen.finish = choice["finish_reason"] or seen.finish
            if choice["delta"].get("content"):
                seen.show(choice["delta"]["content"])


ALL = (CHAT, STREAM, IMAGE, PARTIALS, EDIT, EMBED, MODERATE, MODELS, MODEL)
CLIENTS = (
    Client("openai-python", ALL, python),
    Client("openai-python, async", ALL, python_async),
    Client("openai-node", ALL, partial(javascript, "openai")),
    Client("chatgpt", (CHAT, STREAM), partial(javascript, "chatgpt")),
    Client("fetch-event-source", (CHAT, STREAM, IMAGE), partial(javascript, "fetch_event_source")),
    Client("eventsource-parser", (STREAM, MODELS), partial(javascript, "eventsource_parser")),
    Client("curl", (CHAT, STREAM, IMAGE), curl),
)
