"""Compressed bodies: taken in the encodings that clients use, whole or in any pieces, and never unpacked beyond the limit."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from itertools import islice

import pytest
import zstandard
from sqlalchemy import text

from api.http import encodings
from models.database import db
from tests.support.http_tools import CHAT, Caller, error_of, stored

TEXT = json.dumps(CHAT).encode() + b" " * 200_000 + bytes(range(10, 11)) * 50


def raw_deflate(content: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush()


PACKERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("X-GZIP", gzip.compress),
    "two members": ("gzip", lambda content: gzip.compress(content[:9]) + gzip.compress(content[9:])),
    "deflate": ("deflate", zlib.compress),
    "raw deflate": ("deflate", raw_deflate),
    "zstd": ("zstd", zstandard.ZstdCompressor().compress),
    "two frames": ("zstd", lambda content: zstandard.compress(content[:9]) + zstandard.compress(content[9:])),
}


def unpacked(name: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
    unpack = encodings.decoder(name)
    assert unpack is not None
    return unpack(pieces)


@pytest.mark.parametrize("size", [1, 2, 3, 1_000, 1_000_000])
@pytest.mark.parametrize("packer", PACKERS)
def test_compressed_body_is_decoded_from_chunks_of_any_size(packer: str, size: int) -> None:
    name, pack = PACKERS[packer]
    packed = pack(TEXT)

    made = list(unpacked(name, (packed[at : at + size] for at in range(0, len(packed), size))))

    assert TEXT == b"".join(made)
    assert encodings.CHUNK_BYTES >= max(map(len, made))


@pytest.mark.parametrize("packer", ["gzip", "deflate", "raw deflate"])
def test_a_body_that_ends_too_early_is_refused(packer: str) -> None:
    name, pack = PACKERS[packer]
    packed = pack(TEXT)

    for end in (1, len(packed) // 2, len(packed) - 1):
        with pytest.raises(encodings.DamagedBody):
            list(unpacked(name, iter([packed[:end]])))


@pytest.mark.parametrize("packer", ["gzip", "deflate", "zstd"])
def test_invalid_compressed_bodies_are_refused(packer: str) -> None:
    name, pack = PACKERS[packer]

    for content in (pack(TEXT) + b"junk", b"{}"):
        with pytest.raises(encodings.DamagedBody):
            list(unpacked(name, iter([content])))


def test_a_frame_that_wants_a_large_window_is_refused() -> None:
    wide = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters(window_log=27)).compress(os.urandom(9_000_000))

    with pytest.raises(encodings.DamagedBody):
        list(unpacked("zstd", iter([wide])))


@pytest.mark.parametrize("packer", ["gzip", "deflate", "zstd"])
def test_a_bomb_is_unpacked_no_further_than_it_is_read(packer: str) -> None:
    name, pack = PACKERS[packer]
    bomb = pack(b"\0" * 300_000_000)
    tracemalloc.start()

    pieces = list(islice(unpacked(name, iter([bomb])), 10))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert 10 == len(pieces)
    assert peak < 5_000_000


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/chat/completions"])
def test_a_compressed_request_is_a_job_like_its_plain_form(packer: str, path: str) -> None:
    name, pack = PACKERS[packer]
    plain = CHAT if path == "/v1/jobs" else CHAT["body"]
    headers = {"Content-Encoding": name, "Prefer": "respond-async"}

    made = Caller().post(path, data=pack(json.dumps(plain).encode()), content_type="application/json", headers=headers)

    assert 202 == made.status_code, made.text
    with db.begin() as session:
        (request,) = session.execute(text("SELECT request FROM job")).scalars()
    assert CHAT["body"] == json.loads(bytes(request))


@pytest.mark.usefixtures("database")
def test_a_compressed_form_is_taken() -> None:
    head = b"--b\r\nContent-Disposition: form-data; name="
    form = head + b'"image"; filename="a.png"\r\n\r\nx\r\n' + head + b'"prompt"\r\n\r\nhi\r\n--b--\r\n'

    made = Caller().post(
        "/v1/images/edits", data=gzip.compress(form), content_type="multipart/form-data; boundary=b",
        headers={"Content-Encoding": "gzip", "Prefer": "respond-async"},
    )  # fmt: skip

    assert 202 == made.status_code, made.text


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("packer", ["gzip", "deflate", "zstd"])
def test_limit_applies_to_the_unpacked_body(packer: str, override: Callable[..., None]) -> None:
    override(max_body_bytes=100_000)
    name, pack = PACKERS[packer]

    packed = pack(json.dumps(CHAT).encode() + b" " * 100_000)

    answer = Caller().post("/v1/jobs", data=packed, content_type="application/json", headers={"Content-Encoding": name})

    assert (413, "request_too_large", 0) == (answer.status_code, error_of(answer)["code"], stored())


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("named", ["br", "gzip, gzip", "compress", "aws-chunked", "ggzip"])
def test_an_unknown_encoding_is_refused_with_those_that_are_known(named: str) -> None:
    answer = Caller().post("/v1/jobs", data=b"x", content_type="application/json", headers={"Content-Encoding": named})

    assert (415, "unsupported_content_encoding", 0) == (answer.status_code, error_of(answer)["code"], stored())
    assert "gzip, deflate, zstd" == answer.headers["Accept-Encoding"]
