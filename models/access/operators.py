"""Operators and their tokens. The role `read` may list, `write` may also act. Only a fingerprint of a token is stored."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import text

from models.config.settings import settings
from models.database import db
from models.database.db import Transaction
from models.platform import crypto, token_forms
from models.platform.errors import Invalid, NotFound, Unauthorised, Unavailable

MAX_TOKEN_CHARS = 256
MAX_METRICS_TOKENS = 100
Role = Literal["read", "write"]
NO_OPERATOR_YET = (
    "There is no operator yet. On the server, `nowserving operators create NAME --role write` makes a token, or set NOWSERVING_OPS_TOKEN."
)
UNKNOWN_TOKEN = (
    "No operator's token was sent. Callers' keys open nothing here; `nowserving operators create NAME --role read` makes a token."
)


@dataclass(frozen=True)
class Operator:
    """An operator, as the audit log names it."""

    name: str
    role: Role


ROOT = Operator("root", "write")
COMMAND_LINE = Operator("cli", "write")
# Tokens that this process accepted for /metrics.
_metrics_tokens: set[str] = set()


def is_operator_token(token: str) -> bool:
    """Whether this is an operator's token, by its prefix, or NOWSERVING_OPS_TOKEN. Never a key of a caller."""
    return token.startswith(token_forms.OPERATOR) or _is_root(token)


_FIND = text("SELECT name, role FROM operator WHERE fingerprint = ANY(:prints) AND revoked_at IS NULL")


def authenticate(session: Transaction, token: str) -> Operator:
    """The operator with this token. Raises Unauthorised for any other token; without any operator, the message tells how to add one."""
    if _is_root(token):
        return ROOT
    row = None
    if 1 <= len(token) <= MAX_TOKEN_CHARS and token.isascii():
        # The lookup is by a keyed hash, so its timing reveals nothing about the token.
        row = session.execute(_FIND, {"prints": crypto.fingerprints(token.encode())}).one_or_none()
    if row is None:
        raise Unauthorised(UNKNOWN_TOKEN if _any_exists(session) else NO_OPERATOR_YET)
    return Operator(row.name, row.role)


def may_read_metrics(token: str) -> bool:
    """Whether this token may read /metrics: every operator's may, and any token while no operator exists.

    While Postgres is unavailable, which metrics report, the tokens that this process accepted before may.
    """
    if _is_root(token):
        return True
    try:
        with db.begin() as session:
            may_read = _may_read_metrics(session, token)
    except Unavailable:
        return token in _metrics_tokens
    if len(_metrics_tokens) >= MAX_METRICS_TOKENS:
        _metrics_tokens.clear()
    (_metrics_tokens.add if may_read else _metrics_tokens.discard)(token)
    return may_read


def _is_root(token: str) -> bool:
    root = settings().ops_token.get_secret_value()
    return bool(root) and hmac.compare_digest(root.encode(), token.encode("utf-8", "surrogatepass"))


def _may_read_metrics(session: Transaction, token: str) -> bool:
    try:
        return bool(authenticate(session, token))
    except Unauthorised:
        return not _any_exists(session)


_ANY = text("SELECT EXISTS (SELECT FROM operator WHERE revoked_at IS NULL)")


def _any_exists(session: Transaction) -> bool:
    return bool(settings().ops_token.get_secret_value() or session.execute(_ANY).scalar_one())


_CREATE = text("""
    INSERT INTO operator (name, role, fingerprint) VALUES (:name, :role, :print) ON CONFLICT (name) DO NOTHING RETURNING id
""")


def create(session: Transaction, name: str, *, role: Role) -> str:
    """Creates an operator and returns its token, which is stored nowhere. Raises Invalid if the name is taken or reserved."""
    if not 1 <= len(name) <= 64 or not name.isprintable() or name in (ROOT.name, COMMAND_LINE.name):
        raise Invalid(f"An operator's name is 1 to 64 printable characters, and not {ROOT.name} or {COMMAND_LINE.name}.", param="name")
    token = token_forms.OPERATOR + secrets.token_urlsafe(32)
    result = session.execute(_CREATE, {"name": name, "role": role, "print": crypto.fingerprints(token.encode())[0]})
    if result.one_or_none() is None:
        raise Invalid(f"There is, or was, an operator named {name!r}: names stand in the audit log and are used once.", param="name")
    return token


_REVOKE = text("UPDATE operator SET revoked_at = now() WHERE name = :name AND revoked_at IS NULL RETURNING id")


def revoke(session: Transaction, name: str) -> None:
    """Revokes the operator's token. Raises NotFound."""
    if session.execute(_REVOKE, {"name": name}).one_or_none() is None:
        raise NotFound(f"There is no operator named {name!r}, or no more. `nowserving operators list` shows them all.")


def list_all(session: Transaction) -> Sequence[Any]:
    """Every operator. Rows: id, name, role, created_at, revoked_at."""
    return session.execute(text("SELECT id, name, role, created_at, revoked_at FROM operator ORDER BY id")).all()
