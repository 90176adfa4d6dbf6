"""Pagination: the parameters `limit` and `after` of a list, and its response."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from flask import Response, request

from api.http import render
from models.platform.errors import Invalid
from models.platform.wire import JsonObject

DEFAULT_LIMIT, MAX_LIMIT = 20, 100
Id = TypeVar("Id")


def parse_limit() -> int:
    """The number of items of a page. Raises Invalid."""
    text = request.args.get("limit", str(DEFAULT_LIMIT))
    if not re.fullmatch(r"[0-9]{1,3}", text) or not 1 <= int(text) <= MAX_LIMIT:
        raise Invalid(f"`limit` is a whole number from 1 to {MAX_LIMIT}.", param="limit")
    return int(text)


def parse_after(parse: Callable[[str], Id]) -> Id | None:
    """The id of the last item of the page before; None for the first page. Raises the errors of `parse`."""
    return parse(request.args["after"]) if "after" in request.args else None


def list_response(items: Sequence[JsonObject], *, has_more: bool) -> Response:
    """The response with one page."""
    first, last = (items[0]["id"], items[-1]["id"]) if items else (None, None)
    return render.json_response({"object": "list", "data": list(items), "has_more": has_more, "first_id": first, "last_id": last})
