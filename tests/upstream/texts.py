"""/v1/embeddings, /v1/moderations and /v1/models."""

from __future__ import annotations

import base64
import hashlib
import struct
from functools import partial
from urllib.parse import unquote

from tests.upstream.answer import Answer, JsonObject, error, fresh, plain
from tests.upstream.ask import Ask, BadAsk, body_of, count_tokens
from tests.upstream.chat import text_of
from tests.upstream.wire import Request

MODELS = ("gpt-6-astra", "gpt-6-astra-mini", "gpt-image-2.6-flare", "text-embedding-3-small", "omni-moderation-latest")
DEFAULT_DIMENSIONS = 16
FLAGGED = "flag-me"  # a text with this word is flagged for violence
CATEGORIES = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm",
    "self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic",
)  # fmt: skip


def embed(request: Request) -> Ask:
    body = body_of(request, "model", "input")
    inputs = body["input"]
    if isinstance(inputs, str) or (isinstance(inputs, list) and inputs and isinstance(inputs[0], int)):
        inputs = [inputs]
    if not isinstance(inputs, list) or not inputs:
        raise BadAsk("Invalid 'input': empty or of the wrong type.", param="input")
    tokens = sum(count_tokens(len(text)) if isinstance(text, str) else len(text) for text in inputs)
    return Ask(body["model"], str(inputs[-1]), partial(_embeddings, body, inputs, tokens), tokens=tokens)


def vector(text: str, *, dimensions: int = DEFAULT_DIMENSIONS) -> list[float]:
    """The embedding of this text: multiples of 1/8 between -16 and 16, exact in float32."""
    seed = hashlib.shake_128(text.encode("utf-8", "replace")).digest(dimensions)
    return [(byte - 128) / 8 for byte in seed]


def _embeddings(body: JsonObject, inputs: list[object], tokens: int) -> Answer:
    rows = []
    for index, text in enumerate(inputs):
        numbers: object = vector(str(text), dimensions=body.get("dimensions") or DEFAULT_DIMENSIONS)
        if body.get("encoding_format") == "base64" and isinstance(numbers, list):
            numbers = base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
        rows.append({"object": "embedding", "index": index, "embedding": numbers})
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return plain({"object": "list", "data": rows, "model": body["model"], "usage": usage, "x_extra": {"kept": True}})


def moderate(request: Request) -> Ask:
    body = body_of(request, "input")
    inputs = body["input"]
    texts = inputs if isinstance(inputs, list) and inputs and isinstance(inputs[0], str) else [text_of(inputs)]
    model = body.get("model") or "omni-moderation-latest"
    return Ask(model, texts[-1], partial(_moderations, model, texts), tokens=sum(count_tokens(len(text)) for text in texts))


def _moderations(model: str, texts: list[str]) -> Answer:
    results = []
    for text in texts:
        flags = {name: name == "violence" and FLAGGED in text for name in CATEGORIES}
        scores = {name: 0.99 if is_flagged else 0.001 for name, is_flagged in flags.items()}
        kinds = {name: ["text"] for name in CATEGORIES}
        results.append({
            "flagged": any(flags.values()), "categories": flags, "category_scores": scores, "category_applied_input_types": kinds,
        })  # fmt: skip
    return plain({"id": fresh("modr-"), "model": model, "results": results, "x_extra": {"kept": True}})


def models(request: Request) -> Ask:
    """One model or the list. Free of limits, as at OpenAI."""
    name = unquote(request.path.removeprefix("/v1/models").strip("/"))
    shapes = {model: {"id": model, "object": "model", "created": 1790000000, "owned_by": "fake", "shutdown_date": None} for model in MODELS}
    if not name:
        listed = plain({"object": "list", "data": list(shapes.values()), "x_extra": {"kept": True}})
    elif name in shapes:
        listed = plain(shapes[name] | {"x_extra": {"kept": True}})
    else:
        message = f"The model '{name}' does not exist or you do not have access to it."
        listed = error(404, message, type="invalid_request_error", code="model_not_found", param="model")
    return Ask(name, "", lambda: listed, is_metered=False)


def elsewhere(request: Request) -> Ask:
    """The target of redirects. No client may follow one with a key."""
    return Ask("", request.body[:200].decode("latin-1"), lambda: plain({"landed": True}), is_fixed=True)
