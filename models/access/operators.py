"""Operators: who may look (`read`) and who may act (`write`), known by a token that is stored nowhere."""

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
    """Who acts, as the audit log names them."""

    name: str
    role: Role


ROOT = Operator("root", "write")
COMMAND_LINE = Operator("cli", "write")
# To whom this process showed metrics.
_metrics_tokens: set[str] = set()


def is_operator_token(token: str) -> bool:
    """Whether this is an operator's token, by its form, or NOWSERVING_OPS_TOKEN: no key of a caller, never sent upstream."""
    return token.startswith(token_forms.OPERATOR) or _is_root(token)


def authenticate(session: Transaction, token: str) -> Operator:
    """The operator with this token. Raises Unauthorised for any other, callers' keys too, and says how to make one where none is."""
    if _is_root(token):
        return ROOT
    row = None
    if 1 <= len(token) <= MAX_TOKEN_CHARS and token.isascii():
        # By a keyed hash: what can be timed says nothing of the token.
        row = session.execute(_FIND, {"prints": crypto.fingerprints(token.encode())}).one_or_none()
    if row is None:
        raise Unauthorised(UNKNOWN_TOKEN if _any_exists(session) else NO_OPERATOR_YET)
    return Operator(row.name, row.role)


def may_read_metrics(token: str) -> bool:
    """Whether /metrics is shown to who presents this: to every operator, and to everybody as long as there is no operator at all.

    Without Postgres, whose absence metrics tell of, to whom this process showed them before.
    """
    if _is_root(token):
        return True
    try:
        with db.begin() as session:
            is_open = _may_read_metrics(session, token)
    except Unavailable:
        return token in _metrics_tokens
    if len(_metrics_tokens) >= MAX_METRICS_TOKENS:
        _metrics_tokens.clear()
    (_metrics_tokens.add if is_open else _metrics_tokens.discard)(token)
    return is_open


def _is_root(token: str) -> bool:
    root = settings().ops_token.get_secret_value()
    return bool(root) and hmac.compare_digest(root.encode(), token.encode("utf-8", "surrogatepass"))


def _may_read_metrics(session: Transaction, token: str) -> bool:
    try:
        return bool(authenticate(session, token))
    except Unauthorised:
        return not _any_exists(session)


def _any_exists(session: Transaction) -> bool:
    return bool(settings().ops_token.get_secret_value() or session.execute(_ANY).scalar_one())


def create(session: Transaction, name: str, *, role: Role) -> str:
    """The token of a new operator, shown this once. Raises Invalid where the name is taken or reserved."""
    if not 1 <= len(name) <= 64 or not name.isprintable() or name in (ROOT.name, COMMAND_LINE.name):
        raise Invalid(f"An operator's name is 1 to 64 printable characters, and not {ROOT.name} or {COMMAND_LINE.name}.", param="name")
    token = token_forms.OPERATOR + secrets.token_urlsafe(32)
    made = session.execute(_CREATE, {"name": name, "role": role, "print": crypto.fingerprints(token.encode())[0]})
    if made.one_or_none() is None:
        raise Invalid(f"There is, or was, an operator named {name!r}: names stand in the audit log and are used once.", param="name")
    return token


def revoke(session: Transaction, name: str) -> None:
    """The token opens nothing from now on. Raises NotFound."""
    if session.execute(_REVOKE, {"name": name}).one_or_none() is None:
        raise NotFound(f"There is no operator named {name!r}, or no more. `nowserving operators list` shows them all.")


def list_all(session: Transaction) -> Sequence[Any]:
    """Every operator. Rows: id, name, role, created_at, revoked_at."""
    return session.execute(text("SELECT id, name, role, created_at, revoked_at FROM operator ORDER BY id")).all()


_FIND = text("SELECT name, role FROM operator WHERE fingerprint = ANY(:prints) AND revoked_at IS NULL")
_ANY = text("SELECT EXISTS (SELECT FROM operator WHERE revoked_at IS NULL)")
_CREATE = text("""
    INSERT INTO operator (name, role, fingerprint) VALUES (:name, :role, :print) ON CONFLICT (name) DO NOTHING RETURNING id
""")
_REVOKE = text("UPDATE operator SET revoked_at = now() WHERE name = :name AND revoked_at IS NULL RETURNING id")
