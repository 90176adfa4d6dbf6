"""Content-Encoding of request bodies (RFC 9110, 8.4): one of gzip, deflate and zstd, unpacked piece by piece, never more than is kept."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from types import MappingProxyType
from typing import IO, cast

import zstandard

from models.platform.errors import Invalid, UnsupportedMedia

CHUNK_BYTES = 64 * 1024
# RFC 8878: what every decoder should take. A frame's header may ask for gigabytes.
WINDOW_MOST_BYTES = 8 * 1024 * 1024
IDENTITY = "identity"

Unpack = Callable[[Iterable[bytes]], Iterator[bytes]]


class UnknownEncoding(UnsupportedMedia):
    """This Content-Encoding is not known here. Send gzip, deflate or zstd, one of them, or none."""

    code = "unsupported_content_encoding"


class DamagedBody(Invalid):
    """The compressed body is damaged or ends too early. Send it again, whole."""

    code = "invalid_encoding"


def decoder(named: str) -> Unpack | None:
    """How a body of this Content-Encoding is unpacked; None: it is sent as it is. Raises UnknownEncoding."""
    name = named.strip().lower()
    if name in ("", IDENTITY):
        return None
    if name not in _DECODERS:
        raise UnknownEncoding
    return _DECODERS[name]


def _inflated(packed: Iterable[bytes], window_bits: int) -> Iterator[bytes]:
    """The pieces of a zlib stream, gzip's one after another too. Raises Packed."""
    stream = None
    for piece in packed:
        rest = piece
        while rest:
            stream = stream or zlib.decompressobj(window_bits)
            try:
                made = stream.decompress(rest, CHUNK_BYTES)
            except zlib.error:
                raise DamagedBody from None
            rest = stream.unused_data if stream.eof else stream.unconsumed_tail
            stream = None if stream.eof and rest else stream
            if made:
                yield made
    while stream is not None and not stream.eof and (made := stream.decompress(b"", CHUNK_BYTES)):
        yield made
    if stream is not None and not stream.eof:
        raise DamagedBody


def _gzip(packed: Iterable[bytes]) -> Iterator[bytes]:
    return _inflated(packed, 16 + zlib.MAX_WBITS)


def _deflate(packed: Iterable[bytes]) -> Iterator[bytes]:
    # With zlib's head, as the RFC has it, or without, as many clients send it: two bytes, a low nibble of 8, divisible by 31.
    pieces = iter(packed)
    head = b""
    while len(head) < 2 and (piece := next(pieces, b"")):
        head += piece
    has_head = head[:1] and head[0] & 15 == 8 and int.from_bytes(head[:2]) % 31 == 0
    return _inflated(chain([head], pieces), zlib.MAX_WBITS if has_head else -zlib.MAX_WBITS)


def _zstd(packed: Iterable[bytes]) -> Iterator[bytes]:
    # A frame that ends too early is not noticed here; no beginning of a JSON object or of a form is one itself.
    file = cast("IO[bytes]", _File(packed))  # of a file, its reader wants `read` alone
    reader = zstandard.ZstdDecompressor(max_window_size=WINDOW_MOST_BYTES).stream_reader(file, CHUNK_BYTES, read_across_frames=True)
    try:
        while made := reader.read(CHUNK_BYTES):
            yield made
    except zstandard.ZstdError:
        raise DamagedBody from None


class _File:
    """Pieces as a file that is read forward."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)

    def read(self, _size: int) -> bytes:
        return next(self._pieces, b"")


_DECODERS: Mapping[str, Unpack] = MappingProxyType({"gzip": _gzip, "x-gzip": _gzip, "deflate": _deflate, "zstd": _zstd})
ACCEPTED = "gzip, deflate, zstd"
