"""Secrets from files: NOWSERVING_<NAME>_FILE names a file that holds what NOWSERVING_<NAME> would say.

Docker and Kubernetes mount secrets as files, where neither `docker inspect`, /proc nor a crash report shows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Whatever is secret or may hold a password.
NAMES = ("database_url", "redis_url", "secret_keys", "page_key", "ops_token", "flower_basic_auth")


def load_secrets(given: Mapping[str, Any]) -> dict[str, Any]:
    """These settings, with what stands in the files that they name. One newline at the end of a file does not count.

    Raises ValueError, which says what to do and never shows a secret, where a setting is given twice or its file cannot be read.
    """
    found = dict(given)
    for name in NAMES:
        setting, file = f"NOWSERVING_{name.upper()}", found.pop(f"{name}_file", None)
        if not file:
            continue
        if found.get(name):
            raise ValueError(f"{setting} and {setting}_FILE are both set: unset one of them")
        found[name] = _content(Path(file), setting)
    return found


def _content(file: Path, setting: str) -> str:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise ValueError(f"{setting}_FILE: {file} cannot be read ({why}): mount it where this process may read it") from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise ValueError(f"{setting}_FILE: {file} is empty: write the secret into it, or unset the setting")
    return text
