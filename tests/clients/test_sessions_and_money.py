"""Sessions, the legacy API and billing routes with real client programs."""

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
from tests.clients.conftest import MODEL, System, chat
from tests.clients.programs import CLIENTS, HERE, Client, installed
from tests.clients.raw import Raw
from tests.support.queue_tools import query
from tests.upstream.chat import echo

# These clients send the member `nowserving` unchanged. openai-python needs `extra_body`, and chatgpt supports only its
# own history.
SESSION_CLIENTS = [(client, kind) for client in CLIENTS for kind in (CHAT, STREAM) if kind in client.kinds and "python" not in client.name]
SESSION_CLIENTS = [(client, kind) for client, kind in SESSION_CLIENTS if client.name != "chatgpt"]


def in_session(name: str) -> dict[str, Any]:
    return {"nowserving": {"conversation": name}}


def without_system(before: list[list[str]]) -> list[list[str]]:
    """The history without system messages."""
    return [message for message in before if message[0] != "system"]


@pytest.mark.parametrize(
    ("client", "kind"), [pytest.param(client, kind, id=f"{client.name}, {kind}", marks=client.marks) for client, kind in SESSION_CLIENTS]
)
def test_each_turn_contains_the_turn_before_it(system: System, key: str, client: Client, kind: str) -> None:
    prompt = f"{client.name} {kind} 世界 😀"
    for n in range(2):
        client.make_one(Call(system.base, key, f"{n} {prompt}", kind, MODEL, more=in_session("talk")))
    first, second = system.calls(prompt)

    assert [] == without_system(first.before)
    assert [["user", f"0 {prompt}"], ["assistant", echo(f"0 {prompt}")]] == without_system(second.before)


def test_python_sdk_reads_a_session_page_by_page(system: System, key: str) -> None:
    client = openai.OpenAI(base_url=system.base, api_key=key)
    for n in range(3):
        client.chat.completions.create(**chat(f"question {n}"), extra_body=in_session("über 😀"))
    asyncio.run(
        openai.AsyncOpenAI(base_url=system.base, api_key=key).chat.completions.create(
            **chat("question 3"), extra_body=in_session("über 😀")
        )
    )
    path = "/sessions/%C3%BCber%20%F0%9F%98%80"
    session = client.get(path, cast_to=dict[str, Any])
    first = client.get(f"{path}/messages?limit=3", cast_to=dict[str, Any])
    rest = client.get(f"{path}/messages?limit=50&after={first['last_id']}", cast_to=dict[str, Any])

    assert "über 😀" == session["id"] == client.get("/sessions", cast_to=dict[str, Any])["data"][0]["id"]
    assert (3, True, False) == (len(first["data"]), first["has_more"], rest["has_more"])
    messages = json.dumps([*first["data"], *rest["data"]])
    assert all(f"question {n}" in messages for n in range(4))
    with pytest.raises(openai.NotFoundError):
        client.get("/sessions/another", cast_to=dict[str, Any])


def test_legacy_api_answers_and_keeps_the_history(system: System, key: str) -> None:
    key = key[:64]
    answers = [_pro(system, key, f"第{n}个问题") for n in range(2)]

    assert [(200, "执行成功", echo(f"第{n}个问题")) for n in range(2)] == [
        (answer["code"], answer["message"], answer["data"]) for answer in answers
    ]
    (second,) = system.calls("第1个问题")
    assert [["user", "第0个问题"], ["assistant", echo("第0个问题")]] == without_system(second.before)
    with Raw(system.api.port, f"/pro/balance?apiKey={key}", method="GET") as response:
        assert 200 == response.json["code"] and {"total", "balance", "used"} == set(response.json["data"])
    assert key not in system.logs()


def _pro(system: System, key: str, content: str) -> dict[str, Any]:
    with Raw(system.api.port, "/pro/chat/completions", {"apiKey": key, "sessionId": "bot", "content": content}) as response:
        return dict(response.json)


def test_billing_programs_show_the_account(system: System, key: str) -> None:
    with db.begin() as session:
        key_id = keys.authenticate(session, key).id
    query("INSERT INTO ledger (key_id, kind, amount_microusd, dispatch_id) VALUES (:id, 'charge', -80000, gen_random_uuid())", id=key_id)
    node_js = installed()
    for prefix in ("", "/v1", "/v1/v1"):
        base = f"http://127.0.0.1:{system.api.port}{prefix}"
        argv = [node_js.program, str(HERE / "billing.mjs"), base, key]
        run = subprocess.run(
            argv, env=node_js.environment, capture_output=True, text=True, timeout=60, preexec_fn=die_with_parent, check=False
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        seen = json.loads(run.stdout)
        assert {"used": 0.08, "total": 100_000_000, "pays": True} == seen["nextchat"]
        assert 0.08 == seen["chatgptWeb"] and "0.08" == seen["older"][1]
