"""`nowserving health …`: the health check of a container, run beside the program that it checks."""

from __future__ import annotations

from http.client import HTTPConnection, HTTPException

import click

from models.config.settings import settings

TIMEOUT_S = 5.0


@click.command()
@click.argument("part", type=click.Choice(["api", "pacer", "worker", "work"]))
def health(part: str) -> None:
    """Exit with 0 if this program is healthy; `work`: if jobs are processed anywhere (the API's /healthz/deep)."""
    port, path = {
        "api": (settings().port, "/readyz"),
        "work": (settings().port, "/healthz/deep"),
        "pacer": (settings().pacer_metrics_port, "/healthz"),
        "worker": (settings().worker_metrics_port, "/healthz"),
    }[part]
    if not port:
        raise click.ClickException(f"set NOWSERVING_{part.upper()}_METRICS_PORT: the {part} serves its health check there")
    connection = HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        text = response.read().decode(errors="replace").strip()
    except (OSError, HTTPException) as error:
        raise click.ClickException(f"the {part} does not respond: {type(error).__name__}") from None
    if response.status != 200:
        raise click.ClickException(text)
    click.echo(text)
