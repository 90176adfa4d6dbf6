"""Secrets from files: NOWSERVING_<NAME>_FILE names a file with the value of NOWSERVING_<NAME>.

Docker and Kubernetes mount secrets as files, where neither `docker inspect`, /proc nor a crash report shows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# The settings that are secret or may contain a password.
NAMES = ("database_url", "redis_url", "secret_keys", "page_key", "ops_token", "flower_basic_auth")


def load_secrets(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with the contents of the files that they name. One trailing newline of a file is removed.

    Raises ValueError if a setting is given twice or its file cannot be read. The message tells what to do and contains no secret.
    """
    values = dict(given)
    for name in NAMES:
        setting, file = f"NOWSERVING_{name.upper()}", values.pop(f"{name}_file", None)
        if not file:
            continue
        if values.get(name):
            raise ValueError(f"{setting} and {setting}_FILE are both set: unset one of them")
        values[name] = _content(Path(file), setting)
    return values


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
