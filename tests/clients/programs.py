"""All client programs behind one interface: each makes several calls concurrently, and reports what its user sees."""

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
# Longer than any wait in the queue in a test.
PATIENCE_S = 150


@dataclass(frozen=True)
class Client:
    """A client program. kinds: the kinds of calls that it supports. make: makes the calls and returns their results in order."""

    name: str
    kinds: tuple[str, ...]
    make: Callable[[Sequence[Call]], list[Seen]]

    def make_one(self, call: Call) -> Seen:
        return self.make([call])[0]

    @property
    def is_installed(self) -> bool:
        return "curl" not in self.name or shutil.which("curl") is not None

    @property
    def marks(self) -> list[pytest.MarkDecorator]:
        return [pytest.mark.skipif(not self.is_installed, reason=f"{self.name} is not installed")]


def params(clients: Iterable[Client]) -> list[Any]:
    """Parameters by client name. A machine without curl skips curl; CI has it."""
    return [pytest.param(client, id=client.name, marks=client.marks) for client in clients]


def javascript(program: str, calls: Sequence[Call]) -> list[Seen]:
    """Make the calls with `program`.mjs, all in one process."""
    node_js = installed()
    argv = [node_js.program, str(HERE / f"{program}.mjs"), _json(calls)]
    run = subprocess.run(
        argv, env=node_js.environment, cwd=HERE, capture_output=True, text=True, timeout=PATIENCE_S, preexec_fn=die_with_parent, check=False
    )
    assert run.returncode == 0, run.stderr
    return [Seen(**json.loads(line)) for line in run.stdout.splitlines()]


def curl(calls: Sequence[Call]) -> list[Seen]:
    """Make the calls with curl and parse its output."""
    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(_curl, calls))


def start(client: str, call: Call) -> subprocess.Popen[bytes]:
    """Start one call with curl or a .mjs file, for a test that does not let it finish."""
    node_js = installed()
    argv = [node_js.program, str(HERE / f"{client}.mjs"), _json([call])]
    if client == "curl":
        argv = ["sh", "-c", f"exec {command(call)} -m {PATIENCE_S}"]
    env = {**node_js.environment, "OPENAI_API_KEY": call.key}
    return subprocess.Popen(argv, env=env, cwd=HERE, stdout=subprocess.DEVNULL, preexec_fn=die_with_parent)


@cache
def installed() -> node.Node:
    """The Node.js of this test run, with the packages of package-lock.json installed."""
    node_js = node.find()
    node_js.install(HERE)
    return node_js


def readme(base: str) -> dict[str, str]:
    """The README's curl calls by kind, with the address of this stack."""
    lines = re.findall(r"^\$ (curl \S+ \S*/v1/(?:chat|images)/.*?\}')$", README.read_text(), re.MULTILINE | re.DOTALL)
    kinds = {IMAGE if "/images/" in line else STREAM if '"stream": true' in line else CHAT: line for line in lines}
    return {kind: line.replace("localhost:8000", base.removeprefix("http://").removesuffix("/v1")) for kind, line in kinds.items()}


def command(call: Call) -> str:
    """The shell line of this call. The key is in OPENAI_API_KEY."""
    if call.line:
        return call.line
    path, body = "chat/completions", call.chat
    if call.kind == STREAM:
        body["stream"] = True
    if call.kind == IMAGE:
        path, body = "images/generations", {"model": call.model, "prompt": call.say, **call.more}
    arguments = f'-H "Authorization: Bearer $OPENAI_API_KEY" -H "Content-Type: application/json" -d {shlex.quote(json.dumps(body))}'
    return f"curl -{'sN' if call.kind == STREAM else 's'} {call.base}/{path} {arguments}"


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
        _parse_stream(seen, run.stdout)
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


def _parse_stream(seen: Seen, text: str) -> None:
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
