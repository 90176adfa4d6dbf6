"""Public ids: a prefix for the kind of object, and the 32 hex digits of a UUID."""

from __future__ import annotations

from uuid import UUID

from models.platform.errors import NotFound


def format_id(prefix: str, number: UUID) -> str:
    """The public id: the prefix, for example `job_`, and the digits."""
    return prefix + number.hex


def parse_id(prefix: str, text: str, *, otherwise: str) -> UUID:
    """The UUID of a public id. Raises NotFound with the message `otherwise` for anything else, as for foreign and deleted ids."""
    digits = text.removeprefix(prefix)
    if not text.startswith(prefix) or len(digits) != 32 or not digits.isascii() or not digits.isalnum():
        raise NotFound(otherwise)
    try:
        return UUID(hex=digits)
    except ValueError:
        raise NotFound(otherwise) from None
