"""HTTP client of the API for the command line, from the standard library alone."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any

import click

TIMEOUT_S = 60


@dataclass(frozen=True)
class Client:
    """Client of the API at `url`. key: never shown. sleep: replaceable for tests."""

    url: str
    key: str = field(repr=False)
    sleep: Callable[[float], None] = time.sleep

    def wait(self, job_id: str, *, wait_s: float) -> dict[str, Any]:
        """Returns the job when it ends, or after this time. A server without a free waiter responds at once; then sleeps Retry-After."""
        job, retry_after_s = self._send("GET", f"/v1/jobs/{job_id}", {"wait": wait_s})
        if retry_after_s is not None:
            self.sleep(retry_after_s)
        return job

    def call(self, method: str, path: str, fields: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Returns the parsed response. fields: the query of a GET, the body of a POST. Raises ClickException with one line."""
        return self._send(method, path, fields)[0]

    def _send(self, method: str, path: str, fields: Mapping[str, Any] | None) -> tuple[dict[str, Any], float | None]:
        query = f"?{urllib.parse.urlencode(fields)}" if fields and method == "GET" else ""
        body = json.dumps(fields).encode() if fields and method == "POST" else None
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        try:
            request = urllib.request.Request(self.url.rstrip("/") + path + query, body, headers, method=method)
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                retry_after_s = response.headers.get("Retry-After")
                return json.load(response), None if retry_after_s is None else float(retry_after_s)
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
        return f"the server responded with status {error.code}"
