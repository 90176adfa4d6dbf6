"""Late failures: the choice for each client by its headers, as recorded from the real clients (docs/guides/late-failures.md)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from werkzeug.datastructures import Headers

from api.openai import late_failure

DOCS = Path(__file__).parents[3] / "docs" / "guides" / "late-failures.md"
CLOSED = [
    {"User-Agent": "OpenAI/Python 3.54.0", "x-stainless-lang": "python", "x-stainless-retry-count": "0"},
    {"User-Agent": "AsyncOpenAI/Python 1.40.0", "x-stainless-lang": "python", "x-stainless-async": "async:asyncio"},
    {"User-Agent": "OpenAI/Python 3.57.0", "x-stainless-lang": "python", "x-stainless-raw-response": "true"},
    {"User-Agent": "OpenAI/v1 PythonBindings/0.28.1"},
    {"User-Agent": "OpenAI/JS 7.57.0", "x-stainless-lang": "js"},
    {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36", "x-stainless-lang": "js"},
    {"User-Agent": "OpenAI/NodeJS/3.3.0"},
    {"User-Agent": "langchainjs-openai/1.0.0 ((node/v20.20.2; linux; x64))", "x-stainless-lang": "js"},
    {"User-Agent": "ai/6.0.326 ai-sdk/provider-utils/4.0.66 runtime/node.js/v20.20.2"},
    {"User-Agent": "ai-sdk/openai/3.0.141 ai-sdk/provider-utils/4.0.66 runtime/node.js/v20.20.2"},
    {"User-Agent": "Go-http-client/1.1"},
    # Behind a proxy that drops x-stainless headers.
    {"User-Agent": "OpenAI/Python 2.54.0"},
]
IN_BODY = [
    {},
    {"User-Agent": ""},
    {"User-Agent": "OpenAI/Python 3.54.0", "x-stainless-lang": "python", "x-stainless-raw-response": "stream"},
    {"User-Agent": "litellm/1.110.2"},
    {"User-Agent": "curl/7.88.1"},
    {"User-Agent": "python-requests/2.34.2"},
    {"User-Agent": "python-httpx/0.28.1"},
    {"User-Agent": "Python/3.11 aiohttp/3.14.5"},
    {"User-Agent": "Python-urllib/3.11"},
    {"User-Agent": "node"},
    {"User-Agent": "undici"},
    {"User-Agent": "axios/1.21.1"},
    {"User-Agent": "got (https://github.com/sindresorhus/got)"},
    {"User-Agent": "node-fetch"},
    {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36"},
]


@pytest.mark.parametrize("headers", CLOSED, ids=str)
def test_late_failure_closes_the_connection_of_sdks_that_hide_errors(headers: dict[str, str]) -> None:
    assert late_failure.closes_connection(Headers(headers))


@pytest.mark.parametrize("headers", IN_BODY, ids=str)
def test_late_failure_is_the_body_for_other_clients(headers: dict[str, str]) -> None:
    assert not late_failure.closes_connection(Headers(headers))


def test_table_in_the_docs_agrees_with_the_code() -> None:
    rows = re.findall(r"^\| [^|]+ \| `([^`|]+)`[^|]* \|.*\| \*\*(connection closed|error body)\*\* \|$", DOCS.read_text(), re.MULTILINE)

    assert 12 <= len(rows)
    for agent, choice in rows:
        assert ("connection closed" == choice) == late_failure.closes_connection(Headers({"User-Agent": agent})), agent
