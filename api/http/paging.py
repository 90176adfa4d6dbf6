"""Lists, a page at a time: what `?limit=` and `?after=` say, and the list as its caller sees it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from flask import Response, request

from api.http import render
from models.platform.errors import Invalid
from models.platform.wire import JsonObject

PAGE, PAGE_MOST = 20, 100
Id = TypeVar("Id")


def parse_limit() -> int:
    """How many are wanted. Raises Invalid."""
    text = request.args.get("limit", str(PAGE))
    if not re.fullmatch(r"[0-9]{1,3}", text) or not 1 <= int(text) <= PAGE_MOST:
        raise Invalid(f"`limit` is a whole number from 1 to {PAGE_MOST}.", param="limit")
    return int(text)


def parse_after(parse: Callable[[str], Id]) -> Id | None:
    """The last that the caller has seen; None: it begins. Raises what `parse` raises."""
    return parse(request.args["after"]) if "after" in request.args else None


def list_response(shown: Sequence[JsonObject], *, has_more: bool) -> Response:
    """One page."""
    first, last = (shown[0]["id"], shown[-1]["id"]) if shown else (None, None)
    return render.json_response({"object": "list", "data": list(shown), "has_more": has_more, "first_id": first, "last_id": last})
