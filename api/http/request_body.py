"""A request's body, read with limits: its size, packed and unpacked, its media type, the time it takes, and the memory of all together."""

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

# A sender that pauses longer than this in the middle of a body is gone, or means harm.
PAUSE_MOST_S = 10
# A body holds its place in memory while it comes: slower than this, after a while, it is not let go on.
SLOWEST_BYTES_PER_S = 8 * 1024
SLOW_AFTER_S = 60.0
# Between two pieces others are served. Blocks of this size go back to the system as soon as they are free (api/serve.py).
PIECE_BYTES = 256 * 1024

Result = TypeVar("Result")


class Timeout(ServingError):
    """The body did not arrive in time. Send it again, without pauses."""

    code = "request_timeout"
    type = "invalid_request_error"
    status = 408


@dataclass(frozen=True)
class JsonBody:
    """A JSON body: its bytes, and what they say."""

    content: bytes
    value: JsonObject

    def digest(self, line: bytes) -> bytes:
        """SHA-256 of this line and the body, the same for the same JSON."""
        return digest(line, self.value)

    def written(self, value: JsonObject) -> tuple[bytes, str | None]:
        """The body that says `value`, and its media type (None: JSON): the very bytes that came when that is what they say."""
        return (self.content if value == self.value else json_text.dump(value)), None


def read_json(request: Request) -> JsonObject:
    """The JSON object that was sent to a route of our own, all of whose texts can be stored.

    Raises TooLarge, UnsupportedMedia or Invalid, with a message that says where and what to do.
    """
    return parse_json(request, _storable)


def parse_json(request: Request, then: Callable[[JsonBody], Result]) -> Result:
    """What `then` makes of the JSON body that was sent, whose texts may go on to an upstream alone. Raises as `read`.

    then: works where a large body is parsed, off the event loop, with neither a request's context nor a database. What was parsed is
    gone when it returns, so that many bodies that wait to be stored are held once each.
    """
    _expect_json(request)
    content = read_bytes(request, most=settings().max_body_bytes)
    return offload.run(len(content), lambda: then(JsonBody(json_text.without_bom(content), json_text.parse(content))))


def _storable(sent: JsonBody) -> JsonObject:
    json_text.check_storable(sent.value)
    return sent.value


def digest(line: bytes, value: JsonObject) -> bytes:
    """SHA-256 of this line and the canonical JSON of this value."""
    made = hashlib.sha256(line)
    made.update(json_text.canonical(value))
    return made.digest()


def _expect_json(request: Request) -> None:
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    if request.mimetype != "application/json" or charset not in ("utf-8", "utf8"):
        raise UnsupportedMedia


def read_bytes(request: Request, *, most: int) -> bytes:
    """Every byte of the body, unpacked, at most so many, with a length or in chunks; a silent sender does not hold us for ever.

    Raises TooLarge, UnknownEncoding, Timeout, Unavailable (no room in memory), or Invalid for a body that broke off or is damaged.
    """
    connection = request.environ.get("gunicorn.socket")
    try:
        if connection is not None:
            connection.settimeout(PAUSE_MOST_S)
        return _whole(request, most)
    except TimeoutError as error:
        raise Timeout from error
    except ParseException as error:
        raise Invalid("The body's chunks are malformed. HTTP libraries write them by themselves.", code="bad_framing") from error
    except OSError as error:
        raise Invalid("The body broke off. Send it again, whole.") from error
    finally:
        if connection is not None:
            connection.settimeout(None)


def _whole(request: Request, most: int) -> bytes:
    unpack = encodings.decoder(request.headers.get("Content-Encoding", ""))
    if request.content_length is not None and unpack is None:
        expect_size(request.content_length, most)
        body_budget.reserve(request.content_length)
    as_sent = _pieces(request, most)
    return _joined(unpack(as_sent) if unpack else as_sent, most)


def _joined(pieces: Iterator[bytes], most: int) -> bytes:
    """All pieces, counted in memory. Others are served after each."""
    # A join would copy all of it at once, and hold the event loop for that long.
    kept, size, began = BytesIO(), 0, time.monotonic()
    for piece in pieces:
        size += len(piece)
        expect_size(size, most)
        body_budget.acquire(len(piece))
        kept.write(piece)
        time.sleep(0)
        if (took_s := time.monotonic() - began) > SLOW_AFTER_S and size < took_s * SLOWEST_BYTES_PER_S:
            raise Timeout
    return kept.getvalue()


def _pieces(request: Request, most: int) -> Iterator[bytes]:
    """The body as it is sent, to its end."""
    # Read by hand: werkzeug's limited stream cuts a body in chunks off at the limit without a word, and half a text may be JSON.
    stream: IO[bytes] = request.environ["wsgi.input"]
    wanted = request.content_length
    if wanted is None:
        if "wsgi.input_terminated" in request.environ:
            yield from iter(partial(_read, stream, PIECE_BYTES), b"")
        return
    expect_size(wanted, most)
    while wanted:
        piece = _read(stream, min(PIECE_BYTES, wanted))
        if not piece:
            raise Invalid("The body is shorter than its Content-Length. Send it again, whole.")
        wanted -= len(piece)
        yield piece


def _read(stream: IO[bytes], size: int) -> bytes:
    """The next so many bytes. Raises TimeoutError when they come too slowly: the server's reader returns only with all of them."""
    if not monkey.is_module_patched("socket"):
        return stream.read(size)
    with Deadline(SLOW_AFTER_S + size / SLOWEST_BYTES_PER_S, TimeoutError()):
        return stream.read(size)


def expect_size(size: int, most: int) -> None:
    """Raises TooLarge for a body of more than so many bytes."""
    if size > most:
        raise TooLarge(f"The body is larger than the {most} bytes this server accepts. Send less.")
