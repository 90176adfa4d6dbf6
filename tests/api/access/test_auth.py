"""Keys at the door: who comes in, how long a revoked one still does, and that none is ever written down."""

from __future__ import annotations

import io
import json
import logging
import logging.config

import pytest
import redis
from sqlalchemy import text

from api.access.auth import CACHE_TTL_S, KeyCache
from models.database import db
from models.keys import keys
from models.platform import token_forms
from models.platform.errors import Unauthorised
from models.telemetry import logs
from tests.support.http_tools import CHAT, Caller, error_of

pytestmark = pytest.mark.usefixtures("database")

CANARY = "sk-canary-0123456789abcdef"


class Clock:
    """A clock that the test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def caller() -> Caller:
    return Caller()


@pytest.mark.parametrize(
    "sent",
    ["", "Bearer", "Bearer  ", "Basic abc", "sk-x", "Bearer schlüssel", "Bearer " + "x" * 257, "Bearer a\tb", "Bearer ns-unknown", None],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", ""), ("GET", ""), ("GET", "/x"), ("GET", "/x/events"), ("POST", "/x/cancel"), ("POST", "/x/retry")],
)
def test_request_without_a_valid_key_is_refused(caller: Caller, sent: str | None, method: str, path: str) -> None:
    headers = {} if sent is None else {"Authorization": sent}
    answer = caller.app.test_client().open(f"/v1/jobs{path}", method=method, headers=headers)

    assert (401, "invalid_api_key", "false") == (answer.status_code, error_of(answer)["code"], answer.headers["x-should-retry"])


def test_the_word_bearer_may_be_written_in_any_case(caller: Caller) -> None:
    assert 200 == caller.get("/v1/jobs", headers={"Authorization": "bearer sk-one"}).status_code


@pytest.mark.parametrize("name", ["api_key", "key", "access_token"])
def test_a_key_in_the_query_is_refused(caller: Caller, name: str) -> None:
    answer = caller.get(f"/v1/jobs?{name}={CANARY}")

    assert (400, name) == (answer.status_code, error_of(answer)["param"])
    assert CANARY not in answer.text


def test_where_own_keys_are_not_accepted_an_unknown_one_is_refused(override) -> None:
    override(open_keys="false")

    assert 401 == Caller().get("/v1/jobs").status_code


def test_a_revoked_key_opens_nothing_after_a_few_seconds() -> None:
    with db.begin() as session:
        keys.create_pool(session, "p")
        made, token = keys.issue(session, name="n", pool="p")
    clock = Clock()
    cache = KeyCache(clock=clock)
    cache.authenticate(token)
    with db.begin() as session:
        keys.revoke(session, made.id)

    assert made == cache.authenticate(token)
    clock.now += CACHE_TTL_S
    with pytest.raises(Unauthorised):
        cache.authenticate(token)


def test_a_key_is_written_down_nowhere(caplog: pytest.LogCaptureFixture, redis_client: redis.Redis) -> None:
    caplog.set_level(logging.DEBUG)
    caller = Caller(CANARY)

    answers = [
        caller.post("/v1/jobs", CHAT),
        caller.get("/v1/jobs"),
        caller.post("/v1/jobs", data=CANARY),
        caller.get(f"/v1/jobs/{CANARY}"),
    ]

    result = caplog.text + "".join(str(vars(record)) for record in caplog.records) + "".join(answer.text for answer in answers)
    assert CANARY not in result
    assert [] == [name for name in redis_client.keys("*") if CANARY.encode() in (redis_client.dump(name) or b"")]
    with db.begin() as session:
        tables = session.execute(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).scalars()
        for table in tables:
            assert CANARY not in str(session.execute(text(f"SELECT * FROM {table}")).all())


def test_a_prompt_is_never_logged_even_when_the_statement_fails(caller: Caller, caplog: pytest.LogCaptureFixture) -> None:
    with db.begin() as session:
        session.execute(text("ALTER TABLE job ADD CONSTRAINT never CHECK (model <> 'm') NOT VALID"))
    try:
        answer = caller.post("/v1/jobs", {**CHAT, "user": "my-secret-user"})
    finally:
        with db.begin() as session:
            session.execute(text("ALTER TABLE job DROP CONSTRAINT never"))

    assert 500 == answer.status_code
    assert "my-secret-user" not in caplog.text + answer.text + "".join(str(vars(record)) for record in caplog.records)


def test_log_redacts_texts_that_look_like_keys() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonFormatter())
    log = logging.getLogger("tests.redaction")
    log.addHandler(handler)
    log.propagate = False
    secrets = ("sk-abc-DEF_123", "ns-issued123", "whsec_abc/+=", "hunter2", "Tok3n")
    try:
        raise ValueError("redis://:hunter2@host and sk-abc-DEF_123")
    except ValueError:
        log.exception("a %s and %s", "Bearer Tok3n", {"k": "ns-issued123"}, extra={"job": "job_1", "sent": ["whsec_abc/+="]})

    line = json.loads(stream.getvalue())
    assert [] == [secret for secret in secrets if secret in stream.getvalue()]
    assert ("job_1", "error") == (line["job"], line["level"])
    assert "ValueError" in line["traceback"]


def logged(text: str) -> str:
    """The line that the log makes of this message."""
    return logs.JsonFormatter().format(logging.LogRecord("tests", logging.INFO, "", 0, text, (), None))


@pytest.mark.parametrize("prefix", [*token_forms.OURS, *token_forms.UPSTREAM])
@pytest.mark.parametrize("around", ["{}", "key_{}", "{{'token': '{}'}}", "a,{},b", "https://host/?x={}"])
def test_the_log_strikes_out_every_prefix_that_we_make_or_hold(prefix: str, around: str) -> None:
    assert "Canary123" not in logged(around.format(f"{prefix}Canary123-_x"))


@pytest.mark.parametrize("name", [*token_forms.QUERY_NAMES, *token_forms.SECRET_NAMES])
def test_the_log_strikes_out_secrets_in_urls(name: str) -> None:
    line = logged(f"GET sentinel://host:26379/0?master=m&{name}=Canary123&after=7")

    assert ("Canary123" not in line, "after=7" in line) == (True, True)


def test_the_log_leaves_ordinary_words_alone() -> None:
    assert "dns-lookup of tokens: risk-free, 3 keys" in logged("dns-lookup of tokens: risk-free, 3 keys")


def test_the_log_can_be_set_up_as_gunicorn_does() -> None:
    made = logging.config.DictConfigurator(logs.config("info"))

    assert logs.JsonFormatter is type(made.configure_formatter(made.config["formatters"]["lines"]))
