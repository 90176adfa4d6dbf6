"""Access to /ops: every operator has a token, and the role `read` changes nothing."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable

import psycopg
import pytest
from click.testing import CliRunner

from api.app import create_app
from cli.main import nowserving
from models.access import operators
from models.database import db
from models.keys import keys
from tests.support.http_tools import CHAT, Caller, error_of
from tests.support.queue_tools import query

pytestmark = pytest.mark.usefixtures("database")


def token(role: operators.Role, name: str = "night-shift") -> str:
    with db.begin() as session:
        return operators.create(session, name, role=role)


def cli_output(*words: str) -> dict[str, object]:
    result = CliRunner().invoke(nowserving, [*words, "--json"])
    assert 0 == result.exit_code, result.output
    return dict(json.loads(result.stdout))


def test_token_allows_the_routes_of_its_role() -> None:
    for role in ("read", "write"):
        assert 200 == Caller(token(role, role)).get("/ops/audit").status_code


@pytest.mark.parametrize("sent", ["", "sk-one", "nsop-guess", "\N{SNOWMAN}", "x" * 300])
def test_ops_routes_refuse_without_a_token_and_explain_how_to_make_one(sent: str) -> None:
    refused = Caller().get("/ops/audit", headers={"Authorization": f"Bearer {sent}".encode().decode("latin-1")})

    assert 401 == refused.status_code
    assert "operators create" in error_of(refused)["message"]


def test_an_operator_s_token_is_no_caller_s_key() -> None:
    made = token("write")
    before = query("SELECT count(*) AS n FROM key")[0].n

    assert 401 == Caller("sk-one").get("/ops/audit").status_code
    assert before == query("SELECT count(*) AS n FROM key")[0].n, "asking made a key"
    assert made not in str(query("SELECT * FROM operator"))


ROOT_TOKEN = "open-sesame-0123456789-abcdef"
CALLER_ROUTES = [
    ("POST", "/v1/jobs"),
    ("GET", "/v1/jobs"),
    ("GET", "/v1/models"),
    ("POST", "/v1/chat/completions"),
    ("GET", "/v1/sessions"),
]


@pytest.mark.parametrize(("method", "path"), CALLER_ROUTES)
def test_an_operators_token_is_refused_on_caller_routes_and_stored_nowhere(method: str, path: str, override: Callable[..., None]) -> None:
    override(ops_token=ROOT_TOKEN)
    with db.begin() as session:
        revoked = operators.create(session, "gone", role="read")
        operators.revoke(session, "gone")
    for sent in (token("write"), revoked, "nsop-of-another-installation", ROOT_TOKEN):
        refused = Caller(sent).send(method, path, json=CHAT["body"] if "chat" in path else CHAT)
        assert (401, "invalid_api_key") == (refused.status_code, error_of(refused)["code"])
        assert "operator's token" in error_of(refused)["message"]

    stored = [query(f"SELECT count(*) AS n FROM {table}")[0].n for table in ("key", "credential", "job")]
    assert [0, 0, 0] == stored, "an own key would go upstream"


def test_an_operators_token_is_no_upstream_key(override: Callable[..., None]) -> None:
    override(ops_token=ROOT_TOKEN)
    ops = Caller(ROOT_TOKEN)
    with db.begin() as session:
        pool_id = keys.create_pool(session, "team")
        credential_id = keys.add_credential(session, pool_id=pool_id, upstream_key="sk-good")
    for sent in ("nsop-pasted-by-mistake", ROOT_TOKEN):
        for path in (f"pools/{pool_id}/credentials", f"credentials/{credential_id}/change"):
            refused = ops.post(f"/ops/{path}", {"key": sent})
            assert (400, "key") == (refused.status_code, error_of(refused)["param"])

    assert 1 == query("SELECT count(*) AS n FROM credential")[0].n


def test_the_operator_s_own_token_comes_from_the_settings(override: Callable[..., None]) -> None:
    override(ops_token="open-sesame-0123456789-abcdef")

    assert 200 == Caller("open-sesame-0123456789-abcdef").get("/ops/audit").status_code
    assert 401 == Caller("open-sesame-0123456789-abcde").get("/ops/audit").status_code


def test_a_revoked_token_opens_nothing_at_once() -> None:
    made = str(cli_output("operators", "create", "ops", "--role", "write")["token"])
    caller = Caller(made)
    assert 200 == caller.get("/ops/audit").status_code
    cli_output("operators", "revoke", "ops")

    assert 401 == caller.get("/ops/audit").status_code


def test_making_and_revoking_a_token_is_on_record_without_the_token() -> None:
    made = str(cli_output("operators", "create", "ops", "--role", "write")["token"])
    cli_output("operators", "revoke", "ops")
    rows = Caller(token("read")).get("/ops/audit").json["data"]

    assert [("cli", "revoke", "operator:ops"), ("cli", "create", "operator:ops")] == [
        (row["operator"], row["action"], row["target"]) for row in rows
    ]
    assert made not in json.dumps(rows)


@pytest.mark.parametrize("change", ["UPDATE audit SET operator = 'another'", "DELETE FROM audit"])
def test_the_audit_log_only_grows(change: str) -> None:
    cli_output("operators", "create", "ops", "--role", "write")
    with pytest.raises(psycopg.errors.IntegrityError, match="only grows"):
        query(change)


def test_every_address_of_operators_is_guarded() -> None:
    app = create_app()
    # The page itself is open: it shows nothing before a token was typed into it.
    routes = [rule for rule in app.url_map.iter_rules() if rule.rule.startswith("/ops/") and not rule.endpoint.startswith("ops_page.")]

    assert routes
    addresses = ({"REMOTE_ADDR": f"10.0.{n // 250}.{n % 250}"} for n in itertools.count(1))  # of one, the tenth wrong token is the last
    for rule in routes:
        for method in (rule.methods or set()) & {"GET", "POST", "PUT", "PATCH", "DELETE"}:
            path = re.sub(r"<(?:any\((\w+).*?\)|\w+):?\w*>", lambda found: found[1] or "1", rule.rule)
            assert 401 == Caller("sk-one", app).send(method, path, environ_overrides=next(addresses)).status_code, (method, path)
            if getattr(app.view_functions[rule.endpoint], "required_role", "write") == "write":
                assert 403 == Caller(token("read", f"{method}{rule.endpoint}"[:64]), app).send(method, path).status_code, (method, path)
