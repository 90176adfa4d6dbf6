"""`nowserving health …`: what a container's health check runs, beside the program that it asks."""

from __future__ import annotations

from http.client import HTTPConnection, HTTPException

import click

from models.config.settings import settings

PATIENCE_S = 5.0


@click.command()
@click.argument("part", type=click.Choice(["api", "pacer", "worker", "work"]))
def health(part: str) -> None:
    """Exit with 0 when this part is well; `work`: when work gets done anywhere (the API's /healthz/deep)."""
    port, path = {
        "api": (settings().port, "/readyz"),
        "work": (settings().port, "/healthz/deep"),
        "pacer": (settings().pacer_metrics_port, "/healthz"),
        "worker": (settings().worker_metrics_port, "/healthz"),
    }[part]
    if not port:
        raise click.ClickException(f"set NOWSERVING_{part.upper()}_METRICS_PORT: there the {part} says how it is")
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        said = answer.read().decode(errors="replace").strip()
    except (OSError, HTTPException) as error:
        raise click.ClickException(f"the {part} does not answer: {type(error).__name__}") from None
    if answer.status != 200:
        raise click.ClickException(said)
    click.echo(said)
