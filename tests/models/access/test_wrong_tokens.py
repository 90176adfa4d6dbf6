"""Guesses are slow: of an address that has sent ten wrong tokens in a minute, nothing else is looked at for a while."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from flower.views import BaseHandler
from prometheus_client import REGISTRY
from pydantic import ValidationError
from tornado import web

from models.access import operators
from models.access.wrong_tokens import MAX_A_MINUTE, PERIOD_S, WrongTokens
from models.config.settings import Settings
from models.database import db
from models.platform.errors import TooManyWrongTokens
from tests.support.http_tools import Caller, error_of, new_app
from workers.flower import handlers
from workers.observe import metrics_server

THERE, ELSEWHERE = ({"X-Forwarded-For": address} for address in ("9.9.9.9", "8.8.8.8"))


class Clock:
    """A clock that a test advances by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def wrong(clock: Clock) -> WrongTokens:
    return WrongTokens(clock=clock)


def guess(wrong: WrongTokens, address: str | None, *, count: int) -> None:
    for n in range(count):
        wrong.expect_room(address, f"guess {n}")
        wrong.note_wrong(address, f"guess {n}", door="ops")


@pytest.mark.parametrize("address", ["9.9.9.9", None])
def test_after_ten_wrong_tokens_the_next_waits_and_other_addresses_do_not(wrong: WrongTokens, clock: Clock, address: str | None) -> None:
    guess(wrong, address, count=MAX_A_MINUTE)
    with pytest.raises(TooManyWrongTokens) as refused:
        wrong.expect_room(address, "right")
    wrong.expect_room("8.8.8.8", "right")
    clock.now += PERIOD_S / MAX_A_MINUTE
    guess(wrong, address, count=1)
    with pytest.raises(TooManyWrongTokens):
        wrong.expect_room(address, "right")

    assert PERIOD_S / MAX_A_MINUTE == refused.value.retry_after_s


def test_a_token_known_from_this_address_goes_through_and_from_elsewhere_does_not(wrong: WrongTokens) -> None:
    wrong.note_right("9.9.9.9", "right")
    guess(wrong, "9.9.9.9", count=MAX_A_MINUTE)
    guess(wrong, "8.8.8.8", count=MAX_A_MINUTE)
    wrong.expect_room("9.9.9.9", "right")

    with pytest.raises(TooManyWrongTokens):
        wrong.expect_room("8.8.8.8", "right")


def test_they_are_counted_and_logged_once_until_a_quiet_minute(wrong: WrongTokens, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    before = REGISTRY.get_sample_value("nowserving_wrong_tokens_total", {"door": "ops"}) or 0
    for _ in range(2):
        guess(wrong, "9.9.9.9", count=MAX_A_MINUTE)
        for _ in range(5):
            wrong.note_wrong("9.9.9.9", "guess", door="ops")
        clock.now += 2 * PERIOD_S

    assert 2 * (MAX_A_MINUTE + 5) == (REGISTRY.get_sample_value("nowserving_wrong_tokens_total", {"door": "ops"}) or 0) - before
    assert ["9.9.9.9"] * 2 == [record.__dict__["address"] for record in caplog.records]
    assert "guess" not in caplog.text


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize(("path", "form"), [("/ops/audit", "nsop-{}"), ("/metrics", "nsop-{}")])
def test_every_door_slows_an_attacker_down(path: str, form: str) -> None:
    with db.begin() as session:
        token = operators.create(session, "day-shift", role="write")
    attacker = Caller("", new_app())
    statuses = [
        attacker.get(path, headers={**THERE, "Authorization": f"Bearer {form.format(n)}"}).status_code for n in range(MAX_A_MINUTE + 3)
    ]
    right = token if path != "/v1/jobs" else "sk-right"
    refused = attacker.get(path, headers={**THERE, "Authorization": f"Bearer {right}"})

    assert [401] * MAX_A_MINUTE + [429] * 3 == statuses
    assert (429, "too_many_wrong_tokens", "6") == (refused.status_code, error_of(refused)["code"], refused.headers["Retry-After"])
    assert 200 == attacker.get(path, headers={**ELSEWHERE, "Authorization": f"Bearer {right}"}).status_code


@pytest.mark.usefixtures("database")
def test_requests_without_a_token_are_no_guesses() -> None:
    app = new_app()
    statuses = {app.test_client().get(path).status_code for path in ("/ops/audit", "/v1/jobs") for _ in range(MAX_A_MINUTE + 2)}

    assert {401} == statuses


@pytest.mark.usefixtures("database")
def test_the_metrics_of_pacer_and_workers_slow_them_down_too(wrong: WrongTokens) -> None:
    with db.begin() as session:
        operators.create(session, "day-shift", role="read")
    answers = [metrics_server.check_token(wrong, "9.9.9.9", f"Bearer nsop-{n}") for n in range(MAX_A_MINUTE + 1)]

    assert [401] * MAX_A_MINUTE + [429] == [answer.status for answer in answers if answer is not None]


class Door:
    """A handler of Flower: its address, what it was sent, and its password."""

    application = SimpleNamespace(options=SimpleNamespace(basic_auth=["operator:correct-horse"], auth=""))

    def __init__(self, password: str) -> None:
        login = base64.b64encode(f"operator:{password}".encode()).decode()
        self.request = SimpleNamespace(remote_ip="9.9.9.9", headers={"Authorization": f"Basic {login}"} if password else {})

    get_current_user = BaseHandler.get_current_user


def flower_status(password: str, wrong: WrongTokens) -> int:
    handler = type("Handler", (handlers.PasswordLimit, Door), {"wrong": wrong})(password)
    try:
        return 200 if handler.get_current_user() else 401
    except web.HTTPError as error:
        return error.status_code


def test_passwords_of_flower_are_slowed_down(wrong: WrongTokens, clock: Clock, environment: dict[str, str]) -> None:
    without = [flower_status("", wrong) for _ in range(MAX_A_MINUTE + 1)]
    guessed = [flower_status(f"guess {n}", wrong) for n in range(MAX_A_MINUTE + 1)]
    right = flower_status("correct-horse", wrong)
    clock.now += PERIOD_S

    assert {401} == set(without), "a browser's first request has no password yet"
    assert ([401] * MAX_A_MINUTE + [429], 429) == (guessed, right)
    assert 200 == flower_status("correct-horse", wrong)


@pytest.mark.parametrize("token", ["short", "x" * 23])
def test_a_short_operators_token_is_refused_at_start(token: str, override: Callable[..., None]) -> None:
    with pytest.raises(ValidationError, match="NOWSERVING_OPS_TOKEN must have at least 24 characters") as refused:
        Settings(ops_token=token)

    assert token not in str(refused.value)
    assert "x" * 24 == Settings(ops_token="x" * 24).ops_token.get_secret_value()
