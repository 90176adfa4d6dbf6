"""Webhooks with real client libraries: the SDKs manage endpoints, and SDKs and the documented receivers verify deliveries."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import standardwebhooks

from deploy.local.server_process import die_with_parent, free_port
from tests.clients.conftest import Api, chat, serving
from tests.clients.programs import HERE, installed
from tests.support.programs.process import until
from tests.support.programs.processes import Stack, running
from tests.support.servers.webhook_receiver import Got, Receiver

DOCS = HERE.parents[1] / "docs" / "guides" / "webhooks.md"
OTHER_SECRET = "whsec_" + "bm90IHlvdXIgc2VjcmV0IGF0IGFsbCE="


@dataclass(frozen=True)
class Hooks:
    """A stack that may call this machine, and a receiver. ports: further ports that it may call, by purpose."""

    stack: Stack
    api: Api
    receiver: Receiver
    ports: dict[str, int]

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.api.port}/v1"

    def client(self, key: str, **more: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.base, api_key=key, **more)


@pytest.fixture(scope="module")
def hooks(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hooks]:
    folder = tmp_path_factory.mktemp("hooks")
    ports = {name: free_port() for name in ("python", "js", "listen")}
    with Receiver(folder) as receiver:
        allowed = ",".join(map(str, [receiver.port, *ports.values()]))
        with running(folder, **{**receiver.settings(), "webhook_allow_ports": allowed}) as stack:
            stack.pacer()
            stack.worker()
            stack.sender()
            with serving(folder / "api.log", **stack.environment()) as api:
                yield Hooks(stack, api, receiver, ports)


def arrived(hooks: Hooks, path: str, count: int = 1) -> Got:
    """The last of this number of deliveries at a path."""
    return hooks.receiver.wait_got(count, path)[-1]


def node(program: str, **params: Any) -> Any:
    """The JSON that a Node.js program prints."""
    node_js = installed()
    run = subprocess.run(
        [node_js.program, str(HERE / program), json.dumps(params)], env=node_js.environment, cwd=HERE, capture_output=True, text=True,
        timeout=60, preexec_fn=die_with_parent, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_python_sdk_manages_endpoints(hooks: Hooks, key: str) -> None:
    webhooks = hooks.client(key).webhooks
    types: Any = ["job.succeeded"]
    endpoint = webhooks.create(name="first", url=hooks.receiver.url("/python"), event_types=types)
    second = webhooks.create(name="second", url=hooks.receiver.url("/python", status=418), event_types=types)

    assert ["second", "first"] == [listed.name for listed in webhooks.list(limit=1)]
    assert endpoint.id == webhooks.retrieve(endpoint.id).id
    assert endpoint.signing_secret_hint and endpoint.signing_secret_hint[7:] in endpoint.signing_secret
    assert "third" == webhooks.update(endpoint.id, name="third").name
    rotated = webhooks.rotate_secret(endpoint.id)
    assert rotated.signing_secret != endpoint.signing_secret
    tested: Any = webhooks.test(endpoint.id, event_type=types[0])
    assert (200, True, "job.succeeded") == (tested.status_code, tested.success, tested.event_type)
    refused: Any = webhooks.test(second.id, event_type=types[0])
    assert 418 == refused.status_code
    assert "job.started" in webhooks.event_types.list().data
    assert webhooks.delete(endpoint.id).deleted
    with pytest.raises(openai.NotFoundError):
        webhooks.retrieve(endpoint.id)
    with pytest.raises(openai.BadRequestError, match="public internet"):
        webhooks.create(name="inside", url="https://169.254.169.254/latest", event_types=types)


def test_node_sdk_manages_endpoints(hooks: Hooks, key: str) -> None:
    seen = node("webhooks.mjs", base=hooks.base, key=key, url=hooks.receiver.url("/node"))

    expected = {
        "secrets": True,
        "types": ["job.failed", "job.expired"],
        "status": 200,
        "listed": ["from node"],
        "known": True,
        "deleted": True,
    }
    assert expected == seen


@pytest.mark.parametrize("kind", ["job.succeeded", "job.failed", "job.started", "webhook_endpoint.disabled"])
def test_every_library_verifies_every_event_and_refuses_a_wrong_secret(hooks: Hooks, key: str, kind: str) -> None:
    client, path = hooks.client(key), f"/verify/{kind}"
    types: Any = [kind]
    endpoint = client.webhooks.create(name="x", url=hooks.receiver.url(path), event_types=types)
    client.webhooks.test(endpoint.id, event_type=types[0])
    got = arrived(hooks, path)
    event = got.event
    expected = [event["type"], event["data"]["id"]]

    assert kind == event["type"]
    unwrapped: Any = client.webhooks.unwrap(got.body, got.headers, secret=endpoint.signing_secret)
    assert expected == [unwrapped.type, unwrapped.data.id]
    unwrapped = openai.AsyncOpenAI(api_key="none").webhooks.unwrap(got.body, got.headers, secret=endpoint.signing_secret)
    assert expected == [unwrapped.type, unwrapped.data.id]
    assert event == standardwebhooks.Webhook(endpoint.signing_secret).verify(got.body, got.headers)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(got.body, got.headers, secret=OTHER_SECRET)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(got.body.replace("evt_", "evt-"), got.headers, secret=endpoint.signing_secret)
    delivery = {"base": hooks.base, "key": key, "body": got.body, "headers": got.headers}
    assert {"openai": expected, "standardwebhooks": expected, "svix": expected} == node(
        "webhooks.mjs", secret=endpoint.signing_secret, **delivery
    )
    refused = node("webhooks.mjs", secret=OTHER_SECRET, **delivery)
    assert {"InvalidWebhookSignatureError", "WebhookVerificationError"} == set(refused.values())


def test_webhook_contains_the_result_when_included(hooks: Hooks, key: str) -> None:
    client = hooks.client(key)
    types: Any = ["job.succeeded"]
    endpoint = client.webhooks.create(name="whole", url=hooks.receiver.url("/whole"), event_types=types, extra_body={"include": ["result"]})
    answer = client.chat.completions.create(**chat("the whole of it"))
    got = arrived(hooks, "/whole")

    unwrapped: Any = client.webhooks.unwrap(got.body, got.headers, secret=endpoint.signing_secret)
    assert answer.to_dict() == unwrapped.data.result
    job = client.get(f"/jobs/{unwrapped.data.id}", cast_to=dict[str, Any])
    assert job["result"] == got.event["data"]["result"] and "succeeded" == job["status"]


def test_webhook_url_of_one_job_is_signed_with_the_keys_secret(hooks: Hooks, key: str) -> None:
    client = hooks.client(key)
    secret = client.get("/webhook_secret", cast_to=dict[str, Any])["signing_secret"]
    options: list[dict[str, Any]] = [
        {"extra_headers": {"X-Nowserving-Webhook-Url": hooks.receiver.url("/own")}},
        {"extra_body": {"nowserving": {"webhook_url": hooks.receiver.url("/own")}}},
    ]
    for option in options:
        client.chat.completions.create(**chat("hello"), **option)
    client.images.generate(model="gpt-image-1-mini", prompt="hello", **options[1])
    asyncio.run(openai.AsyncOpenAI(base_url=hooks.base, api_key=key).chat.completions.create(**chat("hello"), **options[0]))
    got = hooks.receiver.wait_got(4, "/own")

    assert {"job.succeeded"} == {client.webhooks.unwrap(delivery.body, delivery.headers, secret=secret).type for delivery in got}
    assert 4 == len({delivery.event["data"]["id"] for delivery in got})


def documented_receiver(language: str) -> str:
    """The only receiver in this language in the webhook guide."""
    (block,) = [
        block for block in re.findall(rf"^```{language}\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL) if "receiver." in block
    ]
    return str(block)


@contextmanager
def running_receiver(language: str, folder: Path, *, port: int, secret: str) -> Iterator[subprocess.Popen[str]]:
    """Run the receiver of the documentation unchanged."""
    node_js = installed()
    (folder / "node_modules").symlink_to(HERE / "node_modules")
    name, argv = {"python": ("receiver.py", [sys.executable]), "js": ("receiver.mjs", [node_js.program])}[language]
    (folder / name).write_text(documented_receiver(language))
    process = subprocess.Popen(
        [*argv, str(folder / name)], env={**node_js.environment, "PORT": str(port), "WEBHOOK_SECRET": secret}, stdout=subprocess.PIPE,
        text=True, preexec_fn=die_with_parent,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("language", ["python", "js"])
def test_documented_receiver_accepts_only_our_signatures(hooks: Hooks, key: str, tmp_path: Path, language: str) -> None:
    client, port = hooks.client(key), hooks.ports[language]
    types: Any = ["job.succeeded"]
    endpoint = client.webhooks.create(name="docs", url=f"http://127.0.0.1:{port}/", event_types=types)
    with running_receiver(language, tmp_path, port=port, secret=endpoint.signing_secret) as process:
        tested: Any = until(lambda: _test_endpoint(client, endpoint.id), what="the receiver listens")
        assert 204 == tested.status_code
        job = client.chat.completions.with_raw_response.create(**chat("for the documentation")).headers["x-nowserving-job-id"]
        assert process.stdout
        assert "job.succeeded job_" + "0" * 32 == process.stdout.readline().strip()
        assert f"job.succeeded {job}" == process.stdout.readline().strip()
        client.webhooks.rotate_secret(endpoint.id)
        rotated: Any = client.webhooks.test(endpoint.id, event_type=types[0])
        assert 401 == rotated.status_code


def _test_endpoint(client: openai.OpenAI, endpoint_id: str) -> object:
    kind: Any = "job.succeeded"
    with suppress(openai.InternalServerError):
        return client.webhooks.test(endpoint_id, event_type=kind)
    return None


def restore_sigint() -> None:
    """Restore SIGINT: a shell starts background processes with SIGINT ignored, and their children inherit this."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    die_with_parent()


def test_webhooks_listen_prints_events_on_a_local_port(hooks: Hooks, key: str) -> None:
    env = {**hooks.stack.environment(), "NOWSERVING_URL": hooks.base.removesuffix("/v1"), "NOWSERVING_KEY": key}
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "webhooks", "listen", "--port", str(hooks.ports["listen"]), "--test"], env=env,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=restore_sigint,
    )  # fmt: skip
    try:
        assert process.stdout and process.stderr
        assert "listening on" in process.stderr.readline()
        sample = process.stdout.readline()
        own = {"X-Nowserving-Webhook-Url": f"http://127.0.0.1:{hooks.ports['listen']}/own"}
        hooks.client(key).chat.completions.create(**chat("for the developer"), extra_headers=own)
        events = [process.stdout.readline() for _ in range(3)]
        assert 1 == len(list(hooks.client(key).webhooks.list()))
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(20)

    assert sample.startswith("job.succeeded") and sample.strip().endswith("signature right")
    assert ["job.started", "job.succeeded", "job.succeeded"] == sorted(line.split()[0] for line in events)
    assert all(line.strip().endswith("signature right") for line in events)
    assert 0 == code
    assert [] == list(hooks.client(key).webhooks.list())


def test_webhooks_listen_names_the_setting_that_allows_its_url(hooks: Hooks, key: str) -> None:
    env = {**hooks.stack.environment(), "NOWSERVING_URL": hooks.base.removesuffix("/v1"), "NOWSERVING_KEY": key}
    run = subprocess.run(
        [sys.executable, "-m", "cli.main", "webhooks", "listen", "--port", str(free_port())], env=env, capture_output=True, text=True,
        timeout=30, check=False,
    )  # fmt: skip

    assert 1 == run.returncode
    assert "NOWSERVING_WEBHOOK_ALLOW_PORTS=" in run.stderr
