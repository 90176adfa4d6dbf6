"""The OpenAPI document and the API agree."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from api import chat_page
from api.app import create_app
from api.document import openapi
from api.submit import options
from tests.support.http_tools import CHAT, IMAGE, Caller, end

# Azure's addresses of the upstream's routes, which are documented once.
ELSEWHERE = "azure."
UPSTREAM = ("/v1/chat/", "/v1/images/", "/v1/embeddings", "/v1/moderations", "/v1/models", "/v1/webhook_")
MONEY = ("/v1/balance", "/v1/usage", "/v1/dashboard/")
METHODS = {"GET", "POST", "PUT", "PATCH", "DELETE"}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return openapi.document()


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, operation) for path, methods in document["paths"].items() for method, operation in methods.items()]


def references(value: object) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


def validate(document: dict[str, Any], name: str, value: object) -> None:
    jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": document["components"]}).validate(value)


def paths(rule: str) -> list[str]:
    """Returns the paths of a route as the document has them: one for each value of `<any(…):…>`."""
    if several := re.search(r"<any\((.*?)\):\w+>", rule):
        return [path for one in several[1].split(", ") for path in paths(rule.replace(several[0], one))]
    named = rule.replace("<path:name>", "{id}" if rule.startswith("/ops/") else "{model}").replace("<name>", "{id}")
    return [re.sub(r"<(\w+)>", r"{\1}", named)]


def test_document_and_routes_match(document: dict[str, Any]) -> None:
    rules = {
        (path, method.lower())
        for rule in create_app().url_map.iter_rules()
        for method in (rule.methods or ())
        if method in METHODS and not rule.endpoint.startswith(ELSEWHERE)
        for path in paths(rule.rule)
    }

    assert rules == {(path, method) for path, method, _ in operations(document)}


def test_every_reference_resolves(document: dict[str, Any]) -> None:
    for reference in references(document):
        place: Any = document
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]
        assert place


def test_operations_are_complete(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]

    assert len(names) == len(set(names))
    for path, _, operation in operations(document):
        given = {one["name"] for one in operation["parameters"] if one["in"] == "path"}
        assert set(re.findall(r"{(\w+)}", path)) == given
        assert all(one.get("schema") for one in operation["parameters"])
        assert all(answer["description"] for answer in operation["responses"].values())
        assert path.startswith(("/v1/jobs", "/v1/sessions", *UPSTREAM, *MONEY)) == (operation["security"] == [{"bearer": []}])
        assert (path.startswith("/ops/") and operation["tags"] != ["docs"]) == (operation["security"] == [{"operator": []}])
        assert not operation["security"] or "401" in operation["responses"]


def test_every_link_matches_its_operation(document: dict[str, Any]) -> None:
    known = {operation["operationId"]: operation for _, _, operation in operations(document)}
    links = [link for each in known.values() for answer in each["responses"].values() for link in answer.get("links", {}).values()]

    for link in links:
        assert set(link["parameters"]) <= {one["name"] for one in known[link["operationId"]]["parameters"]}
    with_id = {name for name, each in known.items() if any(one["in"] == "path" for one in each["parameters"])}
    # A picture is fetched with the link in its job; models are named, not numbered. Turns, and what operators act on, stand in lists,
    # of which no link can point at one; the page's files are its own.
    theirs = {name for path, _, each in operations(document) if path.startswith("/ops") for name in [each["operationId"]]}
    unlinked = {"getArtifact", "retrieveModel", "deleteTurn", "getAsset"} | theirs
    assert with_id - unlinked == {link["operationId"] for link in links} & with_id


def test_schemas_are_valid(document: dict[str, Any]) -> None:
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_our_requests_match_document(document: dict[str, Any]) -> None:
    validate(document, "Submit", CHAT)
    validate(document, "Submit", IMAGE)
    with pytest.raises(jsonschema.ValidationError):
        validate(document, "Submit", {**CHAT, "webhook_url": 7})


def test_every_example_is_valid(document: dict[str, Any]) -> None:
    bodies = [one["requestBody"]["content"] for _, _, one in operations(document) if "requestBody" in one]
    examples = [content for body in bodies for content in body.values() if "example" in content]

    for content in examples:
        jsonschema.Draft202012Validator({**content["schema"], "components": document["components"]}).validate(content["example"])
    assert 3 <= len(examples)


@pytest.mark.parametrize(
    ("result", "fits"), [({"priority": "high", "expires_in": 3}, True), ({"priority": "urgent"}, False), ({"a": 1}, False)]
)
def test_openai_requests_include_our_fields(document: dict[str, Any], result: dict[str, Any], fits: bool) -> None:
    schema = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    validator = jsonschema.Draft202012Validator({**schema, "components": document["components"]})

    assert fits == validator.is_valid({**CHAT["body"], "x_new": 1, "nowserving": result})


def test_document_has_forms_streams_and_headers(document: dict[str, Any]) -> None:
    edit, chat = (document["paths"][path]["post"] for path in ("/v1/images/edits", "/v1/chat/completions"))

    assert {"multipart/form-data", "application/json"} == set(edit["requestBody"]["content"])
    assert {"text/event-stream", "application/json"} == set(chat["responses"]["200"]["content"])
    assert {*options.HEADERS, "Idempotency-Key", "Prefer"} == {one["name"] for one in chat["parameters"]}
    assert {"202", "429", "502", "504", "default"} <= set(chat["responses"])


@pytest.mark.usefixtures("database")
def test_our_responses_match_document(document: dict[str, Any]) -> None:
    caller = Caller()
    waiting, ended = caller.submit(user="a"), caller.submit(conversation="c", user="b", metadata={"a": "b"})
    end(caller, waiting)

    for name in (waiting, ended):
        validate(document, "Job", caller.get(f"/v1/jobs/{name}").json)
    validate(document, "JobList", caller.get("/v1/jobs").json)
    validate(document, "Balance", caller.get("/v1/balance").json)
    validate(document, "UsageList", caller.get("/v1/usage").json)
    billing = "/v1/dashboard/billing"
    validate(document, "Subscription", caller.get(f"{billing}/subscription").json)
    validate(document, "BillingUsage", caller.get(f"{billing}/usage").json)
    validate(document, "CreditSummary", caller.get(f"{billing}/credit_grants").json)
    validate(document, "Error", caller.get("/v1/jobs/x").json)
    validate(document, "Health", caller.get("/readyz").json)
    hook = {"name": "x", "url": "https://example.com", "event_types": ["job.succeeded"]}
    made = caller.post("/v1/webhook_endpoints", hook).json
    end(caller, caller.submit())
    at = f"/v1/webhook_endpoints/{made['id']}"
    validate(document, "WebhookEndpoint", made)
    validate(document, "WebhookEndpointList", caller.get("/v1/webhook_endpoints").json)
    validate(document, "EventTypes", caller.get("/v1/webhook_event_types").json)
    validate(document, "WebhookSecret", caller.get("/v1/webhook_secret").json)
    validate(document, "Delivery", caller.get(f"{at}/deliveries").json["data"][0])
    validate(document, "DeliveryList", caller.get(f"{at}/deliveries").json)
    validate(document, "Redelivered", caller.post(f"{at}/redeliver", {"since": 0}).json)
    validate(document, "WebhookEndpointDeleted", caller.send("DELETE", at).json)
    for line in caller.get(f"/v1/jobs/{waiting}/events").text.splitlines():
        if line.startswith("data: "):
            validate(document, "Event", json.loads(line.removeprefix("data: ")))


def test_docs_page_is_self_contained_and_complete(document: dict[str, Any]) -> None:
    answer = create_app().test_client().get("/docs")

    assert [] == re.findall(r"(?:src|href)=\"https?://", answer.text)
    assert "<script" not in answer.text
    assert set(re.findall(r'href="#(\w+)"', answer.text)) <= set(re.findall(r'id="(\w+)"', answer.text))
    assert all(f'id="{operation["operationId"]}"' in answer.text for _, _, operation in operations(document))


def test_root_redirects_to_docs_without_chat_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(chat_page, "BUILT", tmp_path)

    answer = create_app().test_client().get("/")

    assert (302, "docs") == (answer.status_code, answer.headers["Location"])
