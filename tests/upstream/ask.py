"""A parsed call: model, text, tokens and images to charge, and how to answer it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.upstream.answer import Answer, JsonObject
from tests.upstream.wire import Request


class BadAsk(Exception):
    """The body cannot be answered: 400."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


@dataclass(slots=True)
class Ask:
    """A parsed call.

    text: the last user message or the prompt. before: role and text of each message before a chat's last. tokens:
    charged at admission. is_metered: counts towards limits. is_fixed: ignores the limits and behaviours of the key.
    plain: the answer to the same call without streaming.
    """

    model: str
    text: str
    answer: Callable[[], Answer]
    tokens: int = 0
    images: int = 0
    stream: bool = False
    is_metered: bool = True
    is_fixed: bool = False
    plain: Callable[[], Answer] | None = None
    before: list[list[str]] = field(default_factory=list)


def body_of(request: Request, *needed: str) -> JsonObject:
    """The JSON object of the body. Raises BadAsk if the body is no object or lacks a needed field."""
    try:
        body = json.loads(request.body)
    except ValueError as error:
        raise BadAsk("We could not parse the JSON body of your request.") from error
    if not isinstance(body, dict):
        raise BadAsk("The JSON body of your request is not an object.")
    for name in needed:
        if body.get(name) is None:
            raise BadAsk(f"Missing required parameter: '{name}'.", param=name)
    return body


def count_tokens(chars: int) -> int:
    """Estimate: four characters are one token, rounded up."""
    return -(-chars // 4)
