"""Chooses how a client receives a failure after the grace time, when the response has begun as `200` with keep-alive spaces.

The failure is either the response body, `{"error": …}` under the 200, or the connection is closed before the body is complete. Closing it
makes the client raise; a client that retries by itself then receives the stored failure with its real status (models/jobs/waiters.py).
The choice was measured for each client. docs/guides/late-failures.md has the versions, the results and the reasons.
"""

from __future__ import annotations

import re

from werkzeug.datastructures import Headers

# The SDKs that OpenAI generates send it, in browsers too, where a script cannot set User-Agent.
SDK_LANGUAGE = "x-stainless-lang"
# `stream` is openai-python's with_streaming_response: the program reads the bytes itself, and the SDK does not retry.
SDK_RAW_RESPONSE = "x-stainless-raw-response"

# Clients that return `{"error": …}` under a 200 as an answer without choices, or that retry a broken response.
# The default is the body: `litellm/…` raises with the message in it, curl, requests, httpx, fetch and axios return it unchanged,
# and a broken connection carries no message at all.
_CLOSED = (
    # openai-python and openai-node of all ages: `AsyncOpenAI/Python 1.3.9`, `OpenAI/v1 PythonBindings/0.28.1`, `OpenAI/NodeJS/3.3.0`.
    r"\w*OpenAI/(?:Python|JS|NodeJS|v1 PythonBindings)\b",
    # LangChain.js retries up to six times, each with x-stainless-retry-count 0.
    r"langchainjs-openai/",
    # AI SDK 5 and later, `ai/6.0.326 ai-sdk/provider-utils/4.0.66`: retries after 2 and 6 s without a header that marks a retry.
    r".*\bai-sdk/",
    # go-openai sends Go's default. It decodes into a struct, which is then empty, without an error.
    r"Go-http-client/",
)
_IS_CLOSED = re.compile("|".join(f"(?:{pattern})" for pattern in _CLOSED))


def closes_connection(headers: Headers) -> bool:
    """Returns whether a late failure closes the connection of the client with these request headers; otherwise it becomes the body."""
    if headers.get(SDK_RAW_RESPONSE) == "stream":
        return False
    return bool(headers.get(SDK_LANGUAGE)) or _IS_CLOSED.match(headers.get("User-Agent", "")) is not None
