"""Streams stored images into responses in chunks, so that a process never holds a whole image."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

from api.http.errors import ConnectionAborted
from models.content import artifacts, image_placeholders
from models.content.image_placeholders import StoredImage
from models.database import db
from models.platform.errors import Unavailable

log = logging.getLogger(__name__)

# A multiple of three, so that the base64 of the chunks is the base64 of the image; small enough for a slow client within the send timeout.
CHUNK_BYTES = 3 * 2**15


class ImageReader:
    """An iterator over the chunks of an image, each read in a transaction of its own.

    Raises ConnectionAborted when it was deleted or Postgres is unavailable: the client sees from the Content-Length that it is incomplete.
    """

    def __init__(self, artifact_id: UUID, *, size: int) -> None:
        self._id = artifact_id
        self._size = size
        self._at = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._at >= self._size:
            raise StopIteration
        try:
            with db.begin() as session:
                chunk = artifacts.read_range(session, self._id, start=self._at, size=CHUNK_BYTES)
        except Unavailable as error:
            raise self._aborted("Postgres is away") from error
        if not chunk:
            raise self._aborted("it was deleted")
        self._at += len(chunk)
        return chunk

    def _aborted(self, why: str) -> ConnectionAborted:
        log.warning("image not sent completely", extra={"artifact_id": str(self._id), "why": why})
        return ConnectionAborted()

    # werkzeug serves ranges only from objects with the methods of a file.
    def seekable(self) -> bool:
        return True

    def seek(self, at: int) -> None:
        self._at = at

    def tell(self) -> int:
        return self._at


@dataclass(frozen=True)
class ResponseBody:
    """The body of a response: bytes, and stored images that are read and encoded as base64 while they are sent."""

    parts: Sequence[bytes | StoredImage]

    @property
    def length(self) -> int:
        """The Content-Length."""
        return sum(len(part) if isinstance(part, bytes) else image_placeholders.base64_length(part.size) for part in self.parts)

    def __iter__(self) -> Iterator[bytes]:
        for part in self.parts:
            if isinstance(part, bytes):
                yield part
            else:
                yield from map(image_placeholders.encode_base64, ImageReader(part.id, size=part.size))
