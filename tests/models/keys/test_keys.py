"""Authentication: own keys are registered once, issued keys work until they are revoked, and both outlive a change of the secrets."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from models.database import db
from models.keys import keys
from models.keys.keys import Key
from models.platform import crypto
from models.platform.errors import Invalid, Unauthorised
from tests.support.queue_tools import at_once, known, query

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture(autouse=True)
def _fresh_fingerprints() -> Iterator[None]:
    keys._fingerprints.cache_clear()
    yield
    keys._fingerprints.cache_clear()


@pytest.fixture
def secrets_are(override: Callable[..., None]) -> Callable[..., None]:
    def change(*names: str) -> None:
        override(secret_keys=",".join(base64.b64encode(name.encode() * 32).decode() for name in names))
        keys._fingerprints.cache_clear()

    return change


def issue(pool: str = "shared") -> tuple[Key, str]:
    with db.begin() as session:
        keys.create_pool(session, pool)
        return keys.issue(session, name="team", pool=pool)


def test_an_own_key_is_registered_on_first_use_and_then_known() -> None:
    assert known("sk-a") == known("sk-a")
    assert known("sk-a") != known("sk-b")


def test_an_own_key_is_registered_once_by_eight_at_once() -> None:
    assert 1 == len({one.id for one in at_once(*[partial(known, "sk-new")] * 8)})
    assert [(1,)] * 3 == [query(f"SELECT count(*) FROM {table}")[0] for table in ("key", "pool", "credential")]


def test_different_own_keys_at_once_do_not_wait_for_each_other() -> None:
    assert 8 == len({one.id for one in at_once(*[partial(known, f"sk-{n}") for n in range(8)])})


def test_an_own_key_is_its_own_credential_and_is_not_stored_in_plain() -> None:
    known("sk-canary-77")

    (row,) = query("SELECT id, secret FROM credential")
    assert b"sk-canary-77" == crypto.unseal(bytes(row.secret), bound_to=f"credential:{row.id}")
    assert b"canary" not in bytes(row.secret)


def test_own_keys_are_refused_when_closed(override: Callable[..., None]) -> None:
    old = known("sk-old")
    override(open_keys="false")

    with pytest.raises(Unauthorised):
        known("sk-new")
    assert old == known("sk-old")


@pytest.mark.parametrize("token", ["", " \n", "sk-\x00", "sk-é", "k" * 257, "ns-made-up", "sk-\u2028"])
def test_malformed_key_is_refused_and_not_stored(token: str) -> None:
    with pytest.raises(Unauthorised):
        known(token)
    assert [(0,)] == query("SELECT count(*) FROM key")


def test_an_issued_key_opens_its_pool() -> None:
    made, token = issue()

    assert made == known(token)
    assert token.startswith("ns-")
    assert [] == [one for one in query("SELECT fingerprint FROM key") if token.encode() in bytes(one.fingerprint)]


def test_a_key_for_no_pool_is_not_issued() -> None:
    with db.begin() as session, pytest.raises(Invalid, match="pools create"):
        keys.issue(session, name="team", pool="nowhere")


@pytest.mark.parametrize("make", [issue, lambda: (known("sk-own"), "sk-own")])
def test_a_revoked_key_opens_nothing_and_is_not_registered_anew(make: Callable[[], tuple[Key, str]]) -> None:
    made, token = make()
    with db.begin() as session:
        assert (True, False) == (keys.revoke(session, made.id), keys.revoke(session, made.id))

    with pytest.raises(Unauthorised, match="revoked"):
        known(token)


def test_a_pool_is_made_once() -> None:
    with db.begin() as session:
        assert keys.create_pool(session, "p") == keys.create_pool(session, "p")


def test_keys_are_found_after_a_new_secret_was_put_in_front(secrets_are: Callable[..., None]) -> None:
    secrets_are("a")
    own, (issued, token) = known("sk-own"), issue()
    secrets_are("b", "a")

    assert (own, issued) == (known("sk-own"), known(token))
    assert known("sk-newer") == known("sk-newer")
    (row,) = query("SELECT id, secret FROM credential WHERE pool_id = :id", id=own.pool_id)
    assert b"sk-own" == crypto.unseal(bytes(row.secret), bound_to=f"credential:{row.id}")


def test_an_issued_key_is_unknown_once_its_secret_is_gone(secrets_are: Callable[..., None]) -> None:
    secrets_are("a")
    _, token = issue()
    secrets_are("b")

    with pytest.raises(Unauthorised):
        known(token)
