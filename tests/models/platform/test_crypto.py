"""Secrets at rest open only for their own row, under any key still listed; signatures hold under any of them too."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable

import pytest

from models.platform import crypto


def fresh() -> str:
    return base64.b64encode(os.urandom(32)).decode()


@pytest.fixture(autouse=True)
def _settings(override: Callable[..., None]) -> None:
    override(secret_keys=fresh())


def test_sealed_value_opens() -> None:
    assert b"sk-1" == crypto.unseal(crypto.seal(b"sk-1", bound_to="credential:1"), bound_to="credential:1")


def test_the_plain_text_is_not_in_it_and_twice_is_not_the_same() -> None:
    one, two = (crypto.seal(b"sk-canary", bound_to="a") for _ in range(2))

    assert one != two
    assert b"canary" not in one


def test_it_does_not_open_for_another_row() -> None:
    with pytest.raises(ValueError, match="does not belong"):
        crypto.unseal(crypto.seal(b"sk-1", bound_to="credential:1"), bound_to="credential:2")


@pytest.mark.parametrize("at", [4, 15, 16, -1])
def test_a_changed_byte_is_noticed(at: int) -> None:
    sealed = bytearray(crypto.seal(b"sk-1", bound_to="a"))
    sealed[at] ^= 1

    with pytest.raises(ValueError, match="does not belong"):
        crypto.unseal(bytes(sealed), bound_to="a")


@pytest.mark.parametrize("length", [0, 3, 4, 16, 20])
def test_truncated_ciphertext_does_not_open(length: int) -> None:
    with pytest.raises(ValueError):
        crypto.unseal(crypto.seal(b"sk-1", bound_to="a")[:length], bound_to="a")


def test_old_rows_open_after_a_new_key_was_put_in_front(override: Callable[..., None]) -> None:
    old, new = fresh(), fresh()
    override(secret_keys=old)
    sealed, prints, signature = crypto.seal(b"sk-1", bound_to="a"), crypto.fingerprints(b"k"), crypto.sign("m")
    override(secret_keys=f"{new},{old}")

    assert b"sk-1" == crypto.unseal(sealed, bound_to="a")
    assert prints == crypto.fingerprints(b"k")[1:]
    assert crypto.is_valid_signature("m", signature)
    override(secret_keys=new)
    assert not crypto.is_valid_signature("m", signature)
    with pytest.raises(ValueError, match="no longer lists"):
        crypto.unseal(sealed, bound_to="a")


def test_new_rows_are_sealed_with_the_newest_key(override: Callable[..., None]) -> None:
    old, new = fresh(), fresh()
    override(secret_keys=f"{new},{old}")
    sealed = crypto.seal(b"sk-1", bound_to="a")
    override(secret_keys=new)

    assert b"sk-1" == crypto.unseal(sealed, bound_to="a")


@pytest.mark.parametrize("signature", ["", "x", "é", "\ud800", "A" * 43])
def test_a_wrong_signature_is_refused_whatever_it_is_made_of(signature: str) -> None:
    assert not crypto.is_valid_signature("m", signature)


def test_without_a_key_nothing_is_sealed(override: Callable[..., None]) -> None:
    override(secret_keys="")

    with pytest.raises(ValueError, match="openssl rand"):
        crypto.seal(b"sk-1", bound_to="a")
