"""API crashes around the commit of a submit: the same request, repeated with its Idempotency-Key, is one job."""

from __future__ import annotations

import http.client
from pathlib import Path

import pytest
from sqlalchemy import text

from models.database import db
from tests.api.server.test_api_server import BODY, serving

pytestmark = pytest.mark.usefixtures("database")


@pytest.mark.parametrize(("point", "was_stored"), [("api.before_commit", False), ("api.after_commit", True), ("api.before_reply", True)])
def test_submit_without_answer_can_be_repeated(point: str, was_stored: bool, environment: dict[str, str], tmp_path: Path) -> None:
    with serving(tmp_path / "crashing", NOWSERVING_CRASH=point) as crashing, pytest.raises((http.client.HTTPException, OSError)):
        try:
            crashing.call("POST", "/v1/jobs", BODY, **{"Idempotency-Key": "once"})
        finally:
            # SIGTERM would wait for the whole grace period, while gunicorn replaces the dead worker process.
            crashing.process.kill()
    with serving(tmp_path / "healthy") as api:
        status, _, headers = api.call("POST", "/v1/jobs", BODY, **{"Idempotency-Key": "once"})

    with db.begin() as session:
        stored = session.execute(text("SELECT count(*) FROM job")).scalar_one()
    assert (202, 1) == (status, stored)
    assert was_stored == ("Idempotent-Replayed" in headers)
