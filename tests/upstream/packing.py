"""Valid answers in unusual encodings: compressed, in another charset, as events, or wrapped in other text."""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import replace

import brotli
from backports import zstd

from tests.upstream.answer import SSE, Answer, event

LABELS = {"zlib": "deflate", "gzip_label": "gzip", "gzip_unlabelled": ""}
COMPRESSED = ("gzip", "zlib", "deflate", "br", "zstd", "gzip_unlabelled", "gzip_label")


def pack(answer: Answer, kind: str) -> Answer:
    """Encode an answer. A compressed stream, or a stream labelled as JSON, is sent as one body of events."""
    if kind in COMPRESSED:
        return _compressed(answer, kind)
    if kind in ("sse", "sse_json"):
        return _as_events(answer, content_type=SSE if kind == "sse" else "application/json")
    if answer.events is not None:
        return replace(answer, events=None, body=_odd_events(answer.events, kind))
    text = answer.body.decode()
    if kind in ("latin1", "latin1_unlabelled"):
        label = "; charset=iso-8859-1" if kind == "latin1" else ""
        return replace(answer, body=text.encode("latin-1"), content_type=f"application/json{label}")
    wrapped = {"utf16": text.encode("utf-16"), "bom": text.encode("utf-8-sig"), "list": f"[{text}]".encode()}
    return replace(answer, body=wrapped.get(kind, answer.body + b"\r\n<!-- served from cache -->\n"))


def _compressed(answer: Answer, kind: str) -> Answer:
    body = b"".join(answer.events) if answer.events is not None else answer.body
    label = LABELS.get(kind, kind)
    headers = answer.headers + (f"content-encoding: {label}\r\n" if label else "")
    return replace(answer, events=None, body=_compress(body, kind), headers=headers)


def _compress(body: bytes, kind: str) -> bytes:
    if kind == "gzip_label":
        return body
    if kind == "deflate":
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        return packer.compress(body) + packer.flush()
    return {"br": brotli.compress, "zstd": zstd.compress, "zlib": zlib.compress}.get(kind, gzip.compress)(body)


def _as_events(answer: Answer, *, content_type: str) -> Answer:
    """Events that add up to a plain answer."""
    if answer.events is not None:
        return replace(answer, events=None, body=b"".join(answer.events), content_type=content_type)
    given = json.loads(answer.body)
    if "choices" in given:
        choices = [
            {**{name: value for name, value in one.items() if name != "message"}, "delta": one["message"]} for one in given["choices"]
        ]
        events = [event({**given, "object": "chat.completion.chunk", "choices": choices}), b"data: [DONE]\n\n"]
    else:
        about = {name: value for name, value in given.items() if name not in ("data", "created")}
        events = [event({"type": "image_generation.completed", "created_at": given["created"], **one, **about}) for one in given["data"]]
    return replace(answer, body=b"".join(events), content_type=content_type)


def _odd_events(events: list[bytes], kind: str) -> bytes:
    body = b"".join(events)
    done = b"data: [DONE]\n\n"
    odd = {
        "done_blank": body.replace(done, b"data: [DONE] \n\n"),
        "no_blank": body.replace(b"data: ", b"data:"),
        "no_last_line": body.rstrip(b"\n"),
        "junk": body.replace(done, b"data: <!-- served from cache -->\n\n" + done),
        "list": b"".join(b"data: [" + one[6:-2] + b"]\n\n" if one != done else one for one in events),
        "bom": b"\xef\xbb\xbf" + body,
        "utf16": body.decode().encode("utf-16"),
        "latin1": body.decode().encode("latin-1", "replace"),
    }
    return odd.get(kind, body)
