"""`nowserving webhooks …`: prints deliveries, for developers of a receiver."""

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
MAX_BODY_BYTES = 4 * 1024 * 1024
HINT = (
    "nowserving does not call this machine unless it is configured to. Start it with NOWSERVING_WEBHOOK_ALLOW_HTTP=true "
    "NOWSERVING_WEBHOOK_ALLOW_NETWORKS=127.0.0.0/8 NOWSERVING_WEBHOOK_ALLOW_PORTS={port}"
)


@click.group()
def webhooks() -> None:
    """Webhooks: events sent to a receiver."""


@webhooks.command()
@click.option("--port", type=click.IntRange(1, 65_535), default=8765, show_default=True, help="Port of this machine.")
@click.option("--event", "events", multiple=True, type=click.Choice(list(EventType)), help="Only these event types; default: all.")
@click.option("--result", "include_result", is_flag=True, help="Include the whole job in each event.")
@click.option("--status", type=click.IntRange(200, 599), default=204, help="Status of the response, to see the effect of a failure.")
@click.option("--test", "tests", is_flag=True, help="Request a sample event first.")
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

    Creates a webhook endpoint for a port of this machine, where nowserving must run too, and deletes it at the end.
    """
    client = client_of(url, key)
    try:
        server = _Server((HOST, port), _Handler)
    except OSError as error:
        raise click.ClickException(f"port {port} cannot be used ({error.strerror}): choose another with --port") from None
    params = {
        "name": "nowserving webhooks listen",
        "url": f"http://{HOST}:{port}/",
        "event_types": list(events or EventType),
        "include": ["result"] if include_result else [],
    }
    with server:
        endpoint = _create(client, params, port=port)
        # A job's own webhook_url may point here too; it is signed with the key's secret.
        secrets = (endpoint["signing_secret"], client.call("GET", "/v1/webhook_secret")["signing_secret"])
        server.webhooks, server.status, server.as_json = [Webhook(secret) for secret in secrets], status, as_json
        try:
            click.echo(f"listening on {HOST}:{port} as {endpoint['id']}; Ctrl-C ends it", err=True)
            if tests:
                sample = {"event_type": params["event_types"][0]}
                threading.Thread(target=_send_sample, args=(client, endpoint["id"], sample), daemon=True).start()
            with suppress(KeyboardInterrupt):
                server.serve_forever()
        finally:
            client.call("DELETE", f"/v1/webhook_endpoints/{endpoint['id']}")


class _Server(ThreadingHTTPServer):
    """Verifies deliveries and responds with `status`. webhooks: one verifier per secret."""

    daemon_threads = True
    webhooks: list[Webhook]
    status: int
    as_json: bool
    lock = threading.Lock()


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 20

    def do_POST(self) -> None:
        """Receives one delivery."""
        body = self.rfile.read(min(int(self.headers.get("Content-Length") or 0), MAX_BODY_BYTES))
        headers = {name.lower(): value for name, value in self.headers.items()}
        failure = _verify(self.server.webhooks, body, headers)
        with self.server.lock:
            _print(headers.get("webhook-id", ""), body, failure=failure, as_json=self.server.as_json)
        self.send_response(401 if failure else self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Prints nothing: each delivery is printed already."""


def _create(client: Client, params: dict[str, Any], *, port: int) -> dict[str, Any]:
    try:
        return client.call("POST", "/v1/webhook_endpoints", params)
    except click.ClickException as error:
        raise click.ClickException(f"{error.message}\n{HINT.format(port=port)}" if "`url`" in error.message else error.message) from None


def _send_sample(client: Client, endpoint: str, sample: dict[str, str]) -> None:
    try:
        client.call("POST", f"/v1/webhook_endpoints/{endpoint}/test", sample)
    except click.ClickException as error:
        click.echo(f"the sample: {error.message}", err=True)


def _verify(webhooks: list[Webhook], body: bytes, headers: dict[str, str]) -> str:
    """Returns the reason why no secret verifies the signature; empty if one does."""
    failure = ""
    for webhook in webhooks:
        try:
            webhook.verify(body, headers)
        except (WebhookVerificationError, ValueError) as error:
            failure = str(error)
        else:
            return ""
    return failure


def _print(webhook_id: str, body: bytes, *, failure: str, as_json: bool) -> None:
    try:
        event = json.loads(body)
        kind, subject = str(event["type"]), str(event["data"]["id"])
    except (ValueError, KeyError, TypeError):
        event, kind, subject = None, "not an event", ""
    verdict = f"SIGNATURE WRONG ({failure})" if failure else "signature right"
    if as_json:
        click.echo(json.dumps({"webhook_id": webhook_id, "verified": not failure, "event": event}))
    else:
        click.echo(f"{kind:<24} {subject}  {webhook_id}  {verdict}")
