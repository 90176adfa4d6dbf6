"""Reads request bodies within limits: media type, size (compressed and decompressed), time, and the memory budget of the process."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import IO, TypeVar

from flask import Request
from gevent import Timeout as Deadline
from gevent import monkey
from gunicorn.http.errors import ParseException

from api.http import body_budget, encodings, json_text, offload
from models.config.settings import settings
from models.platform.errors import Invalid, ServingError, TooLarge, UnsupportedMedia
from models.platform.wire import JsonObject

# A client that pauses longer than this within a body has disconnected, or attacks.
MAX_PAUSE_S = 10
# A body holds memory while it arrives. After GRACE_S it must have come faster than MIN_BYTES_PER_S.
MIN_BYTES_PER_S = 8 * 1024
GRACE_S = 60.0
# gevent runs other greenlets between two chunks. The allocator returns blocks of this size to the system (api/serve.py).
CHUNK_BYTES = 256 * 1024

Result = TypeVar("Result")


class Timeout(ServingError):
    """The body did not arrive in time. Send it again, without pauses."""

    code = "request_timeout"
    type = "invalid_request_error"
    status = 408


@dataclass(frozen=True)
class JsonBody:
    """A JSON body: its bytes and their value."""

    content: bytes
    value: JsonObject

    def digest(self, prefix: bytes) -> bytes:
        """SHA-256 of this prefix and the body: equal for equal JSON."""
        return digest(prefix, self.value)

    def encode(self, value: JsonObject) -> tuple[bytes, str | None]:
        """The body with this value, and its media type (None: JSON). An unchanged value keeps its original bytes."""
        return (self.content if value == self.value else json_text.dump(value)), None


def read_json(request: Request) -> JsonObject:
    """The JSON object of a request to a route of our own. Postgres can store all of its strings.

    Raises TooLarge, UnsupportedMedia or Invalid, with the place of the error and its cure.
    """
    return parse_json(request, _checked)


def parse_json(request: Request, then: Callable[[JsonBody], Result]) -> Result:
    """Parses the JSON body and returns the result of `then`. Raises the errors of `read_json`.

    then: runs with the parser, for a large body off the event loop: it must use neither a request context nor the database. The parsed
    value is freed when it returns, so that bodies that wait to be stored are in memory once each.
    """
    _check_media_type(request)
    content = read_bytes(request, limit=settings().max_body_bytes)
    return offload.run(len(content), lambda: then(JsonBody(json_text.without_bom(content), json_text.parse(content))))


def _checked(body: JsonBody) -> JsonObject:
    json_text.check_storable(body.value)
    return body.value


def digest(prefix: bytes, value: JsonObject) -> bytes:
    """SHA-256 of this prefix and the canonical JSON of this value."""
    result = hashlib.sha256(prefix)
    result.update(json_text.canonical(value))
    return result.digest()


def _check_media_type(request: Request) -> None:
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    if request.mimetype != "application/json" or charset not in ("utf-8", "utf8"):
        raise UnsupportedMedia


def read_bytes(request: Request, *, limit: int) -> bytes:
    """All bytes of the body, decompressed, with a Content-Length or in chunks. limit: of the size in bytes.

    Raises TooLarge, UnknownEncoding, Timeout, Unavailable (memory budget), or Invalid for an incomplete or damaged body.
    """
    connection = request.environ.get("gunicorn.socket")
    try:
        if connection is not None:
            connection.settimeout(MAX_PAUSE_S)
        return _read_all(request, limit)
    except TimeoutError as error:
        raise Timeout from error
    except ParseException as error:
        raise Invalid("The body's chunks are malformed. HTTP libraries write them by themselves.", code="bad_framing") from error
    except OSError as error:
        raise Invalid("The body broke off. Send it again, whole.") from error
    finally:
        if connection is not None:
            connection.settimeout(None)


def _read_all(request: Request, limit: int) -> bytes:
    decoder = encodings.decoder(request.headers.get("Content-Encoding", ""))
    if request.content_length is not None and decoder is None:
        check_size(request.content_length, limit)
        body_budget.reserve(request.content_length)
    chunks = _chunks(request, limit)
    return _join(decoder(chunks) if decoder else chunks, limit)


def _join(chunks: Iterator[bytes], limit: int) -> bytes:
    """All chunks, counted in the memory budget. gevent runs other greenlets after each."""
    # bytes.join would copy everything at once and hold the event loop meanwhile.
    buffer, size, began = BytesIO(), 0, time.monotonic()
    for chunk in chunks:
        size += len(chunk)
        check_size(size, limit)
        body_budget.acquire(len(chunk))
        buffer.write(chunk)
        time.sleep(0)
        if (took_s := time.monotonic() - began) > GRACE_S and size < took_s * MIN_BYTES_PER_S:
            raise Timeout
    return buffer.getvalue()


def _chunks(request: Request, limit: int) -> Iterator[bytes]:
    """The chunks of the body, still compressed."""
    # Not werkzeug's limited stream: it truncates a chunked body at the limit without an error, and a truncated text may be valid JSON.
    stream: IO[bytes] = request.environ["wsgi.input"]
    left = request.content_length
    if left is None:
        if "wsgi.input_terminated" in request.environ:
            yield from iter(partial(_read, stream, CHUNK_BYTES), b"")
        return
    check_size(left, limit)
    while left:
        chunk = _read(stream, min(CHUNK_BYTES, left))
        if not chunk:
            raise Invalid("The body is shorter than its Content-Length. Send it again, whole.")
        left -= len(chunk)
        yield chunk


def _read(stream: IO[bytes], size: int) -> bytes:
    """The next bytes. Raises TimeoutError when they come too slowly: gunicorn's reader only returns once it has all of them."""
    if not monkey.is_module_patched("socket"):
        return stream.read(size)
    with Deadline(GRACE_S + size / MIN_BYTES_PER_S, TimeoutError()):
        return stream.read(size)


def check_size(size: int, limit: int) -> None:
    """Raises TooLarge for a body of more than `limit` bytes."""
    if size > limit:
        raise TooLarge(f"The body is larger than the {limit} bytes this server accepts. Send less.")
