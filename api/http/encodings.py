"""Content-Encoding of request bodies (RFC 9110, 8.4): streaming decoders for gzip, deflate and zstd."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from types import MappingProxyType
from typing import IO, cast

import zstandard

from models.platform.errors import Invalid, UnsupportedMedia

CHUNK_BYTES = 64 * 1024
# RFC 8878: the window that every decoder should support. The header of a frame may ask for gigabytes.
MAX_WINDOW_BYTES = 8 * 1024 * 1024
IDENTITY = "identity"

Decoder = Callable[[Iterable[bytes]], Iterator[bytes]]


class UnknownEncoding(UnsupportedMedia):
    """This Content-Encoding is not known here. Send gzip, deflate or zstd, one of them, or none."""

    code = "unsupported_content_encoding"


class DamagedBody(Invalid):
    """The compressed body is damaged or ends too early. Send it again, whole."""

    code = "invalid_encoding"


def decoder(content_encoding: str) -> Decoder | None:
    """The decoder for this Content-Encoding; None for an uncompressed body. Raises UnknownEncoding."""
    name = content_encoding.strip().lower()
    if name in ("", IDENTITY):
        return None
    if name not in _DECODERS:
        raise UnknownEncoding
    return _DECODERS[name]


def _inflate(compressed: Iterable[bytes], window_bits: int) -> Iterator[bytes]:
    """Decompresses zlib streams, one or several in a row as gzip allows. Raises DamagedBody."""
    stream = None
    for chunk in compressed:
        rest = chunk
        while rest:
            stream = stream or zlib.decompressobj(window_bits)
            try:
                output = stream.decompress(rest, CHUNK_BYTES)
            except zlib.error:
                raise DamagedBody from None
            rest = stream.unused_data if stream.eof else stream.unconsumed_tail
            stream = None if stream.eof and rest else stream
            if output:
                yield output
    while stream is not None and not stream.eof and (output := stream.decompress(b"", CHUNK_BYTES)):
        yield output
    if stream is not None and not stream.eof:
        raise DamagedBody


def _gzip(compressed: Iterable[bytes]) -> Iterator[bytes]:
    return _inflate(compressed, 16 + zlib.MAX_WBITS)


def _deflate(compressed: Iterable[bytes]) -> Iterator[bytes]:
    # The RFC asks for the zlib header; many clients omit it. The header is two bytes: a low nibble of 8, divisible by 31.
    chunks = iter(compressed)
    head = b""
    while len(head) < 2 and (chunk := next(chunks, b"")):
        head += chunk
    has_header = head[:1] and head[0] & 15 == 8 and int.from_bytes(head[:2]) % 31 == 0
    return _inflate(chain([head], chunks), zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)


def _zstd(compressed: Iterable[bytes]) -> Iterator[bytes]:
    # The reader does not detect a truncated frame. The parsers do: no prefix of a JSON object or of a form is valid.
    file = cast("IO[bytes]", _File(compressed))  # the reader only calls `read`
    reader = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).stream_reader(file, CHUNK_BYTES, read_across_frames=True)
    try:
        while chunk := reader.read(CHUNK_BYTES):
            yield chunk
    except zstandard.ZstdError:
        raise DamagedBody from None


class _File:
    """An iterable of chunks with the `read` of a file."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)

    def read(self, _size: int) -> bytes:
        return next(self._chunks, b"")


_DECODERS: Mapping[str, Decoder] = MappingProxyType({"gzip": _gzip, "x-gzip": _gzip, "deflate": _deflate, "zstd": _zstd})
ACCEPTED = "gzip, deflate, zstd"
