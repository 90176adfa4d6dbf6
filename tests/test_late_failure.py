"""Which clients a late failure breaks off, by what each of them says of itself: as recorded from the real clients (docs/clients.md)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from werkzeug.datastructures import Headers

from api import late_failure

DOCS = Path(__file__).parents[1] / "docs" / "clients.md"
BROKEN_OFF = [
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
    # A proxy of its operator took the x-stainless headers away.
    {"User-Agent": "OpenAI/Python 2.54.0"},
]
TOLD = [
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


@pytest.mark.parametrize("headers", BROKEN_OFF, ids=str)
def test_a_client_that_does_not_see_an_error_in_a_200_is_broken_off(headers: dict[str, str]) -> None:
    assert late_failure.breaks_off(Headers(headers))


@pytest.mark.parametrize("headers", TOLD, ids=str)
def test_a_program_that_reads_bodies_itself_is_told_there(headers: dict[str, str]) -> None:
    assert not late_failure.breaks_off(Headers(headers))


def test_the_table_in_the_docs_names_each_client_with_what_is_done_for_it() -> None:
    rows = re.findall(r"^\| [^|]+ \| `([^`|]+)`[^|]* \|.*\| \*\*(broken off|in the body)\*\* \|$", DOCS.read_text(), re.MULTILINE)

    assert 12 <= len(rows)
    for agent, done in rows:
        assert ("broken off" == done) == late_failure.breaks_off(Headers({"User-Agent": agent})), agent
