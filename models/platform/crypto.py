"""Encryption of stored secrets (AES-256-GCM, bound to their row), fingerprints of keys, and signatures of URLs."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from models.config.settings import settings

NONCE_BYTES = 12
MARK_BYTES = 4  # identifies the key of NOWSERVING_SECRET_KEYS that encrypted it


def seal(plain: bytes, *, bound_to: str) -> bytes:
    """Encrypts with the newest key. Decryption needs the same `bound_to`, so that secrets cannot be swapped between rows."""
    master = settings().secrets()[0]
    nonce = os.urandom(NONCE_BYTES)
    return _mark(master) + nonce + AESGCM(_derive(master, "seal")).encrypt(nonce, plain, bound_to.encode())


def unseal(sealed: bytes, *, bound_to: str) -> bytes:
    """Decrypts. Raises ValueError if no configured key fits, or if it was encrypted for another row."""
    mark, nonce, rest = sealed[:MARK_BYTES], sealed[MARK_BYTES : MARK_BYTES + NONCE_BYTES], sealed[MARK_BYTES + NONCE_BYTES :]
    for master in settings().secrets():
        if hmac.compare_digest(mark, _mark(master)):
            try:
                return AESGCM(_derive(master, "seal")).decrypt(nonce, rest, bound_to.encode())
            except InvalidTag as error:
                raise ValueError("a stored secret does not belong to its row") from error
    raise ValueError("a stored secret was sealed with a key that NOWSERVING_SECRET_KEYS no longer lists")


def fingerprints(key: bytes) -> list[bytes]:
    """The fingerprints by which a key is looked up: HMAC-SHA256 under each configured secret, newest first. The key is not stored."""
    return [hmac.digest(_derive(master, "fingerprint"), key, "sha256") for master in settings().secrets()]


def sign(message: str) -> str:
    """A URL-safe signature of `message`."""
    digest = hmac.digest(_derive(settings().secrets()[0], "sign"), message.encode(), "sha256")
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def is_valid_signature(message: str, signature: str) -> bool:
    """Whether this is the signature of `message`, under any configured secret."""
    given = signature.encode("utf-8", "surrogatepass")
    return any(
        hmac.compare_digest(given, base64.urlsafe_b64encode(hmac.digest(_derive(master, "sign"), message.encode(), "sha256")).rstrip(b"="))
        for master in settings().secrets()
    )


def _derive(master: bytes, purpose: str) -> bytes:
    # The master keys are 32 random bytes, so one keyed hash per purpose is a sound key derivation.
    return hmac.digest(master, b"nowserving " + purpose.encode(), "sha256")


def _mark(master: bytes) -> bytes:
    return hashlib.sha256(b"nowserving mark" + master).digest()[:MARK_BYTES]
