"""Stored completions with the official SDKs, through the whole stack."""

from __future__ import annotations

import json
import subprocess

import openai
import pytest

from deploy.local.server_process import die_with_parent
from tests.clients.conftest import MODEL, System, chat
from tests.clients.programs import HERE, installed
from tests.upstream.chat import echo


def test_openai_python_uses_every_stored_completion_route(system: System, key: str) -> None:
    with openai.OpenAI(base_url=system.base, api_key=key) as sdk:
        completions = sdk.chat.completions
        created = [completions.create(store=True, metadata={"topic": topic}, **chat(f"about {topic}")) for topic in ("tea", "milk")]
        completions.create(**chat("not stored"))
        *_, last = completions.create(store=True, stream=True, metadata={"topic": "tea"}, **chat("as a stream"))
        ids = [*(each.id for each in created), last.id]

        assert ids == [each.id for each in completions.list(limit=1)]
        assert [last.id, ids[0]] == [each.id for each in completions.list(metadata={"topic": "tea"}, order="desc")]
        assert [] == list(completions.list(model="another"))
        assert created[0].choices == completions.retrieve(ids[0]).choices
        assert echo("as a stream") == completions.retrieve(last.id).choices[0].message.content
        assert {"topic": "rain"} == completions.update(ids[0], metadata={"topic": "rain"}).metadata
        assert [(f"{ids[1]}-0", "about milk")] == [(each.id, each.content) for each in completions.messages.list(ids[1])]
        assert completions.delete(ids[0]).deleted
        with pytest.raises(openai.NotFoundError):
            completions.retrieve(ids[0])


def test_openai_node_uses_every_stored_completion_route(system: System, key: str) -> None:
    node_js = installed()
    run = subprocess.run(
        [node_js.program, str(HERE / "stored.mjs"), system.base, key, MODEL, "hello"], env=node_js.environment,
        capture_output=True, text=True, timeout=60, preexec_fn=die_with_parent, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout)
    created = seen["made"]

    assert (created, [created[1], created[0]]) == (seen["listed"], seen["tea"])
    assert (echo("hello"), {"topic": "milk"}) == (seen["answer"], seen["metadata"])
    assert [[f"{created[0]}-0", "user", "hello"]] == seen["messages"]
    assert {"object": "chat.completion.deleted", "id": created[0], "deleted": True} == seen["deleted"]
    assert ["NotFoundError", 404] == seen["gone"]
