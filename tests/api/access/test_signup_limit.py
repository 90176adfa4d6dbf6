"""Limit of new own keys per client address: each new key makes rows that stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask import request

from api.access.signup_limit import HOUR_S, SignupLimit, client_address_of
from models.platform.errors import QueueFull
from tests.support.http_tools import Caller, error_of, new_app
from tests.support.queue_tools import query


class Clock:
    """A clock that the test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limit(clock: Clock, override: Callable[..., None]) -> SignupLimit:
    override(new_keys_per_ip_per_hour=4)
    return SignupLimit(clock=clock)


def register(limit: SignupLimit, address: str | None, *, count: int) -> None:
    for _ in range(count):
        limit.check(address)


def test_an_address_brings_so_many_at_once_and_so_many_an_hour(limit: SignupLimit, clock: Clock) -> None:
    register(limit, "1.2.3.4", count=4)
    with pytest.raises(QueueFull) as refused:
        limit.check("1.2.3.4")
    clock.now += HOUR_S / 4
    limit.check("1.2.3.4")
    with pytest.raises(QueueFull):
        limit.check("1.2.3.4")
    clock.now += HOUR_S
    register(limit, "1.2.3.4", count=4)

    assert (429, "too_many_new_keys", HOUR_S / 4) == (refused.value.status, refused.value.code, refused.value.retry_after_s)


def test_addresses_have_separate_limits(limit: SignupLimit) -> None:
    register(limit, "1.2.3.4", count=4)

    register(limit, "1.2.3.5", count=4)


def test_this_machine_brings_as_many_as_it_likes(limit: SignupLimit) -> None:
    register(limit, None, count=1_000)


def test_new_keys_are_unlimited_without_a_cap(override: Callable[..., None]) -> None:
    override(new_keys_per_ip_per_hour=0)

    register(SignupLimit(), "1.2.3.4", count=1_000)


@pytest.mark.parametrize(
    ("peer", "forwarded", "counted"),
    [
        ("1.2.3.4", None, "1.2.3.4"),
        ("1.2.3.4", "9.9.9.9", "1.2.3.4"),
        ("127.0.0.1", None, None),
        ("::1", None, None),
        ("127.0.0.1", "6.6.6.6, 9.9.9.9", "9.9.9.9"),
        ("127.0.0.1", "9.9.9.9, nonsense", None),
        ("::ffff:1.2.3.4", None, "1.2.3.4"),
        ("2001:db8:1:2:3:4:5:6", None, "2001:db8:1:2::/64"),
        ("", None, None),
    ],
)
def test_client_address_cannot_be_chosen_by_the_client(peer: str, forwarded: str | None, counted: str | None) -> None:
    headers = {"X-Forwarded-For": forwarded} if forwarded else {}
    with new_app().test_request_context(environ_base={"REMOTE_ADDR": peer}, headers=headers):
        assert counted == client_address_of(request)


@pytest.mark.parametrize(
    ("peer", "forwarded", "counted"),
    [
        ("10.1.2.3", "9.9.9.9", "9.9.9.9"),
        ("10.1.2.3", "6.6.6.6, 9.9.9.9, 10.7.7.7", "9.9.9.9"),
        ("::ffff:10.1.2.3", "9.9.9.9", "9.9.9.9"),
        ("10.1.2.3", None, "10.1.2.3"),
        ("10.1.2.3", "9.9.9.9, nonsense", "10.1.2.3"),
        ("11.1.2.3", "9.9.9.9", "11.1.2.3"),
        ("127.0.0.1", "9.9.9.9, 10.1.2.3", "9.9.9.9"),
    ],
)
def test_proxies_elsewhere_are_believed_where_the_operator_names_them(
    override: Callable[..., None], peer: str, forwarded: str | None, counted: str
) -> None:
    override(trusted_proxies="10.0.0.0/8, fd00::/8")
    headers = {"X-Forwarded-For": forwarded} if forwarded else {}
    with new_app().test_request_context(environ_base={"REMOTE_ADDR": peer}, headers=headers):
        assert counted == client_address_of(request)


@pytest.mark.usefixtures("database")
def test_new_keys_are_refused_and_known_ones_come_in(override: Callable[..., None]) -> None:
    override(new_keys_per_ip_per_hour=2)
    caller, there = Caller(), {"X-Forwarded-For": "9.9.9.9"}

    statuses = [caller.get("/v1/jobs", headers={**there, "Authorization": f"Bearer sk-{n}"}).status_code for n in (1, 2, 1, 2)]
    refused = caller.get("/v1/jobs", headers={**there, "Authorization": "Bearer sk-3"})

    assert [200] * 4 == statuses
    assert (429, "too_many_new_keys", "false") == (refused.status_code, error_of(refused)["code"], refused.headers["x-should-retry"])
    assert 1_800 >= int(refused.headers["Retry-After"]) > 1_700
    assert [(2,)] == query("SELECT count(*) AS n FROM key")
