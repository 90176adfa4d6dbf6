"""Artifacts: images in answers, stored as bytes, put back into answers, and served by signed URLs that expire."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import text

from models.config.settings import settings
from models.content import image_placeholders
from models.content.image_placeholders import ExtractedImage, StoredImage
from models.database.db import Transaction
from models.platform import crypto
from models.platform.errors import NotFound

# A URL changes once per quarter of its life, so that a job rendered twice is usually the same.
QUARTERS = 4
_KINDS = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}


_STORE = text("INSERT INTO artifact (id, job_id, n, content_type, content) VALUES (:id, :job_id, :n, :content_type, :content)")


def store(session: Transaction, job_id: UUID, images: Sequence[ExtractedImage]) -> None:
    """Stores one artifact per image, under the id of the image."""
    for image in images:
        session.execute(
            _STORE, {"id": image.id, "job_id": job_id, "n": image.n, "content_type": sniff_type(image.content), "content": image.content}
        )


_OF = text("SELECT id, n, content_type, length(content) AS size FROM artifact WHERE job_id = :job_id ORDER BY n")


def by_job(session: Transaction, job_id: UUID) -> Sequence[StoredImage]:
    """The job's images in the order of its answer."""
    return [StoredImage(row.id, row.n, row.content_type, row.size) for row in session.execute(_OF, {"job_id": job_id})]


_PIECE = text("SELECT substring(content FROM :start FOR :size) FROM artifact WHERE id = :id")


def read_range(session: Transaction, artifact_id: UUID, *, start: int, size: int) -> bytes | None:
    """At most `size` bytes of the artifact from `start` on; None if it was deleted."""
    content = session.execute(_PIECE, {"id": artifact_id, "start": start + 1, "size": size}).scalar_one_or_none()
    return None if content is None else bytes(content)


def read_base64(session: Transaction, one: StoredImage) -> bytes:
    """The base64 of the whole image, as in the answer. Raises NotFound if it was deleted in the meantime, together with its job."""
    if (content := read_range(session, one.id, start=0, size=one.size)) is None:
        raise NotFound("This picture was deleted.")
    return image_placeholders.encode_base64(content)


def restore_images(session: Transaction, job_id: UUID, content: bytes) -> bytes:
    """Replaces the placeholders in an answer or a stream of this job, or in a part of it: the result is byte for byte the upstream's."""
    if not image_placeholders.may_have_placeholders(content):
        return content
    found = image_placeholders.split_at_placeholders(content, by_job(session, job_id))
    return b"".join(one if isinstance(one, bytes) else read_base64(session, one) for one in found)


def fill_images(session: Transaction, answer: Any, stored: Sequence[StoredImage], *, as_links: bool, origin: str = "") -> None:
    """Puts these images into a parsed answer, each at its index in `data`: as base64, or as a `url` instead."""
    value = answer.get("data") if isinstance(answer, dict) else None
    data = value if isinstance(value, list) else []
    for image in stored:
        item = data[image.n] if image.n < len(data) else None
        if not isinstance(item, dict) or not isinstance(item.get("b64_json"), str):
            continue
        if as_links:
            others = {name: value for name, value in item.items() if name not in ("b64_json", "url")}
            data[image.n] = {"url": artifact_url(image.id, now=time.time(), origin=origin), **others}
        elif item["b64_json"] == image_placeholders.placeholder_for(image.id):
            item["b64_json"] = read_base64(session, image).decode()


def artifact_url(artifact_id: UUID, *, now: float, origin: str = "") -> str:
    """A URL that serves this artifact without a key. It is valid for three quarters of NOWSERVING_ARTIFACT_URL_S to all of it.

    origin: its base when NOWSERVING_PUBLIC_URL is not set; without either the URL is relative.
    """
    return signed_url(public_id(artifact_id), now=now, origin=origin)


def signed_url(name: str, *, now: float, origin: str = "") -> str:
    """The same URL for an artifact name."""
    quarter_s = settings().artifact_url_s // QUARTERS
    expires = (int(now) // quarter_s + QUARTERS) * quarter_s
    base = settings().public_url.rstrip("/") or origin
    return f"{base}/v1/artifacts/{name}?expires={expires}&signature={crypto.sign(f'{name}.{expires}')}"


def artifact_view(one: StoredImage, *, origin: str = "") -> dict[str, Any]:
    """The JSON object of an artifact within its job, with a signed URL."""
    url = artifact_url(one.id, now=time.time(), origin=origin)
    return {"id": public_id(one.id), "content_type": one.content_type, "bytes": one.size, "url": url}


def check_signature(name: str, *, expires: str, signature: str, now: float) -> None:
    """Raises NotFound for a wrong, changed or expired URL."""
    if not (expires.isascii() and expires.isdigit()) or not crypto.is_valid_signature(f"{name}.{expires}", signature) or int(expires) < now:
        raise NotFound("This link is wrong or has expired. Fetch the job again: it carries fresh ones.")


_FIND = text("SELECT id, n, content_type, length(content) AS size, name FROM artifact WHERE id = :id")


def by_signed_url(session: Transaction, name: str, *, expires: str, signature: str, now: float) -> StoredImage:
    """The artifact of a signed URL. Raises NotFound for a wrong, changed or expired URL, and for a deleted artifact."""
    check_signature(name, expires=expires, signature=signature, now=now)
    row = session.execute(_FIND, {"id": UUID(hex=name.removeprefix("art_"))}).one_or_none()
    if row is None:
        raise NotFound("This picture was deleted.")
    return StoredImage(row.id, row.n, row.content_type, row.size, row.name)


def public_id(artifact_id: UUID) -> str:
    """`art_` and the 32 hex digits of the UUIDv7."""
    return f"art_{artifact_id.hex}"


def sniff_type(content: bytes) -> str:
    """The media type by the first bytes. Unknown content is application/octet-stream, which no browser runs."""
    for magic, content_type in _KINDS.items():
        if content.startswith(magic):
            return content_type
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    head = content[:1024].removeprefix(b"\xef\xbb\xbf").lstrip()
    is_svg = head.startswith(b"<svg") or (head.startswith((b"<?xml", b"<!--", b"<!DOCTYPE svg")) and b"<svg" in head)
    return "image/svg+xml" if is_svg else "application/octet-stream"
