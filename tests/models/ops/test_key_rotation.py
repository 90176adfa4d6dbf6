"""Rotating the secret that encrypts what is stored: afterwards the old one is no longer needed for it."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable

import pytest
from click.testing import CliRunner

from cli.main import nowserving
from models.config.settings import settings
from models.database import db
from models.keys import keys
from models.platform import crypto
from models.webhooks import signing
from tests.support.queue_tools import known, query

pytestmark = pytest.mark.usefixtures("database")


def test_rotated_values_open_with_the_new_secret_alone(override: Callable[..., None]) -> None:
    old = ",".join(one.get_secret_value() for one in settings().secret_keys)
    caller = known("sk-old")
    with db.begin() as session:
        hook = signing.default_secret(session, caller.id)
    new = base64.b64encode(os.urandom(32)).decode()
    override(secret_keys=f"{new},{old}")
    keys._fingerprints.cache_clear()
    shown = json.loads(CliRunner().invoke(nowserving, ["keys", "rotate-secret", "--json"]).stdout)
    override(secret_keys=new)
    keys._fingerprints.cache_clear()

    assert {"credentials": 1, "own_keys": 1, "webhook_secrets": 1} == shown
    (row,) = query("SELECT id, secret FROM credential")
    assert b"sk-old" == crypto.unseal(bytes(row.secret), bound_to=f"credential:{row.id}")
    assert caller == known("sk-old"), "the caller is the same, with the same jobs"
    with db.begin() as session:
        assert hook == signing.default_secret(session, caller.id)
    keys._fingerprints.cache_clear()


def test_without_the_old_secret_nothing_is_changed(override: Callable[..., None]) -> None:
    known("sk-old")
    before = query("SELECT secret FROM credential")
    override(secret_keys=base64.b64encode(os.urandom(32)).decode())
    failed = CliRunner().invoke(nowserving, ["keys", "rotate-secret"])

    assert 0 != failed.exit_code
    assert before == query("SELECT secret FROM credential")
