"""/v1/images/generations and /v1/images/edits: small real PNGs whose colour depends on the prompt and the index."""

from __future__ import annotations

import base64
import re
import struct
import time
import zlib
from functools import lru_cache, partial

from tests.upstream.answer import SSE, Answer, JsonObject, event, plain
from tests.upstream.ask import Ask, BadAsk, body_of, count_tokens
from tests.upstream.wire import Request

SIDE_PX = 8
OUTPUT_TOKENS = 196  # per image
_PART = re.compile(rb'name="([^"]*)"(; *filename=)?')


@lru_cache(maxsize=4096)
def png(prompt: str, index: int = 0) -> bytes:
    """The image for this prompt and index: 8 × 8 pixels of one colour."""
    colour = struct.pack(">I", zlib.crc32(f"{index}:{prompt}".encode("utf-8", "replace")))[:3]
    rows = (b"\0" + colour * SIDE_PX) * SIDE_PX
    header = struct.pack(">IIBBBBB", SIDE_PX, SIDE_PX, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _block(b"IHDR", header) + _block(b"IDAT", zlib.compress(rows)) + _block(b"IEND", b"")


def generate(request: Request) -> Ask:
    return _ask(body_of(request, "prompt"), "image_generation")


def edit(request: Request) -> Ask:
    """Parse a multipart edit. It needs an image part; the image itself is not decoded."""
    found = re.search(r'boundary="?([^";]+)', request.headers.get("content-type", ""))
    if not found:
        raise BadAsk("Expected a multipart/form-data body.")
    fields: JsonObject = {}
    for part in request.body.split(b"--" + found[1].encode())[1:-1]:
        head, _, value = part.partition(b"\r\n\r\n")
        if name := _PART.search(head):
            fields[name[1].decode()] = value[:-2] if name[2] else value[:-2].decode("utf-8", "replace")
    for name_needed in ("prompt", "image"):
        if name_needed not in fields and f"{name_needed}[]" not in fields:
            raise BadAsk(f"Missing required parameter: '{name_needed}'.", param=name_needed)
    fields["stream"] = fields.get("stream") == "true"
    return _ask(fields, "image_edit")


def _block(name: bytes, inside: bytes) -> bytes:
    return struct.pack(">I", len(inside)) + name + inside + struct.pack(">I", zlib.crc32(name + inside))


def _ask(body: JsonObject, kind: str) -> Ask:
    prompt = str(body["prompt"])
    images = int(body.get("n") or 1)
    if not 1 <= images <= 10:
        raise BadAsk("Invalid 'n': expected a value between 1 and 10.", param="n")
    stream = bool(body.get("stream"))
    tokens = count_tokens(len(prompt)) + 4
    whole = partial(_whole, body, prompt, tokens, images)
    answer = partial(_stream, body, prompt, tokens, kind) if stream else whole
    return Ask(body.get("model") or "gpt-image-2.6-flare", prompt, answer, tokens=tokens, images=images, stream=stream, plain=whole)


def _frame(body: JsonObject, at: str) -> JsonObject:
    chosen = {"background": "opaque", "output_format": "png", "quality": "low", "size": "1024x1024"}
    given = {name: body[name] for name in chosen if body.get(name) not in (None, "auto")}
    return {at: int(time.time())} | chosen | given | {"x_extra": {"kept": True}}


def _usage(tokens: int, images: int) -> JsonObject:
    made = OUTPUT_TOKENS * images
    details = {"text_tokens": tokens, "image_tokens": 0}
    more = {"output_tokens_details": {"text_tokens": 0, "image_tokens": made}}
    return {"input_tokens": tokens, "input_tokens_details": details, "output_tokens": made, "total_tokens": tokens + made} | more


def _b64(prompt: str, index: int) -> str:
    return base64.b64encode(png(prompt, index)).decode()


def _whole(body: JsonObject, prompt: str, tokens: int, images: int) -> Answer:
    made = [{"b64_json": _b64(prompt, index)} for index in range(images)]
    return plain(_frame(body, "created") | {"data": made, "usage": _usage(tokens, images)})


def _stream(body: JsonObject, prompt: str, tokens: int, kind: str) -> Answer:
    frame = _frame(body, "created_at")
    events = []
    for index in range(int(body.get("partial_images") or 0)):
        name = f"{kind}.partial_image"
        events.append(event({"type": name, "b64_json": _b64(prompt, -1 - index), "partial_image_index": index} | frame, name=name))
    last = {"type": f"{kind}.completed", "b64_json": _b64(prompt, 0)} | frame | {"usage": _usage(tokens, 1)}
    return Answer(200, content_type=SSE, events=[*events, event(last, name=f"{kind}.completed")])
