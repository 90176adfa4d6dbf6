"""/v1/chat/completions: the answer echoes the last user message, so that a test can match a result with its job."""

from __future__ import annotations

import time
from functools import partial

from tests.upstream.answer import SSE, Answer, JsonObject, event, fresh, plain
from tests.upstream.ask import Ask, BadAsk, body_of, count_tokens
from tests.upstream.wire import Request

DEFAULT_COMPLETION_TOKENS = 1024  # charged when the caller sets no maximum
MOST_PIECES = 64
PIECE_CHARS = 12


def echo(text: str) -> str:
    """The content of every choice for this last user message."""
    return f"echo: {text}"


def ask(request: Request) -> Ask:
    body = body_of(request, "model", "messages")
    messages = body["messages"]
    if not isinstance(messages, list) or not messages:
        raise BadAsk("Invalid 'messages': empty array or not an array.", param="messages")
    text, chars = "", 0
    talk: list[list[str]] = []
    for message in messages:
        if not isinstance(message, dict):
            raise BadAsk("Invalid 'messages': expected objects.", param="messages")
        given = text_of(message.get("content"))
        chars += len(given)
        talk.append([str(message.get("role")), given])
        if message.get("role") == "user":
            text = given
    prompt_tokens = count_tokens(chars) + 4 * len(messages)
    body["n"] = choices = int(body.get("n") or 1)
    most = body.get("max_completion_tokens") or body.get("max_tokens") or DEFAULT_COMPLETION_TOKENS
    stream = bool(body.get("stream"))
    whole = partial(_whole, body, echo(text), prompt_tokens)
    answer = partial(_stream, body, echo(text), prompt_tokens) if stream else whole
    return Ask(body["model"], text, answer, tokens=prompt_tokens + most * choices, stream=stream, plain=whole, before=talk[:-1])


def text_of(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))


def _usage(body: JsonObject, text: str, prompt_tokens: int) -> JsonObject:
    completion_tokens = count_tokens(len(text)) * body["n"]
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0, "cache_write_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def _frame(body: JsonObject, kind: str) -> JsonObject:
    return {
        "id": fresh("chatcmpl-"), "object": kind, "created": int(time.time()), "model": body["model"],
        "service_tier": "default", "system_fingerprint": "fp_fake", "x_extra": {"kept": True},
    }  # fmt: skip


def _whole(body: JsonObject, text: str, prompt_tokens: int) -> Answer:
    message: JsonObject = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    choices = [{"index": index, "message": message, "logprobs": None, "finish_reason": "stop"} for index in range(body["n"])]
    return plain(_frame(body, "chat.completion") | {"choices": choices, "usage": _usage(body, text, prompt_tokens)})


def _stream(body: JsonObject, text: str, prompt_tokens: int) -> Answer:
    frame = _frame(body, "chat.completion.chunk")
    include_usage = bool((body.get("stream_options") or {}).get("include_usage"))
    if include_usage:
        frame["usage"] = None
    size = max(PIECE_CHARS, len(text) // MOST_PIECES)
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    deltas = [{"role": "assistant", "content": "", "refusal": None}, *({"content": piece} for piece in pieces)]
    events = []
    for index in range(body["n"]):
        for delta in deltas:
            events.append(event(frame | {"choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}]}))
        events.append(event(frame | {"choices": [{"index": index, "delta": {}, "logprobs": None, "finish_reason": "stop"}]}))
    if include_usage:
        events.append(event(frame | {"choices": [], "usage": _usage(body, text, prompt_tokens)}))
    return Answer(200, content_type=SSE, events=[*events, b"data: [DONE]\n\n"])
