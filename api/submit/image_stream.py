"""Pictures on their way out, piece by piece: a process holds a piece of each answer it sends, never the whole of it."""

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

# A multiple of three, so that the base64 of the pieces is the base64 of the whole; small enough for a slow reader to take one in time.
PIECE_BYTES = 3 * 2**15


class ImageReader:
    """A picture's bytes from any place on; a piece each, read in a transaction of its own.

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
                piece = artifacts.read_range(session, self._id, start=self._at, size=PIECE_BYTES)
        except Unavailable as error:
            raise self._broken("Postgres is away") from error
        if not piece:
            raise self._broken("it was deleted")
        self._at += len(piece)
        return piece

    def _broken(self, why: str) -> ConnectionAborted:
        log.warning("a picture was not sent whole", extra={"artifact_id": str(self._id), "why": why})
        return ConnectionAborted()

    # werkzeug's ranges begin where they are told to only of what is like a file.
    def seekable(self) -> bool:
        return True

    def seek(self, at: int) -> None:
        self._at = at

    def tell(self) -> int:
        return self._at


@dataclass(frozen=True)
class ResponseBody:
    """The body of an answer: bytes, and pictures whose base64 is read while it is sent."""

    parts: Sequence[bytes | StoredImage]

    @property
    def length(self) -> int:
        """Of the whole, in bytes."""
        return sum(len(part) if isinstance(part, bytes) else image_placeholders.base64_length(part.size) for part in self.parts)

    def __iter__(self) -> Iterator[bytes]:
        for part in self.parts:
            if isinstance(part, bytes):
                yield part
            else:
                yield from map(image_placeholders.encode_base64, ImageReader(part.id, size=part.size))
