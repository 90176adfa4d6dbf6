"""A step is retried while Postgres is unavailable, and not for longer than asked."""

from __future__ import annotations

import pytest

from models.database import retrying
from models.platform.errors import Unavailable


def test_step_is_retried_until_postgres_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "PAUSE_S", 0)
    failures = [Unavailable(), Unavailable()]

    def step() -> str:
        if failures:
            raise failures.pop()
        return "done"

    assert "done" == retrying.while_unavailable(step, for_s=60)


def test_last_error_is_raised_after_the_time() -> None:
    def step() -> None:
        raise Unavailable

    with pytest.raises(Unavailable):
        retrying.while_unavailable(step, for_s=-1)
