"""Decompresses an answer as its bytes arrive: gzip, zlib, raw deflate, brotli and zstd.

Calls ask for `Accept-Encoding: identity`, but some upstreams and proxies compress all the same. The first bytes decide; the label
(`Content-Encoding`) only decides for formats without a magic number. Bytes that cannot be decompressed pass unchanged.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import brotli
from backports import zstd

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
# The first bytes of a zlib stream with a window of 32 KiB, by level; all are multiples of 31, as RFC 1950 requires.
ZLIB = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")
# The first bytes of answers that are not compressed, whatever their label.
_PLAIN = (b"{", b"[", b"data", b"event", b":", b"<", b"id:", b"retry:")
_HEAD_BYTES = 4
# A proxy may compress once more.
_MAX_LAYERS = 3
_GZIP_BITS, _ZLIB_BITS, _RAW_BITS = 31, 15, -15


class Oversized(Exception):
    """The decompressed answer is larger than its limit."""


def decompress(parts: Iterable[bytes], *, label: str, limit: int) -> Iterator[bytes]:
    """Decompresses the parts of a body. label: its Content-Encoding; limit: bytes of the decompressed body. Raises Oversized."""
    decompressor = Decompressor(label, limit=limit)
    for part in parts:
        if plain := decompressor.feed(part):
            yield plain
    if plain := decompressor.finish():
        yield plain


class Decompressor:
    """Decompresses one body. Broken data passes unchanged if no output came before it; otherwise it ends the output."""

    def __init__(self, label: str, *, limit: int, layers: int = _MAX_LAYERS) -> None:
        self._label, self._limit, self._layers = label.strip().lower(), limit, layers
        self._head = b""
        self._stream: _Stream | None = None
        self._is_plain = False

    def feed(self, part: bytes) -> bytes:
        """The output of this part. Raises Oversized."""
        if self._is_plain:
            return part
        if self._stream is None:
            self._head += part
            return self._begin(self._head) if len(self._head) >= _HEAD_BYTES else b""
        return self._stream.feed(part)

    def finish(self) -> bytes:
        """The output that was held back until the end. Raises Oversized."""
        if self._is_plain:
            return b""
        plain = self._begin(self._head) if self._stream is None else b""
        return plain + (self._stream.finish() if self._stream is not None else b"")

    def _begin(self, head: bytes) -> bytes:
        opener = _opener(head, self._label) if self._layers else None
        if opener is None:
            self._is_plain = True
            return head
        # The output may be compressed once more; it has no label of its own.
        inner = Decompressor("", limit=self._limit, layers=self._layers - 1)
        self._stream = _Stream(opener, inner, limit=self._limit)
        return self._stream.feed(head)


_Step = Callable[[bytes, int], bytes]


class _Stream:
    """A compressed stream and its inner layer. _fallback: all input, kept until the first byte of output."""

    def __init__(self, opener: Callable[[], _Decoder], inner: Decompressor, *, limit: int) -> None:
        self._opener, self._inner, self._limit = opener, inner, limit
        self._decoder = opener()
        self._fallback: list[bytes] | None = []
        self._total = 0
        self._trailing = b""
        self._has_ended = self._is_raw = False

    def feed(self, part: bytes) -> bytes:
        if self._is_raw:
            return part
        if self._has_ended:
            return b""
        if self._fallback is not None:
            self._fallback.append(part)
        try:
            plain = self._decompress(part)
        except _BROKEN:
            return self._give_up()
        if plain:
            self._fallback = None
        return self._inner.feed(plain)

    def finish(self) -> bytes:
        if self._fallback is not None and not self._is_raw and not self._decoder.has_ended:
            return self._give_up()
        return b"" if self._is_raw else self._inner.finish()

    def _decompress(self, part: bytes) -> bytes:
        plain = []
        while part and not self._has_ended:
            if self._decoder.has_ended:
                part = self._next_member(part)
                continue
            plain.append(self._decoder.step(part, self._limit - self._total + 1))
            self._total += len(plain[-1])
            if self._total > self._limit:
                raise Oversized
            part = self._decoder.rest if self._decoder.has_ended else b""
        return b"".join(plain)

    def _next_member(self, part: bytes) -> bytes:
        """Another member may follow the end of one. Any other bytes after it do not belong to the answer."""
        self._trailing += part
        if not self._trailing.startswith((GZIP, ZSTD)):
            self._has_ended = not any(magic.startswith(self._trailing) for magic in (GZIP, ZSTD))
            return b""
        self._decoder, part, self._trailing = self._opener(), self._trailing, b""
        return part

    def _give_up(self) -> bytes:
        if self._fallback is None:
            self._has_ended = True
            return b""
        self._is_raw, kept, self._fallback = True, self._fallback, None
        return b"".join(kept)


class _Decoder:
    """One decompressor. step: takes input and the limit of output bytes. rest: the bytes after its end."""

    def __init__(self, step: _Step, end: Callable[[], tuple[bool, bytes]]) -> None:
        self.step, self._end = step, end

    @property
    def has_ended(self) -> bool:
        return self._end()[0]

    @property
    def rest(self) -> bytes:
        return self._end()[1]


_BROKEN = (zlib.error, zstd.ZstdError, brotli.error, EOFError, ValueError)


def _opener(head: bytes, label: str) -> Callable[[], _Decoder] | None:
    """Creates the decoder for a body with this beginning; None: it is not compressed."""
    if head.startswith(GZIP):
        return partial(_zlib, _GZIP_BITS)
    if head.startswith(ZSTD):
        return _zstd
    if head.startswith(ZLIB):
        return partial(_zlib, _ZLIB_BITS)
    if not head or head.lstrip().startswith(_PLAIN):
        return None
    if label == "br":
        return _brotli
    return partial(_zlib, _RAW_BITS) if label == "deflate" else None


def _zlib(bits: int) -> _Decoder:
    decoder = zlib.decompressobj(bits)
    return _Decoder(decoder.decompress, lambda: (decoder.eof, decoder.unused_data))


def _zstd() -> _Decoder:
    decoder = zstd.ZstdDecompressor()
    return _Decoder(decoder.decompress, lambda: (decoder.eof, decoder.unused_data))


def _brotli() -> _Decoder:
    decoder = brotli.Decompressor()
    return _Decoder(lambda part, limit: decoder.process(part, output_buffer_limit=limit), lambda: (decoder.is_finished(), b""))
