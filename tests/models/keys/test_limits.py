"""Limits as Postgres knows them: the operator's come first, what was learned stays, and pools add up."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from models.database import db
from models.keys import limits
from models.keys.keys import Limits
from models.keys.limits import LimitState
from tests.support.queue_tools import credential_of, known, store_limits

pytestmark = pytest.mark.usefixtures("database")
AT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def credential_id() -> int:
    caller = known()
    with db.begin() as session:
        return credential_of(session, caller)


def limit(credential_id: int, *, model: str = "*", **limits: int) -> None:
    with db.begin() as session:
        store_limits(session, credential_id, Limits(**limits), model=model)


def learn(credential_id: int, **learned: Any) -> None:
    nothing = {"learned_rpm": None, "learned_tpm": None, "window_size": None, "cooldown_until": None}
    with db.begin() as session:
        limits.store_learned(session, credential_id, "m", **{**nothing, **learned})


def read(credential_id: int) -> LimitState:
    with db.begin() as session:
        return limits.state_of(session, credential_id, "m")


def state(**limits: int) -> LimitState:
    return LimitState(Limits(**limits), learned_rpm=None, learned_tpm=None, window_size=None, cooldown_until=None)


def test_learned_limit_of_a_model_keeps_the_limits_of_all_models(credential_id: int) -> None:
    limit(credential_id, rpm=60)
    learn(credential_id, learned_rpm=500)

    assert (60, 500) == (read(credential_id).limits.rpm, read(credential_id).learned_rpm)


def test_learned_limits_keep_the_operators_limits(credential_id: int) -> None:
    limit(credential_id, model="m", rpm=5, max_in_flight=2)
    learn(credential_id, learned_rpm=500, window_size=8.0)

    assert Limits(rpm=5, max_in_flight=2) == read(credential_id).limits


def test_operators_limits_keep_learned_limits(credential_id: int) -> None:
    learn(credential_id, learned_rpm=500, window_size=8.0)
    limit(credential_id, model="m", rpm=5)

    assert (500, 8.0) == (read(credential_id).learned_rpm, read(credential_id).window_size)


def test_missing_headers_keep_learned_limits(credential_id: int) -> None:
    learn(credential_id, learned_rpm=500, learned_tpm=9_000, window_size=8.0, cooldown_until=AT)
    learn(credential_id)

    assert LimitState(Limits(), 500, 9_000, 8.0, AT) == read(credential_id)


def test_a_models_own_limits_replace_those_for_all_models_as_a_whole(credential_id: int) -> None:
    limit(credential_id, rpm=60, tpm=1_000)
    limit(credential_id, model="m", rpm=5)

    assert Limits(rpm=5) == read(credential_id).limits


def test_open_limits_take_the_settings_defaults(credential_id: int, override: Callable[..., None]) -> None:
    override(default_rpm=30, default_tpm=0)

    assert Limits(rpm=30) == read(credential_id).limits


def test_credentials_add_up() -> None:
    states = [state(rpm=60, max_in_flight=2), LimitState(Limits(), learned_rpm=40, learned_tpm=1, window_size=3.0, cooldown_until=None)]

    assert {"rpm": 100, "tpm": None, "ipm": None, "max_in_flight": 5.0} == limits.sum_of(states)


def test_no_credentials_have_no_known_limit() -> None:
    assert {None} == set(limits.sum_of([]).values())
