"""`nowserving submit`, `wait`, `jobs` and `cancel`: a caller's commands, over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from cli import terminal
from cli.http_client import Client
from models.config.settings import settings

Command = TypeVar("Command", bound=Callable[..., None])
MODELS = {False: "gpt-4o-mini", True: "gpt-image-1-mini"}
WAIT_S = 20
ENDED = ("succeeded", "failed", "cancelled", "expired")


def with_client(command: Command) -> Command:
    """Adds the API's URL and the key, read from the environment: a key on the command line would be public."""
    command = click.option("--url", envvar="NOWSERVING_URL", help="URL of the API (NOWSERVING_URL); default: this machine.")(command)
    return click.option("--key", envvar=("NOWSERVING_KEY", "OPENAI_API_KEY"), hidden=True)(command)


@click.command()
@click.argument("prompt")
@click.option("--model", help="Default: gpt-4o-mini, for images gpt-image-1-mini.")
@click.option("--user", help="The user: users share the queue fairly.")
@click.option("--priority", type=click.Choice(("low", "normal", "high")), default="normal")
@click.option("--image", is_flag=True, help="Request an image.")
@click.option("--wait", "waits", is_flag=True, help="Wait for the answer and print it.")
@with_client
@terminal.json_option
def submit(
    *,
    prompt: str,
    model: str | None,
    user: str | None,
    priority: str,
    image: bool,
    waits: bool,
    url: str | None,
    key: str | None,
    as_json: bool,
) -> None:
    """Submit PROMPT as a job, with the key in NOWSERVING_KEY or OPENAI_API_KEY."""
    params: dict[str, Any] = {"prompt": prompt} if image else {"messages": [{"role": "user", "content": prompt}]}
    job_request: dict[str, Any] = {
        "endpoint": "/v1/images/generations" if image else "/v1/chat/completions",
        "body": {"model": model or MODELS[image], **params},
        "priority": priority,
    }
    client = client_of(url, key)
    job = client.call("POST", "/v1/jobs", job_request | ({"user": user} if user else {}))
    _print(_wait_until_ended(client, job["id"], as_json=as_json) if waits else job, as_json=as_json)


@click.command()
@click.argument("job_id")
@with_client
@terminal.json_option
def wait(*, job_id: str, url: str | None, key: str | None, as_json: bool) -> None:
    """Wait for a job and print its answer. Fails if the job fails."""
    _print(_wait_until_ended(client_of(url, key), job_id, as_json=as_json), as_json=as_json)


@click.command()
@click.option("--status", type=click.Choice(("queued", "running", *ENDED)), help="Only jobs in this state.")
@with_client
@terminal.json_option
def jobs(*, status: str | None, url: str | None, key: str | None, as_json: bool) -> None:
    """List the newest hundred jobs of this key."""
    shown = client_of(url, key).call("GET", "/v1/jobs", {"limit": 100, **({"status": status} if status else {})})["data"]
    rows = shown if as_json else [{**job, "position": (job["queue"] or {}).get("position")} for job in shown]
    terminal.table(rows, columns=("id", "status", "position", "model", "user", "priority"), as_json=as_json)


@click.command()
@click.argument("job_id")
@with_client
@terminal.json_option
def cancel(*, job_id: str, url: str | None, key: str | None, as_json: bool) -> None:
    """Cancel a job, waiting or running."""
    _print(client_of(url, key).call("POST", f"/v1/jobs/{job_id}/cancel"), as_json=as_json)


def client_of(url: str | None, key: str | None) -> Client:
    """Returns a client of the API. Raises ClickException without a key."""
    if not key:
        raise click.ClickException("set NOWSERVING_KEY or OPENAI_API_KEY to your key")
    return Client(url or f"http://127.0.0.1:{settings().port}", key)


def _wait_until_ended(client: Client, job_id: str, *, as_json: bool) -> dict[str, Any]:
    printed = None
    while True:
        job = client.wait(job_id, wait_s=WAIT_S)
        if job["status"] in ENDED:
            return job
        state = _state(job)
        if state != printed and not as_json:
            click.echo(state, err=True)
        printed = state


def _state(job: dict[str, Any]) -> str:
    queue = job["queue"]
    if not queue:
        return f"{job['id']} {job['status']}"
    eta = "" if queue["eta_s"] is None else f", about {queue['eta_s']:g} s"
    return f"{job['id']} number {queue['position']} in line{eta}" + (f" ({queue['blocked_by']})" if queue["blocked_by"] else "")


def _print(job: dict[str, Any], *, as_json: bool) -> None:
    """Prints the answer if there is one, otherwise the job's state. Exit code 1 for a failed or expired job."""
    if as_json:
        terminal.show(job, as_json=True)
    elif job["status"] == "succeeded":
        click.echo(_answer(job))
    elif job["status"] not in ("failed", "expired"):
        click.echo(_state(job))
    if job["status"] in ("failed", "expired"):
        raise click.ClickException(f"{job['id']} {job['status']}: {(job['error'] or {}).get('message', 'no reason was given')}")


def _answer(job: dict[str, Any]) -> str:
    if job["artifacts"]:
        return "\n".join(artifact["url"] for artifact in job["artifacts"])
    try:
        return str(job["result"]["choices"][0]["message"]["content"])
    except (KeyError, IndexError, TypeError):
        return str(job["result"])
