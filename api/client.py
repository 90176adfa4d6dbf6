"""A caller of the API in the standard library alone, for the command line."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any

import click

TIMEOUT_S = 60


@dataclass(frozen=True)
class Client:
    """Speaks to the API at `url` with `key`, which is never shown."""

    url: str
    key: str = field(repr=False)

    def call(self, method: str, path: str, fields: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The answer, parsed. fields: the query of a GET, the body of a POST. Raises ClickException, in one line."""
        query = f"?{urllib.parse.urlencode(fields)}" if fields and method == "GET" else ""
        body = json.dumps(fields).encode() if fields and method == "POST" else None
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        try:
            asked = urllib.request.Request(self.url.rstrip("/") + path + query, body, headers, method=method)
            with urllib.request.urlopen(asked, timeout=TIMEOUT_S) as answer:
                made: dict[str, Any] = json.load(answer)
                return made
        except urllib.error.HTTPError as error:
            raise click.ClickException(_reason(error)) from None
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or type(error).__name__
            raise click.ClickException(
                f"{self.url} cannot be used ({reason}): is `nowserving up` running there? See NOWSERVING_URL."
            ) from None


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return f"{json.load(error)['error']['message']} ({error.code})"
    except (ValueError, KeyError, TypeError):
        return f"the server answered {error.code}"
