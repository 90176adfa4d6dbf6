"""The response model of one page of a list."""

from __future__ import annotations

from typing import Literal

from api.submit.responses import Answer


class Page(Answer):
    """One page of a list; subclasses add `data`."""

    object: Literal["list"]
    has_more: bool
    first_id: str | None
    last_id: str | None
