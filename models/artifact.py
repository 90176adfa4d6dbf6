"""Pictures that jobs made, stored as bytes and handed out by signed links that expire."""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

from sqlalchemy import text
from uuid_utils.compat import uuid7

from models import secret
from models.db import Session
from models.errors import NotFound
from models.settings import settings


def store(session: Session, job_id: UUID, pictures: list[bytes]) -> None:
    """One artifact per picture, numbered from 0 as in the answer."""
    for n, content in enumerate(pictures):
        session.execute(_STORE, {"id": uuid7(), "job_id": job_id, "n": n, "content_type": sniff(content), "content": content})


def links(session: Session, job_id: UUID) -> list[dict[str, Any]]:
    """The job's artifacts with their URLs, good for NOWSERVING_ARTIFACT_URL_S."""
    rows = session.execute(_LIST, {"job_id": job_id})
    return [
        {"id": f"art_{row.id.hex}", "content_type": row.content_type, "bytes": row.size, "url": link(row.id, now=time.time())}
        for row in rows
    ]


def link(artifact_id: UUID, *, now: float) -> str:
    """A URL that opens this artifact without a key until it expires. Relative unless NOWSERVING_PUBLIC_URL is set."""
    name, expires = f"art_{artifact_id.hex}", int(now) + settings().artifact_url_s
    return f"{settings().public_url.rstrip('/')}/v1/artifacts/{name}?expires={expires}&signature={secret.sign(f'{name}.{expires}')}"


def fetch(session: Session, name: str, *, expires: str, signature: str, now: float) -> Any:
    """The artifact behind a link: content_type and content. Raises NotFound for a wrong, changed or expired link."""
    if not (expires.isascii() and expires.isdigit()) or not secret.is_signed(f"{name}.{expires}", signature) or int(expires) < now:
        raise NotFound("This link is wrong or has expired. Fetch the job again: it carries fresh ones.")
    row = session.execute(_FETCH, {"id": UUID(hex=name.removeprefix("art_"))}).one_or_none()
    if row is None:
        raise NotFound("This picture was deleted.")
    return row


def sniff(content: bytes) -> str:
    """The media type by the first bytes; what is not a known picture is plain bytes, never something a browser would run."""
    marks = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}
    for mark, content_type in marks.items():
        if content.startswith(mark):
            return content_type
    return "image/webp" if content[:4] == b"RIFF" and content[8:12] == b"WEBP" else "application/octet-stream"


_STORE = text("INSERT INTO artifact (id, job_id, n, content_type, content) VALUES (:id, :job_id, :n, :content_type, :content)")
_LIST = text("SELECT id, content_type, length(content) AS size FROM artifact WHERE job_id = :job_id ORDER BY n")
_FETCH = text("SELECT content_type, content FROM artifact WHERE id = :id")
