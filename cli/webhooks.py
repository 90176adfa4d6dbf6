"""`nowserving webhooks …`: for developers of a receiver."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import click
from standardwebhooks import Webhook, WebhookVerificationError

from cli import terminal
from cli.caller import client_of, with_client
from cli.http_client import Client
from models.webhooks.outbox import EventType

HOST = "127.0.0.1"
BODY_MOST = 4 * 1024 * 1024
ALLOW = (
    "nowserving does not call this machine unless it is allowed to. Start it with NOWSERVING_WEBHOOK_ALLOW_HTTP=true "
    "NOWSERVING_WEBHOOK_ALLOW_NETWORKS=127.0.0.0/8 NOWSERVING_WEBHOOK_ALLOW_PORTS={port}"
)


@click.group()
def webhooks() -> None:
    """Events that are pushed."""


@webhooks.command()
@click.option("--port", type=click.IntRange(1, 65_535), default=8765, show_default=True, help="Of this machine.")
@click.option("--event", "events", multiple=True, type=click.Choice(list(EventType)), help="Only these; default: all.")
@click.option("--result", "include_result", is_flag=True, help="With the whole job in each event.")
@click.option("--status", type=click.IntRange(200, 599), default=204, help="What to answer, to see what happens then.")
@click.option("--test", "tests", is_flag=True, help="Ask for a sample first.")
@with_client
@terminal.json_option
def listen(
    *,
    port: int,
    events: tuple[str, ...],
    include_result: bool,
    status: int,
    tests: bool,
    url: str | None,
    key: str | None,
    as_json: bool,
) -> None:
    """Print the events of this key as they arrive, and whether their signatures are right, until Ctrl-C.

    Makes a webhook endpoint for a port of this machine, where nowserving has to run too, and deletes it at the end.
    """
    client = client_of(url, key)
    try:
        server = _Server((HOST, port), _Handler)
    except OSError as error:
        raise click.ClickException(f"port {port} cannot be used ({error.strerror}): choose another with --port") from None
    wanted = {
        "name": "nowserving webhooks listen",
        "url": f"http://{HOST}:{port}/",
        "event_types": list(events or EventType),
        "include": ["result"] if include_result else [],
    }
    with server:
        made = _make(client, wanted, port=port)
        # A job's own webhook_url may lead here too, and is signed with the secret of the key.
        secrets = (made["signing_secret"], client.call("GET", "/v1/webhook_secret")["signing_secret"])
        server.webhooks, server.status, server.as_json = [Webhook(each) for each in secrets], status, as_json
        try:
            click.echo(f"listening on {HOST}:{port} as {made['id']}; Ctrl-C ends it", err=True)
            if tests:
                sample = {"event_type": wanted["event_types"][0]}
                threading.Thread(target=_test, args=(client, made["id"], sample), daemon=True).start()
            with suppress(KeyboardInterrupt):
                server.serve_forever()
        finally:
            client.call("DELETE", f"/v1/webhook_endpoints/{made['id']}")


class _Server(ThreadingHTTPServer):
    """One that knows how to verify, and what to answer. webhooks: one of them has signed."""

    daemon_threads = True
    webhooks: list[Webhook]
    status: int
    as_json: bool
    lock = threading.Lock()


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 20

    def do_POST(self) -> None:
        """One delivery."""
        body = self.rfile.read(min(int(self.headers.get("Content-Length") or 0), BODY_MOST))
        headers = {name.lower(): value for name, value in self.headers.items()}
        why = _why_not(self.server.webhooks, body, headers)
        with self.server.lock:
            _print(headers.get("webhook-id", ""), body, why=why, as_json=self.server.as_json)
        self.send_response(401 if why else self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """What arrives is printed already."""


def _make(client: Client, wanted: dict[str, Any], *, port: int) -> dict[str, Any]:
    try:
        return client.call("POST", "/v1/webhook_endpoints", wanted)
    except click.ClickException as error:
        raise click.ClickException(f"{error.message}\n{ALLOW.format(port=port)}" if "`url`" in error.message else error.message) from None


def _test(client: Client, endpoint: str, sample: dict[str, str]) -> None:
    try:
        client.call("POST", f"/v1/webhook_endpoints/{endpoint}/test", sample)
    except click.ClickException as error:
        click.echo(f"the sample: {error.message}", err=True)


def _why_not(webhooks: list[Webhook], body: bytes, headers: dict[str, str]) -> str:
    """Why none of them has signed this; empty: one has."""
    why = ""
    for webhook in webhooks:
        try:
            webhook.verify(body, headers)
        except (WebhookVerificationError, ValueError) as error:
            why = str(error)
        else:
            return ""
    return why


def _print(number: str, body: bytes, *, why: str, as_json: bool) -> None:
    try:
        event = json.loads(body)
        kind, of = str(event["type"]), str(event["data"]["id"])
    except (ValueError, KeyError, TypeError):
        event, kind, of = None, "not an event", ""
    verdict = f"SIGNATURE WRONG ({why})" if why else "signature right"
    if as_json:
        click.echo(json.dumps({"webhook_id": number, "verified": not why, "event": event}))
    else:
        click.echo(f"{kind:<24} {of}  {number}  {verdict}")
