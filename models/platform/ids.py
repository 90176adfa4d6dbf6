"""Ids as callers see them: a prefix that says of what, and the 32 hex digits of a UUID."""

from __future__ import annotations

from uuid import UUID

from models.platform.errors import NotFound


def format_id(prefix: str, number: UUID) -> str:
    """`job_` and the digits, for example."""
    return prefix + number.hex


def parse_id(prefix: str, said: str, *, otherwise: str) -> UUID:
    """The id behind `job_…`. Raises NotFound, with this message, for anything else: malformed, foreign and deleted ids look the same."""
    digits = said.removeprefix(prefix)
    if not said.startswith(prefix) or len(digits) != 32 or not digits.isascii() or not digits.isalnum():
        raise NotFound(otherwise)
    try:
        return UUID(hex=digits)
    except ValueError:
        raise NotFound(otherwise) from None
