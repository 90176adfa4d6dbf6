"""Answers are decompressed under any Content-Encoding label and in any chunking."""

from __future__ import annotations

import gzip
import json
import zlib

import brotli
import pytest
from backports import zstd

from workers.upstream.compression import Oversized, decompress

PLAIN = json.dumps({"id": "chatcmpl-1", "text": "größer 日本 " * 200}).encode()
LIMIT = 1_000_000


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(body) + packer.flush()


FORMS = {
    "gzip": (gzip.compress(PLAIN), "gzip"),
    "gzip without label": (gzip.compress(PLAIN), ""),
    "gzip labelled br": (gzip.compress(PLAIN), "br"),
    "gzip twice": (gzip.compress(gzip.compress(PLAIN)), "gzip"),
    "gzip in members": (gzip.compress(PLAIN[:50]) + gzip.compress(PLAIN[50:]), "gzip"),
    "gzip and bytes behind it": (gzip.compress(PLAIN) + b"\r\n0\r\n", "gzip"),
    "zlib": (zlib.compress(PLAIN), "deflate"),
    "zlib without label": (zlib.compress(PLAIN, 1), ""),
    "raw deflate": (raw_deflate(PLAIN), "deflate"),
    "br": (brotli.compress(PLAIN), "br"),
    "zstd": (zstd.compress(PLAIN), "zstd"),
    "zstd labelled identity": (zstd.compress(PLAIN), "identity"),
    "plain": (PLAIN, ""),
    "plain labelled gzip": (PLAIN, "gzip"),
    "plain labelled br": (PLAIN, "br"),
    "plain labelled deflate": (PLAIN, "deflate"),
}


def unpack(body: bytes, label: str, *, size: int = 1_000_000, limit: int = LIMIT) -> bytes:
    return b"".join(decompress((body[start : start + size] for start in range(0, len(body), size)), label=label, limit=limit))


@pytest.mark.parametrize("size", [1, 7, 1_000_000])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_comes_out_plain(form: str, size: int) -> None:
    body, label = FORMS[form]

    assert unpack(body, label, size=size) == PLAIN


def test_a_part_comes_out_before_the_next_has_come() -> None:
    packer = zlib.compressobj(wbits=31)
    first = packer.compress(b"data: 1\n\n") + packer.flush(zlib.Z_SYNC_FLUSH)

    assert b"data: 1\n\n" == next(decompress([first], label="gzip", limit=LIMIT))


@pytest.mark.parametrize("label", ["gzip", "deflate", "br", "zstd", ""])
def test_undecodable_body_is_kept_as_it_is(label: str) -> None:
    body = b"\x00\xff neither \x80 nor"

    assert unpack(body, label, size=3) == body


@pytest.mark.parametrize("form", ["gzip", "zlib"])
def test_of_a_cut_body_its_beginning_comes_out(form: str) -> None:
    body, label = FORMS[form]

    assert PLAIN.startswith(unpack(body[:-3], label, size=16)[:20])


def test_of_a_body_that_breaks_its_beginning_comes_out() -> None:
    packer = zlib.compressobj(wbits=31)
    body = packer.compress(b"x" * 100) + packer.flush(zlib.Z_SYNC_FLUSH) + b"\xff" * 40

    assert b"x" * 100 == unpack(body, "gzip", size=10)


@pytest.mark.parametrize("form", ["gzip", "gzip twice", "zlib", "raw deflate", "br", "zstd"])
def test_a_body_that_unpacks_to_more_than_it_may_is_refused(form: str) -> None:
    body, label = FORMS[form]
    with pytest.raises(Oversized):
        unpack(body, label, limit=len(PLAIN) - 1)

    assert unpack(body, label, limit=len(PLAIN)) == PLAIN


def test_an_empty_body_stays_empty() -> None:
    assert b"" == unpack(b"", "gzip")
