"""How a client learns of a failure that has missed its status: 200 was sent already, and spaces, when the job failed.

Two ways are left. The error as the body: `{"error": …}` in a 200, which only a program that looks for it sees. Or the connection is
broken off in the middle of the body: the client raises, and where it asks again by itself it is told the stored failure with its real
status (models/reader.py). The better one was measured for each client; docs/clients.md has the versions, the results and the reasons.
"""

from __future__ import annotations

import re

from werkzeug.datastructures import Headers

# By these the SDKs that are generated for OpenAI say what they are, in browsers too, where User-Agent is not theirs to set.
SDK_LANGUAGE = "x-stainless-lang"
# `stream` is openai-python's with_streaming_response: its program reads the bytes itself and is not asked for again.
SDK_RAW_RESPONSE = "x-stainless-raw-response"

# Clients that hand their program an answer without choices when they read `{"error": …}` in a 200, or that ask again when it breaks.
# Everybody else is told in the body: `litellm/…` raises with its words, curl, requests, httpx, fetch and axios hand it out as it is,
# while a broken connection gives their programs no words at all.
_BROKEN_OFF = (
    # openai-python and openai-node of all ages: `AsyncOpenAI/Python 1.3.9`, `OpenAI/v1 PythonBindings/0.28.1`, `OpenAI/NodeJS/3.3.0`.
    r"\w*OpenAI/(?:Python|JS|NodeJS|v1 PythonBindings)\b",
    # LangChain for JavaScript asks again up to six times, each time as if for the first time.
    r"langchainjs-openai/",
    # The AI SDK since 5, as `ai/6.0.326 ai-sdk/provider-utils/4.0.66`: asks again after 2 and 6 seconds and does not say so.
    r".*\bai-sdk/",
    # go-openai has no User-Agent of its own; a structure without choices, and no error, is what Go programs would read.
    r"Go-http-client/",
)
_IS_BROKEN_OFF = re.compile("|".join(f"(?:{pattern})" for pattern in _BROKEN_OFF))


def breaks_off(headers: Headers) -> bool:
    """Whether a late failure breaks off the connection of the client with these request headers; False: it is told in the body."""
    if headers.get(SDK_RAW_RESPONSE) == "stream":
        return False
    return bool(headers.get(SDK_LANGUAGE)) or _IS_BROKEN_OFF.match(headers.get("User-Agent", "")) is not None
