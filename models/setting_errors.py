"""Wrong settings in words: one line that names the setting, and never shows its value."""

from __future__ import annotations

from pydantic import ValidationError

_OURS = "Value error, "


def in_words(error: ValidationError) -> str:
    """For example `NOWSERVING_PORT: Input should be less than or equal to 65535`; several are parted by semicolons."""
    return "; ".join(_line(str(each["msg"]), each["loc"]) for each in error.errors(include_input=False, include_url=False))


def _line(message: str, where: tuple[int | str, ...]) -> str:
    own = message.removeprefix(_OURS)
    # Messages of ours name their setting themselves where it takes more than one word to do it.
    if own.split("_", 1)[0] in ("NOWSERVING", "OPENAI", "HTTP", "HTTPS", "ALL") or not where:
        return own
    name = "_".join(map(str, where)).upper()
    return f"{name if name.startswith(('OPENAI', 'OTEL', 'PROMETHEUS', 'NOWSERVING')) else 'NOWSERVING_' + name}: {own}"
