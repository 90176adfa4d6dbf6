"""Sessions, the legacy API and the account, with the programs that people use."""

from __future__ import annotations

import asyncio
import json
import subprocess
from typing import Any

import openai
import pytest

from deploy.local.server_process import die_with_parent
from models.database import db
from models.keys import keys
from tests.clients.calls import CHAT, STREAM, Call
from tests.clients.conftest import MODEL, World, chat
from tests.clients.programs import CLIENTS, HERE, Client, installed
from tests.clients.raw import Raw
from tests.support.queue_tools import query
from tests.upstream.chat import echo

# What they send, they send as it was given; openai-python wants `extra_body`, and chatgpt knows its own history only.
TALKERS = [(client, kind) for client in CLIENTS for kind in (CHAT, STREAM) if kind in client.kinds and "python" not in client.name]
TALKERS = [(client, kind) for client, kind in TALKERS if client.name != "chatgpt"]


def in_session(name: str) -> dict[str, Any]:
    return {"nowserving": {"conversation": name}}


def talk(before: list[list[str]]) -> list[list[str]]:
    """Without instructions."""
    return [one for one in before if one[0] != "system"]


@pytest.mark.parametrize(
    ("client", "kind"), [pytest.param(client, kind, id=f"{client.name}, {kind}", marks=client.marks) for client, kind in TALKERS]
)
def test_each_turn_carries_the_turn_before_it(world: World, key: str, client: Client, kind: str) -> None:
    words = f"{client.name} {kind} 世界 😀"
    for n in range(2):
        client.one(Call(world.base, key, f"{n} {words}", kind, MODEL, more=in_session("talk")))
    first, second = world.calls(words)

    assert [] == talk(first.before)
    assert [["user", f"0 {words}"], ["assistant", echo(f"0 {words}")]] == talk(second.before)


def test_the_python_sdk_reads_a_session_page_by_page(world: World, key: str) -> None:
    client = openai.OpenAI(base_url=world.base, api_key=key)
    for n in range(3):
        client.chat.completions.create(**chat(f"question {n}"), extra_body=in_session("über 😀"))
    asyncio.run(
        openai.AsyncOpenAI(base_url=world.base, api_key=key).chat.completions.create(**chat("question 3"), extra_body=in_session("über 😀"))
    )
    path = "/sessions/%C3%BCber%20%F0%9F%98%80"
    session = client.get(path, cast_to=dict[str, Any])
    first = client.get(f"{path}/messages?limit=3", cast_to=dict[str, Any])
    rest = client.get(f"{path}/messages?limit=50&after={first['last_id']}", cast_to=dict[str, Any])

    assert "über 😀" == session["id"] == client.get("/sessions", cast_to=dict[str, Any])["data"][0]["id"]
    assert (3, True, False) == (len(first["data"]), first["has_more"], rest["has_more"])
    said = json.dumps([*first["data"], *rest["data"]])
    assert all(f"question {n}" in said for n in range(4))
    with pytest.raises(openai.NotFoundError):
        client.get("/sessions/another", cast_to=dict[str, Any])


def test_a_bot_of_the_legacy_api_is_answered_and_remembered(world: World, key: str) -> None:
    key = key[:64]
    answers = [_pro(world, key, f"第{n}个问题") for n in range(2)]

    assert [(200, "执行成功", echo(f"第{n}个问题")) for n in range(2)] == [(one["code"], one["message"], one["data"]) for one in answers]
    (second,) = world.calls("第1个问题")
    assert [["user", "第0个问题"], ["assistant", echo("第0个问题")]] == talk(second.before)
    with Raw(world.api.port, f"/pro/balance?apiKey={key}", method="GET") as told:
        assert 200 == told.json["code"] and {"total", "balance", "used"} == set(told.json["data"])
    assert key not in world.logs()


def _pro(world: World, key: str, content: str) -> dict[str, Any]:
    with Raw(world.api.port, "/pro/chat/completions", {"apiKey": key, "sessionId": "bot", "content": content}) as told:
        return dict(told.json)


def test_an_account_is_shown_by_the_programs_that_ask_for_it(world: World, key: str) -> None:
    with db.begin() as session:
        number = keys.authenticate(session, key).id
    query("INSERT INTO ledger (key_id, kind, amount_microusd, dispatch_id) VALUES (:id, 'charge', -80000, gen_random_uuid())", id=number)
    found = installed()
    for prefix in ("", "/v1", "/v1/v1"):
        base = f"http://127.0.0.1:{world.api.port}{prefix}"
        argv = [found.program, str(HERE / "billing.mjs"), base, key]
        run = subprocess.run(
            argv, env=found.environment, capture_output=True, text=True, timeout=60, preexec_fn=die_with_parent, check=False
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        seen = json.loads(run.stdout)
        assert {"used": 0.08, "total": 100_000_000, "pays": True} == seen["nextchat"]
        assert 0.08 == seen["chatgptWeb"] and "0.08" == seen["older"][1]
